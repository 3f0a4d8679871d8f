"""The shadow's parts that need a process of their own: limits, credentials, outcomes of methods, hostile calls."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_client import AT_FDCWD, Client, Sessions, hello, sessions

from ptserver.messages import Observed, Refused, Result, Syscall
from ptserver.server import OBSERVE, Call, Delay, Done, Interest, Outcome, Proceed, RuntimeServer, observe
from ptserver.session import Session


class Everything(RuntimeServer):
    """Uses every outcome and hook."""

    interests = {"mprotect": OBSERVE, "getegid": OBSERVE}  # noqa: RUF012

    def session_started(self, session: Session) -> None:
        session.log("hook started")
        self.fd = session.private_fd(os.open("/etc/passwd", os.O_RDONLY))

    def session_ended(self, session: Session) -> None:
        session.log("hook ended")

    def exited(self, session: Session, status: int | None, signo: int) -> None:
        session.log(f"hook exited {status} {signo}")

    def getuid(self, call: Call) -> Outcome:
        return call.answer(4242)

    def getgid(self, call: Call) -> Outcome:
        return Delay(0.05, call.answer(17))

    def geteuid(self, call: Call) -> Outcome:
        return Delay(3600.0)

    def openat(self, call: Call) -> Outcome | None:
        if call.path == "/virtual":
            return call.open_bytes(b"virtual contents")
        if call.path == "/elsewhere":
            return call.proceed(path="/etc/passwd", flags=os.O_RDONLY)
        if call.path == "/oserror":
            raise NotADirectoryError(errno.ENOTDIR, "")
        return None

    def read(self, call: Call) -> Outcome:
        def shout(done: Done) -> Outcome | None:
            return call.answer(done.value, buf=done.outs["buf"].upper()) if done.outs else None

        return call.proceed(shout)

    def write(self, call: Call) -> Outcome:
        return call.proceed(buf=call.buf + b"!")

    def clock_gettime(self, call: Call) -> Outcome:
        return Proceed()

    def brk(self, call: Call) -> Outcome:
        return Proceed()

    @observe
    def getpid(self, call: Call) -> None:
        call.session.log(f"watched {call.name}")

    def observe(self, call: Call) -> None:
        call.session.log(f"observed {call.name}")

    def finished(self, call: Call, done: Done) -> None:
        if call.name == "getuid":
            call.session.log(f"finished {call.name} {done.value}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    with sessions(Everything, str(tmp_path_factory.mktemp("log") / "log")) as running:
        yield running


@pytest.fixture
def client(running: Sessions) -> Iterator[Client]:
    client = running.open()
    yield client
    client.close()
    running.wait_ended()


def test_the_welcome_tells_only_what_the_host_must_know(client: Client) -> None:
    interest: dict[str, Interest] = client.welcome.interest
    assert interest["clock_gettime"] == "serve"
    assert interest["mprotect"] == "observe"
    assert "getegid" not in interest  # a resource of the server's: it is served anyway


def test_outcomes_reach_the_program(client: Client, tmp_path: Path) -> None:
    assert client.call("getuid").value == 4242
    started = time.monotonic()
    delayed = client.start("getgid")
    assert client.call("getuid").value == 4242
    assert client.result(delayed).value == 17
    assert time.monotonic() - started >= 0.05
    assert client.open("/virtual", os.O_CLOEXEC) == 3
    assert client.read(3) == b"VIRTUAL CONTENTS"
    assert client.write(3, b"x").errno == errno.EBADF
    assert client.call("fcntl", 3, 1).value == 1
    fd = client.open("/elsewhere")
    assert client.read(fd, 5) == Path("/etc/passwd").read_bytes()[:5].upper()
    assert client.call("openat", AT_FDCWD, 1, 0, ins={1: b"/oserror"}).errno == errno.ENOTDIR
    fd = client.open(str(tmp_path / "file"), os.O_CREAT | os.O_RDWR)
    assert client.write(fd, b"abc").value == 4
    assert (tmp_path / "file").read_bytes() == b"abc!"
    assert client.call("getegid").value == os.getegid()
    # Clocks and memory are the program's own: what is not answered goes back to its host.
    assert client.call("clock_gettime", 1, 1, outs={1: 16}).proceed
    assert client.call("brk", 0).proceed


def test_then_sees_the_result_of_a_call_that_waited(client: Client) -> None:
    reading, writing = client.pipe()
    call_id = client.start("read", reading, 1, 10, outs={1: 10})
    client.write(writing, b"late")
    assert client.result(call_id) == Result(call_id, 5, 0, {1: b"LATE!"})


def test_a_delay_is_cancelled(client: Client) -> None:
    call_id = client.start("geteuid")
    client.cancel(call_id)
    assert client.result(call_id).errno == errno.EINTR


def test_hooks_and_observed_calls(running: Sessions) -> None:
    client = running.open()
    name = client.welcome.session
    client.call("getuid")
    client.send(Observed(1, 1, "mprotect", (0, 0, 0, 0, 0, 0)))
    client.send(Observed(1, 1, "getpid", (0, 0, 0, 0, 0, 0)))
    client.send(Observed(1, 1, "no_such_call", (0, 0, 0, 0, 0, 0)))
    client.call("getegid")
    client.exit(3)
    running.wait_ended()
    lines = [line.partition("] ")[2] for line in running.log().splitlines() if f"[{name}]" in line]
    assert lines[1:-1] == [
        "hook started",
        "finished getuid 4242",
        "observed mprotect",
        "watched getpid",
        "observed getegid",
        "hook exited 3 0",
        "hook ended",
    ]


def test_the_session_survives_hostile_calls(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    fd = client.open(path, os.O_CREAT | os.O_RDWR)
    os.truncate(path, 1 << 20)
    everything = 2**63 - 1
    assert client.call("pread64", fd, 1, 2**64 - 1, 0, outs={1: 10}).errno == errno.EINVAL
    call = client.call
    assert call("pread64", fd, 1, everything, 0, outs={1: 10}).value == 10
    assert call("pread64", fd, 1, 10, 0, outs={1: 8 << 20}).value == 10
    assert call("pread64", fd, 0x7FFF00000000, 10, 0).errno == errno.EFAULT
    assert call("pwrite64", fd, 1, everything, 0, ins={1: b"abc"}).value == 3
    assert call("fstat", fd, 1, outs={1: 1}).outs[1] == os.stat(path).st_dev.to_bytes(8, "little")[:1]
    assert call("fstat", fd, 1, outs={0: 5, 5: 5}).errno == errno.EFAULT
    assert call("statx", AT_FDCWD, 1, 0, 0xFFF, 1, ins={1: b"/"}, outs={4: 1}).errno == 0
    assert call("preadv", fd, 1, 1000, 0, outs={1: 100}).value == 100
    assert call("openat", AT_FDCWD, 1, 0, ins={1: b"a\0b" * 5000}).errno == errno.EINVAL
    assert call("poll", 1, 2**31 - 1, 0, ins={0: bytes(8)}, outs={0: 8}).errno in (0, errno.EINVAL)
    assert call("select", 1024, 1, 0, 0, 0, ins={1: b"\xff"}, outs={1: 1}).errno == errno.EINVAL
    assert call("ioctl", fd, 0x5401, 1, outs={2: 1}).errno == errno.ENOTTY
    assert call("fcntl", fd, 5, 1, ins={2: b"short"}).errno == errno.EFAULT
    assert call(
        "name_to_handle_at", AT_FDCWD, 1, 1, 1, 0, ins={1: b"/", 2: b"\xff" * 8, 3: bytes(8)}
    ).errno in (
        errno.EINVAL,
        errno.EOVERFLOW,
    )
    assert call("readlink", 1, 1, -1, ins={0: b"/proc/self/exe"}, outs={1: 10}).errno == errno.EINVAL
    assert call("x" * 64).errno == errno.ENOSYS
    assert call("getuid").value == 4242


def test_a_call_under_an_id_that_is_in_flight_ends_the_session(running: Sessions) -> None:
    client = running.open()
    call_id = client.start("geteuid")
    client.send(Syscall(call_id, 1, 1, "geteuid", (0, 0, 0, 0, 0, 0)))
    assert "twice" in client.wait_for(Refused).message
    client.wait_lost()
    running.wait_ended()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SETUID")
def test_credentials_hold_for_waiting_calls_too(running: Sessions, tmp_path: Path) -> None:
    client = running.open()
    secret = tmp_path / "fifo"
    os.mkfifo(secret, 0o600)
    reading, writing = client.pipe()
    waiting = client.start("read", reading, 1, 1, outs={1: 1})
    client.write(writing, b"")
    client.result(waiting)  # a worker is idle now
    assert client.call("setresuid", 65534, 65534, 65534).errno == 0
    assert client.call("openat", AT_FDCWD, 1, os.O_RDWR, ins={1: os.fsencode(secret)}).errno == errno.EACCES
    client.exit()
    running.wait_ended()


def test_json_sessions_work_alike(running: Sessions) -> None:
    client = running.open(hello(codecs=("json",)))
    assert client.welcome.codec == "json"
    assert client.read(client.open("/virtual")) == b"VIRTUAL CONTENTS"
    client.exit()
    running.wait_ended()
