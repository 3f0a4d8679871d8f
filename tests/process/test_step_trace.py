"""`ptserver step --trace`: what ran and what it touched, the same by single steps and emulated."""

import json
from pathlib import Path

import pytest

from goabi.binary import GoBinary
from goabi.elf import ElfFile
from ptserver.blocks.of_program import open_blocks
from tests.cfixtures import build_c
from tests.gofixtures import build
from tests.process.commands import ptserver, refusal


def tiny() -> Path:
    return build_c("tiny_c", flags=("-nostdlib", "-static", "-no-pie"))


def logged(tmp_path: Path, engine: str, kind: str) -> list[dict[str, object]]:
    """The log of the small program; its lines in text say the same."""
    file = tmp_path / "log"
    words = ("step", f"--engine={engine}", f"--trace={kind}", "--json", "-o", file, tiny())
    assert ptserver(*words) == (7, "handled\ncounted\n", "")
    return [json.loads(line) for line in file.read_text().splitlines()]


def of_first_thread(rows: list[dict[str, object]], *, up_to: object) -> list[dict[str, object]]:
    """The rows of the first thread, until it comes to an address."""
    mine = [row for row in rows if row["tid"] == rows[0]["tid"]]
    return mine[: [row["pc"] for row in mine].index(up_to)]


def entry() -> str:
    with ElfFile(tiny()) as elf:
        return f"{elf.header.entry:#x}"


def address_of(name: str) -> str:
    with ElfFile(tiny()) as elf:
        symbol = elf.find_symbol(name)
        assert symbol is not None
        return f"{symbol.addr:#x}"


def test_instructions(tmp_path: Path) -> None:
    """Up to the signal's handler, both engines execute the same instructions, down to the address."""
    native, emulated = (logged(tmp_path, engine, "insn") for engine in ("native", "emulate"))
    handler = address_of("handler")
    texts = [
        [(row["pc"], row["text"]) for row in of_first_thread(rows, up_to=handler)]
        for rows in (native, emulated)
    ]
    assert texts[0] == texts[1]
    assert texts[0][0] == (entry(), "xor ebp, ebp")
    for rows in (native, emulated):
        assert {row["type"] for row in rows} == {"insn"}
        assert len({row["tid"] for row in rows}) == 2
        assert sum(str(row["text"]).startswith("lock inc") for row in rows) == 40


def test_blocks(tmp_path: Path) -> None:
    native, emulated = (logged(tmp_path, engine, "block") for engine in ("native", "emulate"))
    handler = address_of("handler")
    assert [row["pc"] for row in of_first_thread(native, up_to=handler)] == [
        row["pc"] for row in of_first_thread(emulated, up_to=handler)
    ]
    assert len(native) > 40


def test_memory(tmp_path: Path) -> None:
    """Of the counter, every access is logged; an emulated processor tells reading from writing in time, too."""
    native, emulated = (logged(tmp_path, engine, "mem") for engine in ("native", "emulate"))
    counter = address_of("counter")
    kinds = [[row["kind"] for row in rows if row["address"] == counter] for rows in (native, emulated)]
    assert kinds[0].count("rw") == 40
    assert kinds[1].count("w") == 40
    assert kinds[1].count("r") >= 40
    assert all(row["size"] == 8 for rows in (native, emulated) for row in rows if row["address"] == counter)


def test_go_s_functions_and_lines_are_named(tmp_path: Path) -> None:
    """The blocks that run in a function are blocks that `ptserver blocks` has of it."""
    program = build("hello", arch="arm64")
    file = tmp_path / "log"
    status, out, err = ptserver("step", "--trace=block", "--json", "-o", file, program)
    assert (status, out, err) == (0, "hello, world\n", "")
    rows = [json.loads(line) for line in file.read_text().splitlines() if '"main.main"' in line]
    assert all(row["file"].endswith("hello/main.go") and row["line"] >= 9 for row in rows)
    with GoBinary.open(program) as binary:
        function = binary.functions.find_function_by_name("main.main")
        assert function is not None
        blocks = open_blocks(binary, cached=False).blocks_of(function.entry, function.end)
    assert {int(row["pc"], 16) for row in rows} <= {block.start for block in blocks}


def test_text() -> None:
    status, _, err = ptserver("step", "--trace=insn", tiny())
    assert status == 7
    first = err.splitlines()[0]
    tid, pc, *text = first.split()
    assert tid.isdecimal()
    assert (pc, " ".join(text)) == (entry(), "xor ebp, ebp")


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "program"),
        ("--output", "file", "program"),
        ("--trace=insn", "-c", "si", "program"),
        ("--trace=insn", "--pid", "1"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...]) -> None:
    assert refusal("step", *words)[0] == 64


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    status, line = refusal("step", "--trace=insn", "-o", tmp_path / "no" / "log", tiny())
    assert status == 73
    assert "No such file or directory" in line
