"""How lists of goroutines are filtered, grouped and written."""

import re
from pathlib import Path

import pytest

from ptserver.inspection.goroutine_list import (
    FrameRow,
    GoroutineRow,
    Groups,
    Row,
    Selection,
    SummaryRow,
    encoder,
    format_details,
    format_duration,
    format_group,
    format_line,
    format_summary,
    format_trace,
    is_runtime,
    is_shown,
    read_rows,
    schema_text,
    where_it_is,
)
from ptserver.inspection.goroutine_rows import printable
from tests.process.goabi.live import parse_dump

PAGE = (Path(__file__).parents[2] / "docs/goroutines.md").read_text()

PARK = FrameRow("runtime.gopark", "/go/src/runtime/proc.go", 474, "0x481c4a", 202)
RECEIVE = FrameRow("main.receive", "/src/main.go", 31, "0x4f74fc", 28)
INLINED = FrameRow("main.inner", "/src/main.go", 12, "0x4f74fc")
EXIT = FrameRow("runtime.goexit", "/go/src/runtime/asm_amd64.s", 1700, "0x487cc1", 1)
SITE = FrameRow("main.main", "/src/main.go", 40, "0x4f6cf3", 147)


def waiting(goid: int, **more: object) -> GoroutineRow:
    facts: dict[str, object] = {
        "state": "waiting",
        "reason": "chan receive",
        "at": RECEIVE,
        "created_by": SITE,
        "parent": 1,
        "entry": "main.receive",
        "stack": (PARK, INLINED, RECEIVE, EXIT),
    }
    return GoroutineRow(goid, **(facts | more))  # type: ignore[arg-type]


def test_line() -> None:
    line = format_line(waiting(7, waited_ns=12_300_000_000, locked=True, tid=9))
    assert line.split() == [
        *("7", "chan", "receive", "12.3s", "main.receive", "/src/main.go:31"),
        *("created", "by", "main.main:40", "(thread", "9,", "locked)"),
    ]
    assert format_line(GoroutineRow(1, "running")).split() == ["1", "running", "?"]
    assert "(a=1, b=2)" in format_line(waiting(7, labels={"a": "1", "b": "2"}))


def test_trace_is_read_as_one_of_gos() -> None:
    text = format_trace(waiting(7)) + format_trace(waiting(8, waited_ns=125 * 10**9, locked=True))
    first, second = parse_dump(text.rstrip("\n")).values()
    assert (first.goid, first.state) == (7, "chan receive")
    assert first.frames == [("main.inner", "/src/main.go", 12), ("main.receive", "/src/main.go", 31)]
    assert (first.created_by, first.creator, first.created_at) == ("main.main", 1, ("/src/main.go", 40))
    assert "goroutine 8 [chan receive, 2 minutes, locked to thread]:" in text
    assert (second.goid, second.state) == (8, "chan receive")
    assert "\t/src/main.go:31 +0x1c\n" in text
    assert "\t/src/main.go:12\n" in text  # an inlined call has no offset


def test_trace_shows_the_runtime_when_asked_or_when_there_is_nothing_else() -> None:
    assert "gopark" in format_trace(waiting(7), runtime=True)
    assert "gopark" not in format_trace(waiting(7))
    assert "gopark" in format_trace(waiting(7, stack=(PARK,)))
    assert "gopark" in format_trace(waiting(7, system=True))
    assert "...the stack ends..." in format_trace(waiting(7, problem="the stack ends"))
    panicking = waiting(7, stack=(FrameRow("runtime.gopanic", "p.go", 1, "0x1", 2), RECEIVE))
    assert "panic(...)" in format_trace(panicking)


@pytest.mark.parametrize(
    ("function", "runtime", "shown"),
    [
        ("runtime.gopark", True, False),
        ("runtime.GC", True, True),
        ("runtime.gopanic", True, True),
        ("runtime/pprof.Do", False, True),
        ("internal/runtime/maps.(*Map).getWithKey", True, True),
        ("internal/poll.runtime_pollWait", True, True),
        ("main.main", False, True),
    ],
)
def test_whose_function_it_is(function: str, runtime: bool, shown: bool) -> None:
    assert is_runtime(function) is runtime
    assert is_shown(function) is shown


def test_where_it_is() -> None:
    assert where_it_is((PARK, INLINED, RECEIVE)) == INLINED
    assert where_it_is((PARK, EXIT)) == PARK
    assert where_it_is(()) is None


def test_selection() -> None:
    everything = Selection()
    assert everything.matches("waiting", "sleep")
    assert everything.matches_stack(())
    assert not everything.needs_stack
    some = Selection(["Running", "IO wait"], re.compile(r"main\.rec"))
    assert some.matches("running", "")
    assert some.matches("waiting", "IO wait")
    assert not some.matches("waiting", "sleep")
    assert some.needs_stack
    assert some.matches_stack((PARK, RECEIVE))
    assert not some.matches_stack((PARK, EXIT))


def test_groups_by_stack_are_a_profile() -> None:
    groups = Groups()
    for goid in range(20):
        groups.add(waiting(goid, waited_ns=goid * 10**9 if goid else None))
    groups.add(waiting(99, stack=(RECEIVE, EXIT)))
    groups.add(waiting(98, reason="select"))
    large, *small = groups.rows()
    assert (large.count, large.goids) == (20, tuple(range(10)))
    assert (large.shortest_ns, large.longest_ns) == (10**9, 19 * 10**9)
    assert [row.goids for row in small] == [(98,), (99,)]
    lines = format_group(large).splitlines()
    # An inlined call and the one that holds it have one pc.
    assert lines[0] == "20 @ 0x481c4a 0x4f74fc 0x487cc1"
    assert lines[1] == "# chan receive 1.0s to 19.0s; goroutines 0 1 2 3 4 5 6 7 8 9 ..."
    assert lines[3] == "#\t0x4f74fc\tmain.inner\t/src/main.go:12"
    assert lines[4] == "#\t0x4f74fc\tmain.receive+0x1c\t/src/main.go:31"


def test_a_recursive_call_is_in_a_profile_as_often_as_it_is_on_the_stack() -> None:
    groups = Groups()
    groups.add(waiting(1, stack=(PARK, RECEIVE, RECEIVE, RECEIVE, EXIT)))
    (row,) = groups.rows()
    assert format_group(row).startswith("1 @ 0x481c4a 0x4f74fc 0x4f74fc 0x4f74fc 0x487cc1\n")


def test_groups_by_state() -> None:
    groups = Groups(by_state=True)
    for goid in range(3):
        groups.add(waiting(goid, stack=(RECEIVE,) * goid))
    groups.add(GoroutineRow(9, "running", stack=(EXIT,)))
    assert [(row.count, row.state, row.stack) for row in groups.rows()] == [
        (3, "waiting", ()),
        (1, "running", ()),
    ]
    assert format_group(groups.rows()[0]).split() == ["3", "chan", "receive", "goroutines", "0", "1", "2"]


def test_summary() -> None:
    assert format_summary(SummaryRow(1), all_wanted=True) == "1 goroutine\n"
    text = format_summary(SummaryRow(2, 7, 30, 1, 4_250_000), all_wanted=False)
    assert text == (
        "2 goroutines; 30 others do not match; 7 of the runtime's own not shown (--system); "
        "1 records made no sense; stopped for 4.2 ms\n"
    )


def test_details() -> None:
    row = waiting(7, tid=12, channels=("0xc0001",), labels={"kind": "test"}, waited_ns=2 * 10**9)
    assert format_details(row).splitlines() == [
        "# waited: 2.0s",
        "# thread: 12",
        "# channels: 0xc0001",
        "# labels: kind=test",
        "# entry: main.receive",
    ]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (1500, "2us"),
        (5_000_000, "5ms"),
        (59_940_000_000, "59.9s"),
        (61 * 10**9, "1m01s"),
        (3600 * 10**9, "1h00m"),
        (90 * 3600 * 10**9, "90h00m"),
    ],
)
def test_durations(ns: int, text: str) -> None:
    assert format_duration(ns) == text


def test_text_of_the_program_cannot_steer_a_terminal() -> None:
    assert printable("main.café") == "main.café"
    assert printable("a\x1b[31mb\n") == r"a\x1b[31mb\n"


def test_json_round_trip() -> None:
    rows: list[Row] = [waiting(7, labels={"ä": "b"}), SummaryRow(1)]
    groups = Groups()
    groups.add(waiting(7))
    rows[1:1] = groups.rows()
    encode = encoder()
    lines = [encode(row) for row in rows]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert list(read_rows(lines)) == rows


def test_published_schema_is_this_one() -> None:
    published = Path(__file__).parents[2] / "docs/goroutines.schema.json"
    assert published.read_text() == schema_text()


def test_documented_lines_are_rows() -> None:
    examples = [line.strip().encode() + b"\n" for line in PAGE.splitlines() if line.startswith('    {"type"')]
    encode = encoder()
    assert [encode(row) for row in read_rows(examples)] == examples
    assert {type(row) for row in read_rows(examples)} == set(Row.__args__)
