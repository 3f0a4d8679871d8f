"""Breakpoints in a Go program's functions: hit by many threads, stepped over, taken away without a trace."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from goabi.binary import GoBinary
from stepping import ptrace_api
from stepping.breakpoints import Breakpoints
from stepping.errors import MemoryFaultError, SteppingError, TraceeGoneError
from stepping.registers import AMD64
from stepping.tracee_group import TraceeGroup
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import WaitKind
from tests.gofixtures import build


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [build("ring_calls"), "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("ready ")
    yield child
    child.kill()
    # Threads that a failed test left traced must be waited for here, or the child would never be reported.
    with contextlib.suppress(TraceeGoneError):
        while True:
            ptrace_api.wait_any()
    child.returncode = -signal.SIGKILL
    child.communicate()


def send(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def entry_of(name: str) -> int:
    with GoBinary.open(build("ring_calls")) as binary:
        function = binary.functions.find_function_by_name(name)
        assert function is not None
        return function.entry


def test_hits_are_counted_and_the_program_goes_on(program: subprocess.Popen[str]) -> None:
    address = entry_of("os.(*File).WriteAt")
    group = TraceeGroup.attach(program.pid)
    memory = TraceeMemory(program.pid)
    original = memory.read(address, 16)
    breakpoints = Breakpoints(memory, AMD64)
    group.stop_all()
    breakpoints.insert(address)
    breakpoints.insert(address)
    assert len(breakpoints) == 1
    assert address in breakpoints
    assert memory.read(address, 1) == b"\xcc"
    group.resume_all()
    send(program, "work 25")
    hits = 0
    while hits < 100:
        report = group.wait()
        assert report is not None
        tracee, status = report
        if breakpoints.take_hit(tracee) == address:
            hits += 1
            assert tracee.read_registers().pc == address
            group.stop_all()
            others = [one for one in group if one is not tracee and breakpoints.take_hit(one) == address]
            for one in [tracee, *others]:
                breakpoints.step_over(one)
                assert one.read_registers().pc != address
            hits += len(others)
            for one in group:
                trap = one.status is not None and one.status.signo == signal.SIGTRAP
                one.resume(deliver=not trap)
        elif status.is_stop:
            tracee.resume()
    # A function whose stack must grow is entered twice, so there may be more hits than calls.
    group.stop_all()
    late = [one for one in group if breakpoints.take_hit(one) == address]
    breakpoints.remove_all()
    for one in late:
        one.resume(deliver=False)
    assert memory.read(address, 16) == original
    assert len(breakpoints) == 0
    group.detach_all()
    assert program.stdout is not None
    assert program.stdout.readline().startswith("done ")
    memory.close()


def test_other_stops_are_no_hits(program: subprocess.Popen[str]) -> None:
    group = TraceeGroup.attach(program.pid)
    memory = TraceeMemory(program.pid)
    breakpoints = Breakpoints(memory, AMD64)
    group.stop_all()
    for tracee in group:
        assert breakpoints.take_hit(tracee) is None
    group.resume_all()
    os.kill(program.pid, signal.SIGTRAP)
    while True:
        report = group.wait()
        assert report is not None
        tracee, status = report
        assert breakpoints.take_hit(tracee) is None
        if status.kind is WaitKind.SIGNAL_DELIVERY and status.signo == signal.SIGTRAP:
            break
        tracee.resume()
    tracee.resume(deliver=False)
    group.detach_all()
    with pytest.raises(MemoryFaultError):
        breakpoints.insert(8)
    memory.close()


def test_a_step_that_faults(program: subprocess.Popen[str]) -> None:
    group = TraceeGroup.attach(program.pid)
    memory = TraceeMemory(program.pid)
    breakpoints = Breakpoints(memory, AMD64)
    group.stop_all()
    tracee = next(iter(group))
    before = tracee.read_registers()
    elsewhere = before.copy()
    elsewhere.pc = 8
    elsewhere["orig_rax"] = (1 << 64) - 1
    tracee.write_registers(elsewhere)
    with pytest.raises(SteppingError, match="did not step from 0x8: signal-delivery-stop SIGSEGV"):
        breakpoints.step_over(tracee)
    tracee.write_registers(before)
    tracee.resume(deliver=False)
    group.detach_all()
    memory.close()
    send(program, "work 1")
    assert program.stdout is not None
    assert program.stdout.readline().startswith("done ")
