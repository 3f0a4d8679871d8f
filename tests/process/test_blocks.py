"""`ptserver blocks`, and whether what it says is what the processor does."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepping.executor import CountUsedUp, LeftRange, Signalled, Until
from stepping.instructions import Flow
from tests.gofixtures import ROOT, build
from tests.process.commands import ptserver, refusal
from tests.process.steppable import Steppable


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
