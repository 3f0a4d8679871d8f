"""The trace as JSON lines: written, described by its schema, and read back."""

import json
import struct
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from ptserver.tracelog.errors import TraceFormatError
from ptserver.tracelog.events import (
    Event,
    ExitEvent,
    Frame,
    LossEvent,
    SignalEvent,
    StopEvent,
    SyscallEvent,
    ThreadEvent,
    TraceStart,
)
from ptserver.tracelog.jsonl import (
    ExitLine,
    JsonLinesSink,
    StartLine,
    SyscallLine,
    read_lines,
    schema,
    schema_text,
)
from ptserver.tracelog.output import LineWriter

START = TraceStart(("./main", "\udcff"), "amd64", 10, 20, pid=7)
INFO = struct.pack("<iiiiiI", 17, 0, 1, 0, 8, 0).ljust(128, b"\0")

OPEN = SyscallEvent(
    11, 5, 7, 8, "openat", (2**64 - 100, 4096, 0, 0, 0, 0), ins={1: b"/etc/\xff"}, value=-1, errno=2
)
EVERYTHING: list[Event] = [
    OPEN,
    SyscallEvent(12, None, 7, 8, "read", (0, 4096, 1, 0, 0, 0), unfinished=True),
    SyscallEvent(
        13, 9, 7, 8, "write", (1, 4096, 2, 0, 0, 0), ins={1: b"hi"}, value=2, goid=34,
        stack=(Frame("main.main", "/src/main.go", 3, 0x401000), Frame("f\x1b", pc=1)),
    ),
    SyscallEvent(14, 1, 7, 8, "syscall_0x1f5", (1, 0, 0, 0, 0, 0), value=-1, errno=38),
    SignalEvent(15, 7, 8, 17, INFO),
    SignalEvent(15, 7, 8, 23),
    StopEvent(15, 7, 8, 20),
    ThreadEvent(16, 7, 9, "created"),
    LossEvent(17, 3),
    ExitEvent(18, 7, 7, 0),
    ExitEvent(19, 7, 7, None, 9),
]  # fmt: skip


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    sink = JsonLinesSink(LineWriter.open(str(path)), START)
    for event in EVERYTHING:
        sink.event(event)
    sink.flush()
    sink.close()
    return path


def objects(trace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trace.read_text().splitlines()]


def test_lines(trace: Path) -> None:
    lines = objects(trace)
    assert lines[0] == {
        "type": "start",
        "version": 1,
        "monotonic_ns": 10,
        "realtime_ns": 20,
        "program": ["./main", "\\udcff"],
        "pid": 7,
    }
    assert lines[1] == {
        "type": "syscall",
        "start_ns": 11,
        "duration_ns": 5,
        "pid": 7,
        "tid": 8,
        "name": "openat",
        "args": {"dirfd": "AT_FDCWD", "path": {"base64": "L2V0Yy//"}, "flags": ["O_RDONLY"]},
        "value": -1,
        "errno": "ENOENT",
    }
    assert (lines[2]["unfinished"], lines[2]["value"], lines[2]["duration_ns"]) == (True, None, None)
    assert lines[3]["goid"] == 34
    assert lines[3]["stack"] == [
        {"function": "main.main", "file": "/src/main.go", "line": 3, "pc": "0x401000"},
        {"function": "f\x1b", "pc": "0x1"},
    ]
    assert lines[5]["signal"] == "SIGCHLD"
    assert lines[5]["info"]["si_code"] == "CLD_EXITED"
    assert lines[7] == {"type": "stop", "start_ns": 15, "pid": 7, "tid": 8, "signal": "SIGTSTP"}
    assert lines[-3:] == [
        {"type": "loss", "start_ns": 17, "lost": 3},
        {"type": "exit", "start_ns": 18, "pid": 7, "tid": 7, "status": 0},
        {"type": "exit", "start_ns": 19, "pid": 7, "tid": 7, "signal": "SIGKILL"},
    ]


def test_lines_follow_the_schema(trace: Path) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    for line in objects(trace):
        validator.validate(line)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"type": "syscall", "name": "read"})


def test_published_schema_is_the_present_one() -> None:
    published = Path(__file__).parents[3] / "docs/trace.schema.json"
    assert published.read_text() == schema_text(), (
        "run python -m ptserver.tracelog.jsonl > docs/trace.schema.json"
    )


def test_trace_is_read_back(trace: Path) -> None:
    with trace.open("rb") as file:
        lines = list(read_lines(file))
    assert len(lines) == 1 + len(EVERYTHING)
    assert isinstance(lines[0], StartLine)
    assert isinstance(lines[1], SyscallLine)
    assert lines[1].errno == "ENOENT"
    assert lines[-1] == ExitLine(19, 7, 7, None, "SIGKILL")


def test_trace_that_was_cut_anywhere_is_read_up_to_there(trace: Path) -> None:
    whole = trace.read_bytes()
    for size in range(0, len(whole), 7):
        lines = whole[:size].splitlines(keepends=True)
        assert len(list(read_lines(lines))) == whole[:size].count(b"\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"type":"exit","start_ns":1,"pid":1,"tid":1}\n', "no trace: it does not begin with a start line"),
        (b'{"type":"start","version":9,"monotonic_ns":1,"realtime_ns":1}\n', "version 9; .* reads version 1"),
        (b"hello\n", "line 1 is no line of a trace"),
        (b'{"type":"start","version":1,"monotonic_ns":1,"realtime_ns":1}\n{}\n', "line 2 is no line"),
        (b'{"type":"start","version":1,"monotonic_ns":1,"realtime_ns":1}\n\xff\n', "line 2 is no line"),
    ],
)
def test_what_is_no_trace_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(TraceFormatError, match=message):
        list(read_lines(text.splitlines(keepends=True)))


def test_fields_of_later_versions_are_ignored() -> None:
    line = b'{"type":"start","version":1,"monotonic_ns":1,"realtime_ns":1,"weather":"fine"}\n'
    assert list(read_lines([line])) == [StartLine(1, 1, 1)]


def test_limit(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    sink = JsonLinesSink(LineWriter.open(str(path)), START, limit=1)
    sink.event(EVERYTHING[2])
    sink.close()
    assert objects(path)[1]["args"]["buf"] == {"text": "h", "size": 2}
