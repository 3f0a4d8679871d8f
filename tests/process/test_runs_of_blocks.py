"""A thread that is stepped by runs of blocks goes where it goes instruction by instruction, and passes no exit."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from goabi.binary import GoBinary
from stepping.block_steps import BlockSteps
from stepping.blocks import Decoder
from stepping.breakpoints import Breakpoints
from stepping.decoded_code import DecodedCode
from stepping.executor import CountUsedUp, Reached, Until
from stepping.launch import Program
from stepping.native import NativeExecutor
from stepping.ptrace_api import FOLLOW_ALL, STEP_STATUS, wait
from stepping.singlestep import StepExecutor
from stepping.stop_results import read_code
from stepping.tracee import Tracee
from stepping.tracee_group import TraceeGroup
from stepping.tracee_launch import launch_stopped
from stepping.tracee_memory import TraceeMemory
from tests.gofixtures import build
from tests.process.tracees import end

STEPS = 4000


@contextmanager
def at_function(name: str) -> Iterator[tuple[TraceeGroup, Tracee, Breakpoints]]:
    """A hello at the beginning of a function that it calls while it has one thread."""
    path = build("hello")
    with GoBinary.open(path) as binary:
        (entry,) = [each.entry for each in binary.functions.iter_functions() if each.name == name]
    group = launch_stopped(Program(str(path), [b"hello"], []), FOLLOW_ALL)
    memory = TraceeMemory(group.pid)
    leader = group.leader
    assert leader is not None
    breakpoints = Breakpoints(memory, leader.layout)
    try:
        result = NativeExecutor(group, breakpoints).run(leader, Until(frozenset({entry})))
        assert result == Reached(entry)
        yield group, leader, breakpoints
    finally:
        end(group)
        memory.close()


@pytest.mark.parametrize("function", ["runtime.moduledataverify1", "runtime.mallocinit"])
def test_runs_lead_where_single_steps_lead(function: str) -> None:
    passed: list[int] = []
    with at_function(function) as (group, leader, breakpoints):
        stepper = StepExecutor(group, breakpoints, lambda tracee, pc: passed.append(pc))
        result = stepper.run(leader, Until(instructions=STEPS, syscalls=True))
        pc = leader.read_registers().pc
        assert isinstance(result, CountUsedUp) or len(passed) > STEPS // 10
        passed.append(pc)
    stops, at = 0, 0
    with at_function(function) as (group, leader, breakpoints):
        code = DecodedCode(Decoder("amd64"), lambda at, size: read_code(breakpoints, at, size))
        steps = BlockSteps(code, lambda tid: wait(tid) or 0)
        pc = passed[0]
        while at < len(passed) - 200:
            turn = steps.run(leader.tid, pc, leader.layout, 1)
            assert turn is not None
            least, status = turn
            assert status == STEP_STATUS
            pc = leader.read_registers().pc
            try:
                found = passed.index(pc, at + 1)
            except ValueError:
                pytest.fail(f"stop {stops}: {pc:#x} was not passed after {passed[at]:#x}")
            assert least <= found - at <= 200
            at, stops = found, stops + 1
    assert stops < at / 4
