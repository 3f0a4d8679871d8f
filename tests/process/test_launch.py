"""Starting programs: what they are given, and how a refusal is told."""

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stepping.errors import SeccompRefusedError
from stepping.launch import ExecError, Launched, Program, launch
from stepping.listener import Listener
from stepping.seccomp import Rule, Verdict, assemble
from stepping.syscalls import SYSCALLS, Sysno
from tests.gofixtures import ROOT

PROBE_FILTER = assemble([Rule(Sysno(0xF000), Verdict.NOTIFY)], "amd64")
ENV = [b"PATH=/usr/bin:/bin", b"LC_ALL=C"]


def program(*words: str, **changes: object) -> Program:
    base = Program(path=words[0], argv=[word.encode() for word in words], env=ENV)
    return replace(base, **changes)  # type: ignore[arg-type]


def python(source: str, **changes: object) -> Program:
    return program(sys.executable, "-S", "-c", source, **changes)


@contextlib.contextmanager
def launched(wanted: Program) -> Iterator[Launched]:
    started = launch(wanted)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(started.pid, 0)
        os.close(started.pidfd)
        if started.listener is not None:
            started.listener.close()


#: 32 and 33 belong to the C library, which lets nobody change whether they are blocked.
_LIBC_SIGNALS = 1 << 31 | 1 << 32


def output_of(wanted: Program) -> bytes:
    """Run to the end, every notification let go on; return what it wrote to descriptor 1."""
    reader, writer = os.pipe()
    with launched(replace(wanted, stdio=(wanted.stdio[0], writer, 2))) as started:
        os.close(writer)
        let_go(started, reader)
        with os.fdopen(reader, "rb") as file:
            data = file.read()
        assert os.waitpid(started.pid, 0)[1] == 0
    return data


def let_go(started: Launched, until: int) -> None:
    """Answer the program's calls by themselves until *until* is readable or hung up."""
    listener: Listener | None = started.listener
    while listener is not None:
        ready = select.select([listener.fileno(), until], [], [], 30)[0]
        assert ready, "nothing happens"
        if until in ready:
            return
        notification = listener.receive()
        if notification is not None:
            listener.proceed(notification.id)


@pytest.mark.parametrize("bpf", [None, PROBE_FILTER], ids=["plain", "filtered"])
def test_arguments_and_environment_arrive_as_bytes(bpf: bytes | None) -> None:
    wanted = python(
        "import os, sys; print(sys.orig_argv[4:], sorted(os.environb.items()), flush=True)",
        bpf=bpf,
        env=[b"A=1", b"EMPTY=", b"RAW=\xff=x", b"LC_ALL=C.UTF-8"],
    )
    wanted = replace(wanted, argv=[*wanted.argv, b"plain", b"", b"two words"])
    environment = [(b"A", b"1"), (b"EMPTY", b""), (b"LC_ALL", b"C.UTF-8"), (b"RAW", b"\xff=x")]
    assert output_of(wanted).decode() == f"{['plain', '', 'two words']} {environment}\n"


def test_argv0_is_not_the_path() -> None:
    wanted = Program(path="/bin/sh", argv=[b"other name", b"-c", b"echo $0"], env=ENV)
    assert output_of(wanted) == b"other name\n"


def test_without_a_filter_there_is_no_listener() -> None:
    with launched(program("/bin/true")) as started:
        assert started.listener is None
        assert os.waitpid(started.pid, 0)[1] == 0


def test_its_pidfd_is_readable_once_it_has_exited() -> None:
    with launched(program("/bin/sh", "-c", "exit 5", bpf=PROBE_FILTER)) as started:
        assert select.select([started.pidfd], [], [], 20)[0]
        assert os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]) == 5


def test_the_filter_may_take_execve_itself() -> None:
    """Its own start is let pass; what it executes later is notified."""
    rules = [Rule(SYSCALLS[name].numbers["amd64"], Verdict.NOTIFY) for name in ("execve", "dup2", "write")]
    wanted = program("/bin/sh", "-c", "exec /bin/echo done", bpf=assemble(rules, "amd64"))
    assert output_of(wanted) == b"done\n"


def test_a_program_has_the_descriptors_it_would_have_had() -> None:
    """Standard streams and what was left inheritable; nothing of the launcher's, nothing of the listener's."""
    reader, kept = os.pipe()
    os.set_inheritable(kept, True)
    try:
        listing = output_of(program("/bin/ls", "/proc/self/fd", bpf=PROBE_FILTER)).split()
        plain = subprocess.run(
            ["/bin/ls", "/proc/self/fd"], capture_output=True, check=True, close_fds=False, env={}
        ).stdout.split()
    finally:
        os.close(reader)
        os.close(kept)
    assert listing == plain
    assert str(kept).encode() in listing


def test_standard_streams_are_what_was_asked(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"input")
    fds = [
        os.open(tmp_path / "in", os.O_RDONLY),
        os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT),
        os.open(tmp_path / "err", os.O_WRONLY | os.O_CREAT),
    ]
    wanted = program("/bin/sh", "-c", "cat; echo problem >&2", stdio=tuple(fds))
    with launched(wanted) as started:
        assert os.waitpid(started.pid, 0)[1] == 0
    for fd in fds:
        os.close(fd)
    assert (tmp_path / "out").read_bytes() == b"input"
    assert (tmp_path / "err").read_bytes() == b"problem\n"


def test_signals_are_as_a_shell_would_give_them() -> None:
    """Python ignores SIGPIPE and SIGXFSZ; a program must not inherit that, nor a blocked mask."""
    status = output_of(program("/bin/grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")).split()
    names, (blocked_now, ignored) = status[::2], (int(mask, 16) for mask in status[1::2])
    assert names == [b"SigBlk:", b"SigIgn:"]
    assert (blocked_now & ~_LIBC_SIGNALS, ignored & ~_LIBC_SIGNALS) == (0, 0)
    blocked = output_of(program("/bin/grep", "SigBlk", "/proc/self/status", blocked=[signal.SIGUSR1]))
    assert int(blocked.split()[1], 16) & ~_LIBC_SIGNALS == 1 << signal.SIGUSR1 - 1


def test_a_new_session_when_asked() -> None:
    source = "import os; print(os.getsid(0) == os.getpid())"
    assert output_of(python(source)) == b"False\n"
    assert output_of(python(source, new_session=True)) == b"True\n"


def test_without_the_vdso_a_clock_is_read_by_a_call() -> None:
    source = "import time; time.clock_gettime(6); print('read')"
    clock = SYSCALLS["clock_gettime"].numbers["amd64"]
    bpf = assemble([Rule(clock, Verdict.NOTIFY)], "amd64")
    assert calls_of(python(source, bpf=bpf)) == 0
    assert calls_of(python(source, bpf=bpf, without_vdso=True)) > 0


def calls_of(wanted: Program) -> int:
    """Return how many notifications there were until the program ended."""
    count = 0
    with launched(wanted) as started:
        assert started.listener is not None
        while True:
            ready = select.select([started.listener, started.pidfd], [], [], 30)[0]
            assert ready
            if started.listener not in ready:
                return count
            notification = started.listener.receive() if _readable(started.listener) else None
            if notification is None:
                return count
            count += 1
            started.listener.proceed(notification.id)


def _readable(listener: Listener) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


@pytest.mark.parametrize("bpf", [None, PROBE_FILTER], ids=["plain", "filtered"])
def test_what_cannot_be_executed_is_an_error_with_the_reason(tmp_path: Path, bpf: bytes | None) -> None:
    before = children()
    text = tmp_path / "text"
    text.write_text("not a program")
    text.chmod(0o755)
    for path, number in ((text, errno.ENOEXEC), (tmp_path, errno.EACCES), (tmp_path / "none", errno.ENOENT)):
        with pytest.raises(ExecError) as caught:
            launch(program(str(path), bpf=bpf))
        assert (caught.value.path, caught.value.errno) == (str(path), number)
        assert os.strerror(number) in str(caught.value)
    assert children() <= before


def test_a_refused_filter_is_an_error_and_no_process_is_left() -> None:
    """A bad filter makes the kernel refuse it in the child, which has to tell the parent."""
    before = children()
    with pytest.raises(SeccompRefusedError) as caught:
        launch(program("/bin/true", bpf=b"\xff\xff\0\0\0\0\0\0"))
    assert caught.value.errno == errno.EINVAL
    assert children() <= before


def test_a_refusal_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for wanted in (program(str(tmp_path / "none"), bpf=PROBE_FILTER), program("/bin/true", bpf=b"\xff" * 8)):
        with pytest.raises((ExecError, SeccompRefusedError)):
            launch(wanted)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split())


LAUNCHER = """
import os, sys, time
sys.path.insert(0, {root!r})
from stepping.launch import Program, launch
from stepping.seccomp import Rule, Verdict, assemble
bpf = assemble([Rule(0xF000, Verdict.NOTIFY)], "amd64")
started = launch(Program("/bin/cat", [b"cat"], [], bpf))
print(started.pid, flush=True)
time.sleep(600)
"""


def test_the_program_dies_with_its_launcher() -> None:
    """Whoever is served must not go on alone."""
    command = [sys.executable, "-c", LAUNCHER.format(root=str(ROOT))]
    stdin, keep = os.pipe()
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        pidfd = os.pidfd_open(pid)
        assert select.select([pidfd], [], [], 0)[0] == []
        launcher.kill()
        assert select.select([pidfd], [], [], 20)[0] == [pidfd]
    for fd in (pidfd, stdin, keep):
        os.close(fd)


def test_streams_that_change_places(tmp_path: Path) -> None:
    """(0, 2, 1): standard output goes where standard error went, and the other way round."""
    launcher = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from stepping.launch import Program, launch\n"
        "words = [b'sh', b'-c', b'echo out; echo err >&2']\n"
        "os.waitpid(launch(Program('/bin/sh', words, [], stdio=(0, 2, 1))).pid, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", launcher], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("err\n", "out\n")
