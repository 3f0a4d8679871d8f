"""Tracees of real programs: attaching, stopping the world, signals and group-stops passed on, refusals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stepping import ptrace_api
from stepping.errors import PtraceRefusedError, TraceeGoneError
from stepping.ptrace_api import FOLLOW_ALL, FOLLOW_THREADS, Option
from stepping.stops import SyscallEntry, SyscallExit, decode_siginfo, decode_syscall_info
from stepping.tracee import Resume, Tracee, read_pid, read_state, read_tids
from stepping.tracee_group import TraceeGroup
from stepping.wait_status import Event, WaitKind
from tests.process.tracees import THREADS, ask, python


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_stop_world_and_go_on() -> None:
    with python(THREADS.format(count=8)) as child:
        group = TraceeGroup.attach(child.pid)
        assert len(group) == 9
        for _ in range(20):
            group.stop_all()
            assert {tracee.tid for tracee in group} == set(read_tids(child.pid))
            assert all(read_state(tid) == "t" for tid in read_tids(child.pid))
            pcs = [tracee.read_registers().pc for tracee in group]
            assert pcs == [tracee.read_registers().pc for tracee in group]
            group.resume_all()
        group.detach_all()
        assert len(group) == 0
        assert ask(child, "still here") == "still here"
        assert "TracerPid:\t0\n" in Path(f"/proc/{child.pid}/status").read_text()


def test_stopping_the_world_takes_milliseconds() -> None:
    with python(THREADS.format(count=8)) as child:
        group = TraceeGroup.attach(child.pid)
        took = []
        for _ in range(15):
            start = time.perf_counter()
            group.stop_all()
            took.append(time.perf_counter() - start)
            group.resume_all()
        group.detach_all()
    assert sorted(took)[len(took) // 2] < 0.005


def test_new_threads_are_followed() -> None:
    source = """
import sys, threading
print("ready", flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=sys.stdin.readline) for _ in range(20)]
for thread in threads: thread.start()
print("started", flush=True)
for thread in threads: thread.join()
sys.exit(7)
"""
    with python(source) as child:
        group = TraceeGroup.attach(child.pid)
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        created = set()
        while len(created) < 20:
            report = group.wait()
            assert report is not None
            tracee, status = report
            if status.event is Event.CLONE:
                created.add(ptrace_api.geteventmsg(tracee.tid))
            tracee.resume()
        assert created | {child.pid} == set(read_tids(child.pid))
        group.stop_all()
        assert {tracee.tid for tracee in group} == created | {child.pid}
        group.resume_all()
        child.stdin.close()
        while group.exit is None:
            report = group.wait()
            assert report is not None
            if report[1].is_stop:
                report[0].resume()
        assert (group.exit.kind, group.exit.exit_status) == (WaitKind.EXITED, 7)
        assert len(group) == 0
        with pytest.raises(TraceeGoneError):
            group.wait()
        child.returncode = 7  # its report was taken here, there is none left for the child object


def test_signals_are_delivered_with_their_sender() -> None:
    source = """
import os, signal
signal.signal(signal.SIGUSR1, lambda signo, frame: os.write(1, b"handled %d\\n" % signo))
print("ready", flush=True)
while True: signal.pause()
"""
    with python(source) as child:
        group = TraceeGroup.attach(child.pid)
        os.kill(child.pid, signal.SIGUSR1)
        report = group.wait()
        assert report is not None
        tracee, status = report
        assert (status.kind, status.signo) == (WaitKind.SIGNAL_DELIVERY, signal.SIGUSR1)
        info = decode_siginfo(ptrace_api.getsiginfo(tracee.tid))
        assert (info.signo, info.pid, info.uid, info.code) == (signal.SIGUSR1, os.getpid(), os.getuid(), 0)
        tracee.resume()
        assert child.stdout is not None
        assert child.stdout.readline() == "handled 10\n"

        os.kill(child.pid, signal.SIGUSR1)
        report = group.wait()
        assert report is not None
        group.detach_all()  # in the signal-delivery-stop: the signal goes with it
        assert child.stdout.readline() == "handled 10\n"


def test_a_dropped_signal_is_not_seen() -> None:
    with python(THREADS.format(count=1)) as child:
        group = TraceeGroup.attach(child.pid)
        os.kill(child.pid, signal.SIGTERM)
        report = group.wait()
        assert report is not None
        report[0].resume(deliver=False)
        group.detach_all()
        assert ask(child, "alive") == "alive"


def test_group_stop_is_honoured() -> None:
    with python(THREADS.format(count=3)) as child:
        group = TraceeGroup.attach(child.pid)
        os.kill(child.pid, signal.SIGSTOP)  # SIGTSTP stops nobody in an orphaned process group
        stopped = set()
        while len(stopped) < 4:
            report = group.wait()
            assert report is not None
            tracee, status = report
            if status.kind is WaitKind.GROUP:
                assert status.signo == signal.SIGSTOP
                stopped.add(tracee.tid)
            tracee.resume()
        assert group.wait(block=False) is None
        os.kill(child.pid, signal.SIGCONT)
        continued = set()
        while len(continued) < 4:
            report = group.wait()
            assert report is not None
            tracee, status = report
            if status.event is Event.STOP:
                continued.add(tracee.tid)
            tracee.resume()
        group.detach_all()
        assert ask(child, "on again") == "on again"


def test_detach_leaves_a_stopped_program_stopped() -> None:
    with python(THREADS.format(count=3)) as child:
        os.kill(child.pid, signal.SIGSTOP)
        until(lambda: all(read_state(tid) == "T" for tid in read_tids(child.pid)))
        group = TraceeGroup.attach(child.pid)
        group.stop_all()
        group.detach_all()
        until(lambda: all(read_state(tid) == "T" for tid in read_tids(child.pid)))
        os.kill(child.pid, signal.SIGCONT)
        assert ask(child, "on again") == "on again"


def test_syscall_stops_name_the_call() -> None:
    with python(THREADS.format(count=0)) as child:
        tracee = Tracee.seize(child.pid, child.pid, FOLLOW_THREADS)
        tracee.interrupt()
        tracee.wait()
        assert child.stdin is not None
        child.stdin.write("hello\n")
        child.stdin.flush()
        entries: list[SyscallEntry] = []
        results: list[int] = []
        while not results:
            tracee.resume(Resume.SYSCALL)
            status = tracee.wait()
            assert status is not None
            if status.kind is not WaitKind.SYSCALL:
                continue
            info = decode_syscall_info(ptrace_api.get_syscall_info(child.pid))
            if isinstance(info, SyscallEntry):
                entries.append(info)
            elif isinstance(info, SyscallExit) and entries and entries[-1].nr == 1:
                results.append(info.value)
        assert entries[-1].arch == "amd64"
        assert entries[-1].args[0] == 1
        assert results == [len("hello\n")]
        tracee.detach()


def test_single_steps_move_on() -> None:
    with python(THREADS.format(count=1)) as child:
        group = TraceeGroup.attach(child.pid)
        group.stop_all()
        tracee = max(group, key=lambda one: one.tid)
        pcs = set()
        for _ in range(50):
            tracee.resume(Resume.STEP, deliver=False)
            status = tracee.wait()
            assert status is not None
            assert (status.kind, status.signo) == (WaitKind.SIGNAL_DELIVERY, signal.SIGTRAP)
            pcs.add(tracee.read_registers().pc)
        assert len(pcs) > 10
        tracee.resume(deliver=False)
        group.detach_all()
        assert ask(child, "unharmed") == "unharmed"


def test_a_tracee_that_is_killed() -> None:
    with python(THREADS.format(count=2)) as child:
        group = TraceeGroup.attach(child.pid)
        group.stop_all()
        os.kill(child.pid, signal.SIGKILL)
        until(lambda: read_state(child.pid) in ("Z", "X"))
        for tracee in group:
            with pytest.raises(TraceeGoneError) as caught:
                tracee.read_registers()
            assert caught.value.tid == tracee.tid
        while group.exit is None:
            group.wait()
        assert (group.exit.kind, group.exit.signo) == (WaitKind.KILLED, signal.SIGKILL)
        child.returncode = -signal.SIGKILL


def test_exitkill_ends_a_program_with_its_tracer() -> None:
    tracer = """
import os, sys
sys.path.insert(0, {path!r})
from stepping.tracee import Tracee
from stepping.ptrace_api import FOLLOW_ALL, Option
Tracee.seize({pid}, {pid}, FOLLOW_ALL | Option.EXITKILL)
os._exit(0)
"""
    with python(THREADS.format(count=1)) as child:
        subprocess.run([sys.executable, "-c", tracer.format(path=os.getcwd(), pid=child.pid)], check=True)
        assert child.wait(20) == -signal.SIGKILL


def test_refusals_say_why() -> None:
    with python(THREADS.format(count=0)) as child:
        other = """
import sys
sys.path.insert(0, {path!r})
from stepping.ptrace_api import seize, Option
seize({pid}, Option(0))
print("seized", flush=True)
sys.stdin.readline()
"""
        command = [sys.executable, "-c", other.format(path=os.getcwd(), pid=child.pid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == "seized\n"
            with pytest.raises(PtraceRefusedError, match=rf"already traced by process {tracer.pid} \(python"):
                TraceeGroup.attach(child.pid)
            tracer.kill()
    with pytest.raises(PtraceRefusedError, match="this process itself"):
        TraceeGroup.attach(os.getpid())
    with pytest.raises(PtraceRefusedError, match="kernel thread"):
        TraceeGroup.attach(2)
    with pytest.raises(TraceeGoneError):
        TraceeGroup.attach((1 << 22) + 5)


def test_a_zombie_is_refused() -> None:
    child = subprocess.Popen(["true"])
    until(lambda: read_state(child.pid) == "Z")
    with pytest.raises((PtraceRefusedError, TraceeGoneError)):
        TraceeGroup.attach(child.pid)
    child.wait()


def test_another_users_process_needs_a_capability() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with python(THREADS.format(count=0)) as child:
        other = """
import os, sys
sys.path.insert(0, {path!r})
from stepping.tracee_group import TraceeGroup
from stepping.errors import PtraceRefusedError
os.setgid(65534); os.setuid(65534)
try:
    TraceeGroup.attach({pid})
except PtraceRefusedError as error:
    print(error)
"""
        command = [sys.executable, "-c", other.format(path=os.getcwd(), pid=child.pid)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert f"cannot trace process {child.pid}: it belongs to user 0; CAP_SYS_PTRACE is needed" in said


def test_children_are_followed_when_asked() -> None:
    source = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
pid = os.fork()
if pid == 0:
    os.execv("/bin/true", ["true"])
os.waitpid(pid, 0)
"""
    with python(source) as child:
        group = TraceeGroup.attach(child.pid, FOLLOW_ALL | Option.EXIT)
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        events: list[tuple[bool, Event | None]] = []
        while group.exit is None:
            report = group.wait()
            assert report is not None
            tracee, status = report
            if status.kind is WaitKind.EVENT:
                events.append((tracee.pid == child.pid, status.event))
            if status.is_stop:
                tracee.resume()
        assert (True, Event.FORK) in events
        assert (False, Event.EXEC) in events
        assert (False, Event.EXIT) in events
        child.returncode = 0


def test_reading_what_is_not_there() -> None:
    for read in (read_pid, read_tids):
        with pytest.raises(TraceeGoneError):
            read((1 << 22) + 5)
    assert read_state((1 << 22) + 5) == ""
    assert read_pid(os.getpid()) == os.getpid()
