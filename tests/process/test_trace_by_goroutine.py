"""`trace -c --by goroutine` and its like, on a program that says what its goroutines do."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.process.commands import refusal
from tests.process.goroutine_work import Done, Worker, working


def summed(worker: Worker, by: str, rounds: int, *words: str) -> tuple[dict[str, Any], Done, Done]:
    """Trace until goroutine a has done so many more rounds; return the table, and the reports around it."""
    before = worker.report()
    tracer = subprocess.Popen(
        ["ptserver", "trace", "-c", "--json", "--by", by, "-o", "-", *words, str(worker.pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    assert "by the ring" in tracer.stderr.readline()
    start = worker.report()
    while worker.report().a < start.a + rounds:
        pass
    inside = worker.report()
    tracer.send_signal(signal.SIGINT)
    out, err = tracer.communicate(timeout=60)
    assert (tracer.returncode, err) == (0, "")
    after = worker.report()
    table = json.loads(out)
    assert table["by"] == by
    assert inside.reads - start.reads <= after.reads - before.reads
    return (
        table,
        Done(*(b - a for a, b in zip(start, inside, strict=True))),
        Done(*(b - a for a, b in zip(before, after, strict=True))),
    )


def test_by_goroutine() -> None:
    with working(weight=10) as worker:
        ticks = cpu_ticks(worker.pid)
        table, least, most = summed(worker, "goroutine", 6000)
        used_ns = (cpu_ticks(worker.pid) - ticks + 2) * 10**9 // os.sysconf("SC_CLK_TCK")
        rows = {row["goid"]: row for row in table["rows"]}
        a, b, reader, blocked = (rows[worker.goids[name]] for name in ("a", "b", "reader", "blocked"))
        assert least.reads <= reader["calls"] <= most.reads
        assert reader["read_bytes"] == 1000 * reader["calls"]
        assert reader["errors"] == reader["written_bytes"] == 0
        assert reader["site"].startswith("main.main main.go:")
        assert a["calls"] == b["calls"] == blocked["calls"] == 0
        # a does three times as much as b; six deviations are never exceeded.
        spread = 6 * (a["cpu_error_ns"] + 3 * b["cpu_error_ns"])
        assert abs(a["cpu_ns"] - 3 * b["cpu_ns"]) <= spread < 8 * a["cpu_ns"]
        assert blocked["cpu_ns"] == 0
        assert blocked["blocked_ns"] >= reader["blocked_ns"] > 0
        assert blocked["blocked_unsure_ns"] == 0
        total = table["total"]
        assert sum(row["cpu_ns"] for row in table["rows"]) <= total["cpu_ns"] <= used_ns
        assert total["cpu_ns"] > 0.5 * used_ns


def test_by_site() -> None:
    with working() as worker:
        table, least, most = summed(worker, "site", 60, "--events=block,create")
        reader = max(table["rows"], key=lambda row: row["read_bytes"])
        assert least.reads <= reader["calls"] <= most.reads
        assert (reader["live"], reader["ended"]) == (1, 0)
        assert "goid" not in reader
        # After each read it sleeps for 5 ms, and that is measured; the first and the last sleep may be cut off.
        assert reader["blocked_ns"] >= (reader["calls"] - 1) * 5_000_000
        assert all(row["blocked_unsure_ns"] == 0 for row in table["rows"])


def test_by_function() -> None:
    with working() as worker:
        table, least, most = summed(worker, "function", 60)
        (reader,) = [row for row in table["rows"] if row["function"] == "main.read"]
        assert least.reads <= reader["calls"] <= most.reads


def test_a_launched_program_is_counted_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with working(("ptserver", "trace", "-q", "-c", "--json", "--by", "goroutine", "-o", str(log))) as worker:
        goid = worker.goids["reader"]
        start = worker.report()
        while worker.report().reads < start.reads + 60:
            pass
    (reader,) = [row for row in json.loads(log.read_text())["rows"] if row["goid"] == goid]
    assert reader["calls"] >= 60
    assert reader["site"].startswith("main.main ")


@pytest.mark.parametrize("words", [("--by", "goroutine"), ("--by", "site", "--json")])
def test_it_belongs_to_a_summary(words: tuple[str, ...]) -> None:
    status, message = refusal("trace", *words, "1")
    assert (status, "--by belongs to -c" in message) == (64, True)


def cpu_ticks(pid: int) -> int:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])
