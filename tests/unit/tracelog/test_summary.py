"""The summary of a trace."""

import json
from pathlib import Path

import pytest

from ptserver.tracelog.events import ExitEvent, Frame, SyscallEvent
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.summary import Key, Order, SummarySink

STACK = (Frame("internal/runtime/syscall/linux.Syscall6"), Frame("syscall.read"), Frame("main.load"))
ARGS = (0, 0, 0, 0, 0, 0)


def events() -> list[SyscallEvent]:
    return [
        SyscallEvent(0, 8_000, 7, 7, "read", ARGS, value=1, goid=1, stack=STACK),
        SyscallEvent(0, 2_000, 7, 8, "read", ARGS, value=1, goid=2, stack=STACK),
        SyscallEvent(0, 2_000, 7, 8, "openat", ARGS, value=-1, errno=2),
        SyscallEvent(0, None, 7, 8, "close", ARGS, value=0, stack=STACK[:2]),
    ]


def summary(path: Path, by: Key = "syscall", order: Order = "time", as_json: bool = False) -> str:
    sink = SummarySink(LineWriter.open(str(path)), by=by, order=order, as_json=as_json)
    for event in events():
        sink.event(event)
    sink.event(ExitEvent(0, 7, 7, 0))
    sink.flush()
    assert path.read_text() == ""
    sink.close()
    return path.read_text()


def test_table(tmp_path: Path) -> None:
    assert summary(tmp_path / "t") == (
        "% time     seconds  usecs/call     calls    errors syscall\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        " 83.33    0.000010           5         2           read\n"
        " 16.67    0.000002           2         1         1 openat\n"
        "  0.00    0.000000           0         1           close\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        "100.00    0.000012           3         4         1 total\n"
    )


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("time", ["read", "openat", "close"]),
        ("calls", ["read", "close", "openat"]),
        ("errors", ["openat", "close", "read"]),
        ("name", ["close", "openat", "read"]),
    ],
)
def test_order(tmp_path: Path, order: Order, names: list[str]) -> None:
    lines = summary(tmp_path / "t", order=order).splitlines()[2:-2]
    assert [line.split()[-1] for line in lines] == names


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("goroutine", ["goroutine 1", "goroutine 2", "thread 8"]),
        ("function", ["main.load", "(unknown)", "internal/runtime/syscall/linux.Syscall6"]),
    ],
)
def test_by(tmp_path: Path, by: Key, names: list[str]) -> None:
    rows = json.loads(summary(tmp_path / "t", by=by, as_json=True))["rows"]
    assert [row[by] for row in rows] == names


def test_json(tmp_path: Path) -> None:
    plain = json.loads(summary(tmp_path / "t", as_json=True))
    assert plain["rows"][0] == {
        "syscall": "read",
        "calls": 2,
        "errors": 0,
        "total_ns": 10_000,
        "longest_ns": 8_000,
    }
    assert plain["total"] == {"calls": 4, "errors": 1, "total_ns": 12_000, "longest_ns": 8_000}


def test_nothing_happened(tmp_path: Path) -> None:
    sink = SummarySink(LineWriter.open(str(tmp_path / "t")))
    sink.close()
    assert (tmp_path / "t").read_text().splitlines()[-1].split() == ["0.00", "0.000000", "0", "0", "total"]
