"""What `docs/trace.md` shows is true."""

import re
from pathlib import Path
from textwrap import indent

import msgspec

from ptserver.tracelog import summary as summary_module
from ptserver.tracelog.events import SyscallEvent
from ptserver.tracelog.filters import SETS, parse_filter
from ptserver.tracelog.jsonl import Line, read_lines, schema
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.summary import SummarySink
from stepping.syscalls import SYSCALLS

PAGE = (Path(__file__).parents[3] / "docs/trace.md").read_text()


def test_example_lines_are_a_trace() -> None:
    examples = [line.strip().encode() + b"\n" for line in PAGE.splitlines() if line.startswith('    {"type"')]
    lines = list(read_lines(examples))
    assert [type(line).__name__ for line in lines] == ["StartLine", "SyscallLine", "SyscallLine", "ExitLine"]
    assert [msgspec.json.encode(line) + b"\n" for line in lines] == examples


def test_every_type_of_line_is_described() -> None:
    described = set(re.findall(r"^\| `(\w+)` \| [a-z]", PAGE, re.MULTILINE))
    tags = {kind.__struct_config__.tag for kind in Line.__args__}
    assert described == tags
    assert len(schema()["$defs"]) == len(tags) + 1  # frames too


def test_every_set_is_described() -> None:
    section = PAGE.partition("## Which calls")[2]
    described = re.findall(r"`%(\w+)`", section)
    assert set(SETS) <= set(described)
    for name in described:
        assert parse_filter(f"%{name}") < set(SYSCALLS)


def test_example_summary_is_one() -> None:
    summary = SummarySink(LineWriter(-1, "nowhere"))
    for name, duration_ns, errno in [("read", 4000, 0), ("read", 6000, 0), ("openat", 2000, 2)]:
        summary.event(SyscallEvent(0, duration_ns, 7, 7, name, (0,) * 6, value=0, errno=errno))
    assert indent(summary.as_text(), "    ") in PAGE
    assert indent(summary.as_text(), "    ") in (summary_module.__doc__ or "")
