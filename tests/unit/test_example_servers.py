"""The servers that come with ptserver, method by method."""

import errno
import os
import struct
from typing import Any

import pytest

from ptserver.call import Call
from ptserver.messages import Machine, Program
from ptserver.outcomes import Delay, Done, Fail, OpenBytes, Proceed, Return
from ptserver.server import RuntimeServer
from ptserver.servers.fake_hosts import FakeHosts
from ptserver.servers.fault_injection import FaultInjection
from ptserver.servers.fixed_clock import FixedClock
from ptserver.servers.passthrough import PassThrough
from ptserver.servers.read_only import ReadOnly
from ptserver.servers.tracelogger import TraceLogger
from ptserver.session import Session
from stepping.syscalls import SYSCALLS

AT_FDCWD = 2**64 - 100


def make_session(resources: Any = "server") -> tuple[Session, list[str]]:
    log: list[str] = []
    session = Session(
        "s1",
        Program("/bin/x", ("x",)),
        Machine("amd64", "6.1", "here"),
        resources,
        log=log.append,
        send_signal=lambda signo: None,
        keep_descriptor=lambda fd: fd,
    )
    return session, log


def call(
    name: str,
    *args: int,
    ins: dict[int, bytes] | None = None,
    outs: dict[int, int] | None = None,
    session: Session | None = None,
) -> Call:
    registers: Any = tuple(arg % 2**64 for arg in args) + (0,) * (6 - len(args))
    return Call(session or make_session()[0], 1, 100, 99, SYSCALLS[name], registers, ins or {}, outs or {})


def test_passthrough_wants_nothing() -> None:
    assert PassThrough.declared_interest() == {}


def test_fake_hosts_replaces_one_file() -> None:
    server = FakeHosts()
    opening = call("openat", AT_FDCWD, 1, os.O_CLOEXEC, ins={1: b"/etc/hosts"})
    assert server.openat(opening) == OpenBytes(FakeHosts.hosts, os.O_CLOEXEC)
    assert server.open(call("open", 1, 0, ins={0: b"/etc/hosts"})) == OpenBytes(FakeHosts.hosts, 0)
    assert server.openat(call("openat", AT_FDCWD, 1, 0, ins={1: b"/etc/passwd"})) == Proceed()
    assert set(FakeHosts.declared_interest()) == {"open", "openat"}


def test_faults_hit_files_in_a_sequence_that_repeats(tmp_path: Any) -> None:
    def outcomes(seed: int, fd: int) -> list[object]:
        server = FaultInjection()
        server.seed = seed
        server.session_started(make_session()[0])
        return [server.write(call("write", fd, 1, 1, ins={1: b"x"})) for _ in range(1000)]

    with open(tmp_path / "file", "wb") as file:
        first = outcomes(1, file.fileno())
        assert first == outcomes(1, file.fileno()) != outcomes(2, file.fileno())
    assert 50 < first.count(Fail(errno.ENOSPC)) < 150
    assert first.count(Proceed()) == 1000 - first.count(Fail(errno.ENOSPC))
    eventfd = os.eventfd(0)
    assert outcomes(1, eventfd) == [Proceed()] * 1000
    os.close(eventfd)
    read = FaultInjection().read(call("read", 0, 1, 1, outs={1: 1}))
    assert read == Delay(FaultInjection.read_delay_seconds, Proceed())


def test_a_read_only_sandbox_opens_for_reading_only() -> None:
    def opened(path: bytes, flags: int) -> object:
        return ReadOnly().openat(call("openat", AT_FDCWD, 1, flags, ins={1: path}))

    assert opened(b"/etc/hosts", os.O_RDONLY | os.O_CLOEXEC) == Proceed({"path": "/etc/hosts"})
    assert opened(b"/dev/null", os.O_RDWR) == Proceed({"path": "/dev/null"})
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_WRONLY | os.O_TMPFILE):
        assert opened(b"/etc/hosts", flags) == Fail(errno.EROFS)
    assert opened(b"/dev/../etc/hosts", os.O_WRONLY) == Fail(errno.EROFS)


def test_a_read_only_sandbox_knows_every_call_that_changes_names_or_attributes() -> None:
    """Of the table's calls that take a path, all are refused but those that are known to change nothing."""
    harmless = {
        *(
            "access faccessat faccessat2 chdir chroot getcwd readlink readlinkat stat lstat newfstatat".split()
        ),
        *("statx statfs getxattr lgetxattr listxattr llistxattr listxattrat getxattrat file_getattr".split()),
        *("inotify_add_watch fanotify_mark name_to_handle_at execve execveat open_tree fspick".split()),
        *("acct swapon swapoff quotactl open_tree_attr uselib".split()),
    }
    takes_path = {name for name, row in SYSCALLS.items() if any(arg.kind.value == "path" for arg in row.args)}
    assert takes_path - set(ReadOnly.declared_interest()) == harmless & takes_path
    server = ReadOnly()
    for name in takes_path - harmless - {"open", "openat", "openat2"}:
        assert getattr(server, name)(call(name)) == Fail(errno.EROFS), name
    setflags = call("ioctl", 3, 0x40086602, 1, ins={2: bytes(8)})
    assert server.ioctl(setflags) == Fail(errno.EROFS)
    assert server.ioctl(call("ioctl", 3, 0x5413, 1, outs={2: 8})) == Proceed()


def test_a_fixed_clock_tells_the_time_in_every_way() -> None:
    server = FixedClock()
    now = struct.pack("=qq", FixedClock.seconds, 0)
    assert server.clock_gettime(call("clock_gettime", 0, 1, outs={1: 16})) == Return(0, {"tp": now})
    assert server.clock_gettime(call("clock_gettime", 1, 1, outs={1: 16})) == Proceed()
    assert server.gettimeofday(call("gettimeofday", 1, 0, outs={0: 16})) == Return(
        0, {"tv": now, "tz": bytes(8)}
    )
    assert server.time(call("time", 0)) == Return(FixedClock.seconds, {"tloc": now[:8]})


def test_a_fixed_clock_renames_the_host() -> None:
    uname = call("uname", 1, outs={0: 390})
    outcome = FixedClock().uname(uname)
    assert isinstance(outcome, Proceed)
    assert outcome.then is not None
    truth = b"".join(
        word.ljust(65, b"\0") for word in (b"Linux", b"a-long-name", b"6.1", b"#1", b"x86_64", b"")
    )
    renamed = outcome.then(Done(0, 0, {"buf": truth}))
    assert isinstance(renamed, Return)
    assert renamed.outs["buf"] == truth.replace(b"a-long-name", b"fixed\0\0\0\0\0\0")
    assert outcome.then(Done(0, errno.EFAULT)) is None


@pytest.mark.parametrize("resources", ["server", "host"])
def test_the_trace_logger_logs_each_call_once(resources: Any) -> None:
    session, log = make_session(resources)
    server: RuntimeServer = TraceLogger()
    opening = call("openat", AT_FDCWD, 1, os.O_RDONLY, ins={1: b"/etc/hosts"}, session=session)
    server.observe(opening)
    if resources == "server":  # where the result is known
        server.finished(opening, Done(3))
        server.finished(call("read", 3, 1, 9, outs={1: 9}, session=session), Done(4, 0, {"buf": b"text"}))
        assert log == [
            '[100] openat(AT_FDCWD, "/etc/hosts", O_RDONLY) = 3',
            '[100] read(3, "text", 9) = 4',
        ]
    else:
        assert log == ['[100] openat(AT_FDCWD, "/etc/hosts", O_RDONLY)']
