"""`ptserver blocks`, and whether what it says is what the processor does."""

import contextlib
import json
import mmap
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goabi.binary import GoBinary
from ptserver.program_blocks import open_blocks
from stepping import ptrace_api
from stepping.block_cache import Block
from stepping.breakpoints import Breakpoints
from stepping.errors import TraceeGoneError
from stepping.executor import CountUsedUp, LeftRange, Signalled, Until
from stepping.instructions import Flow
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_THREADS
from stepping.registers import AMD64
from stepping.remote_syscall import remote_syscall
from stepping.singlestep import StepExecutor
from stepping.tracee_group import TraceeGroup
from stepping.tracee_launch import launch_stopped
from stepping.tracee_memory import TraceeMemory
from tests.gofixtures import ROOT, build
from tests.process.commands import ptserver, refusal

#: Addresses that lead nowhere: what registers hold that no local block may follow.
NOWHERE = 0x0000_5150_0000_0000
ROOM_BYTES = 0x40000
USED_BYTES = 0x4000


class Steppable:
    """A stopped Go program, whose blocks can be executed one by one with registers of the test's choice."""

    def __init__(self) -> None:
        self.binary = GoBinary.open(build("goroutines"))
        self.blocks = open_blocks(self.binary, cached=False)
        functions = self.binary.functions
        self.local: list[Block] = []
        for function in functions.iter_functions():
            if re.fullmatch(r"runtime\.call\d+", function.name):
                continue  # frames of up to a gigabyte
            found = self.blocks.local_blocks(function.entry, function.end)
            self.local += [block for run in found for block in run.blocks]
        self.group: TraceeGroup = launch_stopped(Program(self.binary.path, [b"x"], []), FOLLOW_THREADS)
        self.memory = TraceeMemory(self.group.pid)
        leader = self.group.leader
        assert leader is not None
        self.tracee = leader
        self.stepper = StepExecutor(self.group, Breakpoints(self.memory, AMD64))
        self.registers = leader.read_registers()
        with remote_syscall(leader) as sys:
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self.stack = sys.call("mmap", 0, ROOM_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, private, -1, 0)

    def prepare(self, block: Block, seed: int) -> None:
        self.tracee.drop_signal()
        sp = self.stack + ROOM_BYTES // 2
        self.memory.write(sp - USED_BYTES, bytes(2 * USED_BYTES))
        registers = self.registers.copy()
        for index, name in enumerate(AMD64.names):
            if name.startswith("r") and name not in ("rip", "rsp"):
                registers[name] = NOWHERE + (seed * (index + 1) & 0xFFFF_FFF8)
        registers.pc, registers.sp = block.start, sp
        registers["fs_base"] = self.stack + ROOM_BYTES // 4  # storage of the thread's own
        registers["orig_rax"] = (1 << 64) - 1
        self.tracee.write_registers(registers)

    def close(self) -> None:
        os.kill(self.group.pid, signal.SIGKILL)
        with contextlib.suppress(TraceeGoneError):
            while True:
                ptrace_api.wait_any()
        self.memory.close()
        self.binary.close()


@pytest.fixture(scope="module")
def steppable() -> Iterator[Steppable]:
    one = Steppable()
    yield one
    one.close()


@settings(max_examples=150)
@given(data=st.data())
def test_local_blocks_touch_nothing_else(steppable: Steppable, data: st.DataObject) -> None:
    """Every register leads nowhere, so whatever a local block touched by way of one would fault."""
    block = data.draw(st.sampled_from(steppable.local))
    steppable.prepare(block, data.draw(st.integers(1, 1 << 32)))
    until = Until(within=(block.start, block.end), instructions=block.instructions)
    result = steppable.stepper.run(steppable.tracee, until)
    if isinstance(result, Signalled) and result.signo == signal.SIGFPE:
        steppable.tracee.drop_signal()  # a division by what the registers happened to hold
        return
    if block.flow is Flow.CALL or block.flow is Flow.JUMP:
        assert result in (LeftRange(block.target), CountUsedUp(block.target))
    elif block.flow is Flow.BRANCH:
        pcs = {block.target, block.end}
        assert isinstance(result, LeftRange | CountUsedUp)
        assert result.pc in pcs
    elif block.flow is Flow.NEXT:
        assert result == LeftRange(block.end)
    else:
        assert isinstance(result, LeftRange), result


def test_functions_and_blocks_are_listed(tmp_path: Path) -> None:
    program = build("hello")
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    status, out, err = ptserver("blocks", program, env=env)
    assert (status, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.endswith("  main.main")]
    assert " blocks, " in line
    assert len(list((tmp_path / "ptserver/blocks").iterdir())) == 1
    status, shown, err = ptserver("blocks", program, "main.main", env=env)
    assert (status, err) == (0, "")
    first, source, *blocks = shown.rstrip("\n").splitlines()
    assert first == line
    assert source.strip().endswith("fixtures/hello/main.go:9")
    assert all(" instructions " in one for one in blocks)
    assert any("call" in one and "local" in one for one in blocks)


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_json(tmp_path: Path, arch: str) -> None:
    program = build("hello", arch=arch)
    status, out, err = ptserver("blocks", "--json", program, "main.*", env={"XDG_CACHE_HOME": str(tmp_path)})
    assert (status, err) == (0, "")
    schema = json.loads((ROOT / "docs/blocks.schema.json").read_text())
    rows = [json.loads(line) for line in out.splitlines()]
    for row in rows:
        jsonschema.validate(row, schema)
    (main,) = [row for row in rows if row["name"] == "main.main"]
    assert main["block_count"] == len(main["blocks"])
    at = int(main["start"], 16)
    for block in main["blocks"]:
        assert int(block["start"], 16) == at  # they follow each other without gaps
        at += block["size"]
    assert at <= int(main["start"], 16) + main["size"]


def test_bad_input(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    program = build("hello")
    assert refusal("blocks", program, "no.such", env=env) == (66, f"{program} has no function no.such")
    status, line = refusal("blocks", "/bin/ls", env=env)
    assert status == 126
    assert "not a Go program" in line
