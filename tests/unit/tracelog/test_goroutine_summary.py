"""The summaries by goroutine and by where goroutines were created, of calls alone."""

import json
import os
from pathlib import Path

import pytest

from ptserver.tracelog.events import GoEvent, LossEvent, SyscallEvent, TraceStart
from ptserver.tracelog.goroutine_summary import GoroutineKey, GoroutineSummarySink, format_bytes
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.sinks import open_sink

#: A call of a process that is there, but must not be looked at.
CALL = SyscallEvent(10, 2_000_000, os.getpid(), 1, "read", (0,) * 6, value=1 << 20, goid=7)


def written(path: Path, by: GoroutineKey, *, as_json: bool = False) -> str:
    sink = GoroutineSummarySink(LineWriter.open(str(path)), by=by, as_json=as_json, here=False)
    sink.event(CALL)
    sink.event(LossEvent(11, 3))
    sink.event(CALL._replace(name="openat", value=-1, errno=2, goid=None))
    sink.flush()
    sink.close()
    return path.read_text()


def test_table(tmp_path: Path) -> None:
    _, *rows, total = written(tmp_path / "t", "goroutine").splitlines()
    assert [row.split()[3:] for row in rows] == [
        "1 1 0.002 0 B 0 B (no goroutine: the runtime's own work, C code)".split(),
        "1 0.002 1.0 MiB 0 B 7 created at (not known)".split(),
    ]
    assert total.split()[3:] == "2 1 0.004 1.0 MiB 0 B total".split()


def test_json(tmp_path: Path) -> None:
    plain = json.loads(written(tmp_path / "t", "goroutine", as_json=True))
    assert plain["by"] == "goroutine"
    (seven,) = [row for row in plain["rows"] if row["goid"] == 7]
    assert (seven["site"], seven["calls"], seven["read_bytes"], seven["cpu_ns"]) == ("", 1, 1 << 20, 0)
    assert plain["total"]["cpu_ns"] == 0
    by_site = json.loads(written(tmp_path / "s", "site", as_json=True))
    (site,) = by_site["rows"]
    assert (site["site"], site["live"], site["ended"], site["calls"]) == ("", 1, 0, 1)


def test_nothing_happened(tmp_path: Path) -> None:
    sink = open_sink("summary-json", str(tmp_path / "t"), TraceStart.now(), by="site", here=False)
    sink.close()
    assert json.loads((tmp_path / "t").read_text())["rows"] == []


def test_time_blocked_by_events(tmp_path: Path) -> None:
    path = tmp_path / "t"
    sink = open_sink(
        "summary-json", str(path), TraceStart.now(), by="goroutine", here=False, waits_by_events=True
    )
    happened = [
        (100, "start", 1, ""),
        (200, "block", 1, "chan receive"),
        (250, "unblock", 2, ""),  # it has waited since the beginning
        (300, "block", 2, "preempted"),
        (700, "unblock", 1, ""),
        (800, "start", 3, ""),  # it did not wait
        (900, "block", 3, "sleep"),
        (1000, "exit", 2, ""),
    ]
    for at_ns, what, goid, reason in happened:
        sink.event(GoEvent(at_ns, 7, 7, what, goid, None, reason))
    sink.close()
    rows = json.loads(path.read_text())["rows"]
    assert {row["goid"]: row["blocked_ns"] for row in rows if row["blocked_ns"]} == {1: 500, 2: 50, 3: 100}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (10**10, "9.3 GiB"),
        (1 << 45, "32.0 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
