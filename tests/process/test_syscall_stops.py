"""Tracing by stops, on real programs: calls, results, buffers, threads, children, signals, ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stepping.errors import SteppingError
from stepping.launch import ExecError, Program
from stepping.stops import decode_siginfo
from stepping.syscall_stops import (
    SyscallTracer,
    Traced,
    TracedCall,
    TracedExit,
    TracedSignal,
    TracedStart,
    TracedStop,
    rows_named,
)
from stepping.syscalls.model import Syscall
from stepping.syscalls.table import SYSCALLS
from stepping.tracee_launch import tracing_filter
from stepping.wait_status import WaitKind, WaitStatus
from tests.gofixtures import build
from tests.process.tracees import python

ALL = [row for row in SYSCALLS.values() if "amd64" in row.numbers]
FILES = {
    "execve",
    "openat",
    "read",
    "write",
    "close",
    "pread64",
    "pwrite64",
    "exit_group",
    "dup2",
    "newfstatat",
}


def rows(names: set[str]) -> list[Syscall]:
    return rows_named(names, ALL)


def program(argv: Sequence[str], wanted: list[Syscall], *, filtered: bool, stdout: int = 1) -> Program:
    path = shutil.which(argv[0])
    assert path is not None
    bpf = tracing_filter(wanted, {}, "amd64") if filtered else None
    env = [name + b"=" + value for name, value in os.environb.items()]
    return Program(path, [os.fsencode(word) for word in argv], env, bpf, (0, stdout, 2))


def trace(
    argv: Sequence[str], names: set[str], *, filtered: bool = True, stdout: int = 1
) -> tuple[WaitStatus, list[Traced]]:
    events: list[Traced] = []
    wanted = rows(names)
    tracer = SyscallTracer.launch(
        program(argv, wanted, filtered=filtered, stdout=stdout), wanted, events.append, arch="amd64"
    )
    return tracer.run(), events


def calls(events: Sequence[Traced], name: str = "") -> list[TracedCall]:
    return [e for e in events if isinstance(e, TracedCall) and name in ("", e.row.name)]


@contextlib.contextmanager
def sink_fd() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("filtered", [True, False])
def test_what_cat_does(tmp_path: Path, filtered: bool) -> None:
    file = tmp_path / "a file"
    file.write_bytes(b"contents\n")
    with sink_fd() as null:
        status, events = trace(["cat", str(file), "/nowhere"], FILES, filtered=filtered, stdout=null)
    assert (status.kind, status.exit_status) == (WaitKind.EXITED, 1)
    first = calls(events)[0]
    assert first.row.name == "execve"
    assert first.value == 0
    assert first.ins[0] == os.fsencode(str(shutil.which("cat")))
    assert first.ins[1] == b"\0".join([b"cat", os.fsencode(file), b"/nowhere"])
    opened = next(call for call in calls(events, "openat") if call.ins[1] == os.fsencode(file))
    assert opened.value is not None
    after = calls(events)[calls(events).index(opened) :]
    reads = [call for call in calls(after, "read") if call.args[0] == opened.value]
    assert [(call.value, call.outs.get(1, b"")) for call in reads[:2]] == [(9, b"contents\n"), (0, b"")]
    written = [call for call in calls(events, "write") if call.args[0] == 1]
    assert [(call.value, call.ins[1]) for call in written] == [(9, b"contents\n")]
    missing = next(call for call in calls(events, "openat") if call.ins[1] == b"/nowhere")
    assert missing.value == -2
    last = calls(events)[-1]
    assert (last.row.name, last.value, last.args[0]) == ("exit_group", None, 1)
    assert all(call.duration_ns > 0 for call in calls(events))
    assert all(
        call.started_ns <= later.started_ns
        for call, later in zip(calls(events), calls(events)[1:], strict=False)
    )


def test_the_same_calls_as_strace(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "log"
    argv = [sys.executable, "-S", "-c", "import os; os.listdir('/'); open('/etc/passwd').read()"]
    subprocess.run([strace, "-o", log, *argv], check=True)
    names = [line.partition("(")[0] for line in log.read_text().splitlines() if "(" in line]
    names = [name for name in names if name in SYSCALLS]
    _, events = trace(argv, {row.name for row in ALL})
    # The heap's growth depends on where the kernel puts things.
    varying = {"brk", "mmap", "munmap"}
    ours = [call.row.name for call in calls(events)]
    assert [name for name in ours if name not in varying] == [name for name in names if name not in varying]


def test_children_threads_and_their_ends() -> None:
    script = "/bin/true; (exit 5); kill -9 $$"
    status, events = trace(["sh", "-c", script], FILES)
    assert (status.kind, status.signo) == (WaitKind.KILLED, signal.SIGKILL)
    ends = {e.pid: e.status for e in events if isinstance(e, TracedExit)}
    assert sorted(one.exit_status for one in ends.values() if one.kind is WaitKind.EXITED) == [0, 5]
    execs = [call.ins[0] for call in calls(events, "execve") if call.value == 0]
    assert b"/bin/true" in execs
    killed = [e for e in events if isinstance(e, TracedSignal) and e.signo == signal.SIGCHLD]
    assert len(killed) == 2
    started = [e for e in events if isinstance(e, TracedStart)]
    assert {e.pid for e in started} == set(ends) - {events[0].pid}


@pytest.mark.parametrize("filtered", [True, False])
def test_an_exec_by_another_thread_than_the_first(filtered: bool) -> None:
    source = """
import os, threading, time
threads = [threading.Thread(target=time.sleep, args=(100,), daemon=True) for _ in range(3)]
for thread in threads: thread.start()
threading.Thread(target=os.execv, args=("/bin/sh", ["sh", "-c", "exit 9"])).start()
time.sleep(100)
"""
    status, events = trace(
        [sys.executable, "-S", "-c", source], FILES | {"clock_nanosleep"}, filtered=filtered
    )
    assert (status.kind, status.exit_status) == (WaitKind.EXITED, 9)
    assert [call.value for call in calls(events, "execve") if call.ins[0] == b"/bin/sh"] == [0]


def test_signals_are_reported_and_handled() -> None:
    source = """
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: os._exit(4))
os.kill(os.getpid(), signal.SIGUSR1)
while True: pass
"""
    status, events = trace([sys.executable, "-S", "-c", source], {"kill"})
    assert (status.kind, status.exit_status) == (WaitKind.EXITED, 4)
    (signalled,) = [e for e in events if isinstance(e, TracedSignal)]
    (kill,) = calls(events)
    info = decode_siginfo(signalled.siginfo)
    assert (signalled.signo, info.signo, info.pid) == (signal.SIGUSR1, signal.SIGUSR1, kill.args[0])
    assert kill.value == 0


def test_python_ignores_sigpipe_but_programs_do_not_inherit_that() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    status, _ = trace(["yes"], {"write"}, stdout=writer)
    os.close(writer)
    assert (status.kind, status.signo) == (WaitKind.KILLED, signal.SIGPIPE)


def test_a_stopped_program_stays_stopped_until_continued() -> None:
    script = "kill -STOP $$; exit 6"
    events: list[Traced] = []
    wanted = rows(FILES)
    tracer = SyscallTracer.launch(
        program(["sh", "-c", script], wanted, filtered=True), wanted, events.append, arch="amd64"
    )
    while not any(isinstance(e, TracedStop) for e in events):
        tracer.step()
    state = Path(f"/proc/{tracer.group.pid}/stat").read_text().rpartition(") ")[2][0]
    assert state in "Tt"
    os.kill(tracer.group.pid, signal.SIGCONT)
    assert tracer.run().exit_status == 6


@pytest.mark.parametrize("filtered", [True, False])
def test_goroutines(filtered: bool) -> None:
    path = build("ring_calls")
    reader, writer = os.pipe()
    os.write(writer, b"work 50\nquit\n")
    os.close(writer)
    stdin = os.dup(0)
    try:
        os.dup2(reader, 0)
        with sink_fd() as null:
            status, events = trace([str(path), "8"], FILES, filtered=filtered, stdout=null)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(reader)
    assert (status.kind, status.exit_status) == (WaitKind.EXITED, 3)
    written = [call for call in calls(events, "pwrite64")]
    assert len(written) == 8 * 50
    assert {call.ins[1] for call in written} == {b"%03d:%04d" % (w, i) for w in range(8) for i in range(50)}
    assert {call.outs[1] for call in calls(events, "pread64") if call.value == 8} == {
        call.ins[1] for call in written
    }
    missing = [call for call in calls(events, "openat") if call.value == -2 and b"worker" in call.ins[1]]
    assert len(missing) == 8 * 50


def test_attach_and_detach() -> None:
    source = """
import os, sys
print("ready", flush=True)
for line in sys.stdin:
    os.write(1, line.encode())
"""
    with python(source) as child:
        events: list[Traced] = []
        tracer = SyscallTracer.attach(child.pid, rows(FILES), events.append, arch="amd64")
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("one\n")
        child.stdin.flush()
        while not calls(events, "write"):
            tracer.step()
        assert calls(events, "write")[0].ins[1] == b"one\n"
        tracer.detach()
        assert child.stdout.readline() == "one\n"
        child.stdin.write("two\n")
        child.stdin.flush()
        assert child.stdout.readline() == "two\n"
        assert "TracerPid:\t0\n" in Path(f"/proc/{child.pid}/status").read_text()


def test_bad_pointers_reach_the_kernel() -> None:
    source = "import ctypes; libc = ctypes.CDLL(None); libc.open(ctypes.c_void_p(8), 0); libc.write(1, 8, 5)"
    status, events = trace([sys.executable, "-S", "-c", source], {"openat", "write"})
    assert status.exit_status == 0
    assert [call.value for call in calls(events, "openat") if call.args[1] == 8] == [-14]
    assert [(call.value, call.ins) for call in calls(events, "write")] == [(-14, {})]


def test_what_cannot_be_executed(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x7fELF")
    bad.chmod(0o755)
    wanted = rows(FILES)
    for filtered in (True, False):
        what = program(["cat"], wanted, filtered=filtered)
        what = Program(str(bad), what.argv, what.env, what.bpf)
        with pytest.raises(ExecError, match="Exec format error"):
            SyscallTracer.launch(what, wanted, lambda event: None, arch="amd64")


@pytest.mark.parametrize("filtered", [True, False])
def test_children_of_another_abi_are_let_pass(tmp_path: Path, filtered: bool) -> None:
    source = tmp_path / "hello.c"
    source.write_text(
        'void _start(void) { __asm__("int $0x80" :: "a"(4), "b"(1), "c"("hi"), "d"(2) : "memory");'
        ' __asm__("int $0x80" :: "a"(1), "b"(6)); }'
    )
    command = ["gcc", "-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-o", tmp_path / "hello", source]
    if shutil.which("gcc") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("gcc cannot build 32-bit programs here")
    with sink_fd() as null:
        status, events = trace(
            ["sh", "-c", f"{tmp_path}/hello; exit $?"], FILES, filtered=filtered, stdout=null
        )
    assert status.exit_status == 6
    assert any(call.ins[0] == os.fsencode(tmp_path / "hello") for call in calls(events, "execve"))


def test_names_are_checked() -> None:
    assert [row.name for row in rows({"write", "read"})] == ["read", "write"]
    with pytest.raises(SteppingError, match="no such syscall: opne, raed"):
        rows({"raed", "opne", "read"})
