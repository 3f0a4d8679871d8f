"""A long trace needs no more memory than a short one: what is remembered is forgotten when it is too much."""

import gc
from pathlib import Path

import pytest

from ptserver.tracelog import batch as batches
from ptserver.tracelog.batch import CallBatch, Table
from ptserver.tracelog.events import Frame, TraceStart
from ptserver.tracelog.jsonl import SyscallLine, read_lines
from ptserver.tracelog.sinks import Form, open_sink
from ptserver.tracelog.text import TextOptions
from stepping.syscalls import decode_columns
from tests.ringrecords import Record, batch_of

SIZE = 100
START = TraceStart(("./main",), "amd64", 0, 0, 7)


def different(number: int) -> CallBatch:
    """A batch in which no two calls have anything in common, nor with those of other batches."""
    first = number * SIZE
    records = [
        Record(
            "openat" if one % 2 else "close",
            (2**64 - 100, one, one, 0, 0, 0) if one % 2 else (one, 0, 0, 0, 0, 0),
            one,
            goid=one + 1,
            tid=one + 7,
            start=10**9 + one * 1000,
            duration=one % 900,
            stack=[one + 1],
            data=(f"/tmp/{one}".encode() if one % 2 else b"", b""),
        )
        for one in range(first, first + SIZE)
    ]
    return CallBatch(batch_of(records), lambda stack: (Frame("main.main", "", 0, stack[0]),))


@pytest.mark.parametrize("form", ["json", "text", "perfetto", "summary"])
def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form) -> None:
    monkeypatch.setattr(batches, "_MAX_REMEMBERED", SIZE)
    monkeypatch.setattr(decode_columns, "_MAX_REMEMBERED", SIZE)
    before = {id(table) for table in tables()}
    sink = open_sink(form, str(tmp_path / "trace"), START, TextOptions(stacks=True))
    for number in range(30):
        sink.calls(different(number))
        own = [len(table) for table in tables() if id(table) not in before]
        # Full, and then one batch more; a table that is looked into without that is one by size.
        assert max(own, default=0) <= 2 * SIZE
    sink.close()
    if form == "json":
        lines = list(read_lines((tmp_path / "trace").read_bytes().splitlines(keepends=True)))[1:]
        paths = [
            line.args["path"] for line in lines if isinstance(line, SyscallLine) and line.name == "openat"
        ]
        assert paths == [f"/tmp/{one}" for one in range(1, 30 * SIZE, 2)]


def tables() -> list[dict[object, object]]:
    arguments = [one._known for one in gc.get_objects() if isinstance(one, decode_columns._Argument)]
    return [*(one for one in gc.get_objects() if isinstance(one, Table)), *arguments]
