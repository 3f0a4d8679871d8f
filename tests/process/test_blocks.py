"""`ptserver blocks`, and whether what it says is what the processor does."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goabi.binary import GoBinary
from ptserver.blocks.of_program import open_blocks
from stepping.blocks import Decoder
from stepping.executor import CountUsedUp, LeftRange, Signalled, Until
from stepping.instructions import Flow
from stepping.launch import Program
from stepping.operands import find_accesses
from stepping.ptrace_api import FOLLOW_ALL
from stepping.registers import Registers
from stepping.stepped_run import SteppedRun
from stepping.tracee_launch import launch_stopped
from tests.gofixtures import ROOT, build
from tests.process.commands import ptserver, refusal
from tests.process.steppable import Steppable
from tests.process.tracees import end


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


class Observed:
    """What a program touches while it runs: by blocks that are local with *remote* out of reach, and by others."""

    def __init__(self, path: Path, remote: str, most: int) -> None:
        self._binary = GoBinary.open(path)
        self._blocks = open_blocks(self._binary, cached=False)
        symbol = self._binary.elf.find_symbol(remote)
        assert symbol is not None
        self.remote = range(symbol.addr, symbol.addr + symbol.size)
        segments = self._binary.elf.load_segments
        self._statics = [range(one.vaddr, one.vaddr + one.memsz) for one in segments]
        self._decoder = Decoder("amd64")
        self._local: dict[int, bool] = {}
        self._texts: dict[int, tuple[int, int, str, str]] = {}
        self.left = most
        self.locals = self.heap = self.touched_remote = 0

    def see(self, _tid: int, registers: Registers) -> None:
        if not self.left:
            raise Enough
        self.left -= 1
        pc = registers.pc
        function = self._binary.functions.find_function(pc)
        if function is None:
            return
        if pc not in self._local:
            self._learn(function.entry, function.end)
        is_local = self._local.get(pc, False)
        self.locals += is_local
        _, size, mnemonic, operands = self._texts[pc]
        for access in find_accesses(mnemonic, operands, pc + size, registers.as_dict()):
            at = access.address
            is_remote = at in self.remote
            on_stack = abs(at - registers.sp) < 1 << 16 or abs(at - registers["fs_base"]) < 1 << 12
            is_known = on_stack or any(at in statics for statics in self._statics)
            self.touched_remote += is_remote
            self.heap += not is_known
            assert not is_local or (is_known and not is_remote), (
                f"{pc:#x} {mnemonic} {operands} touches {at:#x}"
            )

    def _learn(self, start: int, end: int) -> None:
        self._local |= dict.fromkeys(range(start, end), False)
        for text in self._decoder.iter_text(self._binary.elf.read(start, end - start), start):
            self._texts[text[0]] = text
        for run in self._blocks.local_blocks(start, end, [(self.remote.start, self.remote.stop)]):
            for block in run.blocks:
                self._local |= dict.fromkeys(range(block.start, block.end), True)


class Enough(Exception):
    """As much has been seen as is needed."""


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("hello", 5000),
        *(pytest.param(name, 400_000, marks=pytest.mark.slow) for name in ("hello", "goroutines")),
    ],
)
@pytest.mark.timeout(1800)
def test_local_blocks_of_a_program_that_runs(name: str, most: int) -> None:
    """Single-stepped, no local block touches anything but its stack and variables, none of them remote, or traps."""
    path = build(name)
    observed = Observed(path, "runtime.debug", most)
    group = launch_stopped(Program(str(path), [name.encode()], []), FOLLOW_ALL)
    run = SteppedRun(group, observed.see)
    try:
        with contextlib.suppress(Enough):
            run.run()
        assert observed.locals > 1000
        assert observed.heap > 100
        assert observed.touched_remote > 10
    finally:
        end(group)


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
