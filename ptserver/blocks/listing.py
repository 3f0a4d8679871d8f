"""Lists of a program's blocks, for people and for programs.

The classes that end in `Row` are the JSON form, one object a line (`schema_text()` is its schema). Fields may be
added, so readers must ignore those that they do not know.
"""

import fnmatch
import json
from collections.abc import Callable, Iterator
from inspect import cleandoc

import msgspec

from goabi.binary import GoBinary
from goabi.pclntab import Function
from ptserver.inspection.goroutine_list import printable
from stepping.block_cache import Block
from stepping.block_map import BlockMap, LocalBlock
from stepping.instructions import Flow, Touch

_FLOW_NAMES = {flow: flow.name.lower().replace("_", " ") for flow in Flow}
_TOUCH_NAMES = {touch: touch.name.lower() for touch in Touch if touch.name and touch}


class BlockRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A basic block: *size* bytes of code at *start*.

    flow: how it is left (next, jump, branch, call, indirect jump, indirect call, return, syscall, trap); target: of a
    direct jump or call. touches: what its instructions may touch (stack, global, memory, syscall, atomic; foreign:
    an instruction that the emulator lacks). local: the number of its local block within the function, from 1; 0 if
    it is part of none. file, line: the source of its first instruction; last_line: of its last one.
    """

    start: str
    size: int
    instructions: int
    flow: str
    touches: tuple[str, ...] = ()
    target: str = ""
    local: int = 0
    file: str = ""
    line: int = 0
    last_line: int = 0


class FunctionRow(msgspec.Struct, frozen=True, tag_field="type", tag="function", omit_defaults=True):
    """A function of the program, with how many blocks it has, of which so many are *local*, in *local_blocks* runs.

    blocks: the blocks themselves, in order of address, if functions were asked for.
    """

    name: str
    start: str
    size: int
    block_count: int
    local: int
    local_blocks: int
    file: str = ""
    line: int = 0
    blocks: tuple[BlockRow, ...] = ()


def select_functions(binary: GoBinary, pattern: str | None) -> Iterator[Function]:
    """Yield the functions named *pattern*, or that match it (``*`` and ``?``); all without one."""
    exact = binary.functions.find_function_by_name(pattern) if pattern is not None else None
    if exact is not None:
        yield exact
        return
    for function in binary.functions.iter_functions():
        if pattern is None or fnmatch.fnmatchcase(function.name, pattern):
            yield function


def make_row(binary: GoBinary, blocks: BlockMap, function: Function, *, details: bool) -> FunctionRow:
    """Return the row of *function*. details: with its blocks."""
    found = blocks.blocks_of(function.entry, function.end)
    runs = blocks.local_blocks(function.entry, function.end)
    file, line = binary.functions.file_line(function, function.entry)
    return FunctionRow(
        name=printable(function.name),
        start=f"{function.entry:#x}",
        size=function.end - function.entry,
        block_count=len(found),
        local=sum(len(run.blocks) for run in runs),
        local_blocks=len(runs),
        file=printable(file),
        line=line,
        blocks=tuple(_iter_block_rows(binary, function, found, runs)) if details else (),
    )


def _iter_block_rows(
    binary: GoBinary, function: Function, blocks: list[Block], runs: list[LocalBlock]
) -> Iterator[BlockRow]:
    numbers = {block.start: number for number, run in enumerate(runs, 1) for block in run.blocks}
    for block in blocks:
        file, line = binary.functions.file_line(function, block.start)
        last_file, last_line = binary.functions.file_line(function, block.end - 1)
        yield BlockRow(
            start=f"{block.start:#x}",
            size=block.size,
            instructions=block.instructions,
            flow=_FLOW_NAMES[block.flow],
            touches=tuple(name for touch, name in _TOUCH_NAMES.items() if block.touch & touch),
            target=f"{block.target:#x}" if block.target else "",
            local=numbers.get(block.start, 0),
            file=printable(file),
            line=line,
            last_line=last_line if last_file == file else 0,
        )


def format_function(row: FunctionRow) -> str:
    """Return a function for people: one line, and one for each of its blocks."""
    counts = f"{row.block_count:>5} blocks, {row.local} local in {row.local_blocks}"
    head = f"{row.start} {row.size:>7} bytes {counts}  {row.name}"
    if not row.blocks:
        return head + "\n"
    lines = [head, f"    {row.file}:{row.line}"]
    lines += [_format_block(block, row.file) for block in row.blocks]
    return "\n".join(lines) + "\n\n"


def _format_block(block: BlockRow, file: str) -> str:
    last = f"-{block.last_line}" if block.last_line > block.line else ""
    place = f"{'' if block.file == file else block.file.rpartition('/')[2] + ':'}{block.line}{last}"
    leads = block.flow + (f" {block.target}" if block.target else "")
    local = f"local {block.local}" if block.local else ""
    touches = " ".join(block.touches) or "nothing"
    return (
        f"  {block.start} {block.instructions:>4} instructions  {local:<9} {touches:<22} {leads:<24} {place}"
    )


def encoder() -> Callable[[FunctionRow], bytes]:
    """Return a function that makes a line of JSON of a row."""
    encode = msgspec.json.Encoder().encode
    return lambda row: encode(row) + b"\n"


def schema_text() -> str:
    """Return the JSON Schema of a line, as it is published in `docs/blocks.schema.json`."""
    described = msgspec.json.schema(FunctionRow)
    for definition in described["$defs"].values():
        definition["description"] = cleandoc(definition["description"])
    return json.dumps(described, indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
