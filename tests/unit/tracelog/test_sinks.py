"""Making the sink that was asked for."""

import json
import os
from pathlib import Path

import pytest

from ptserver.tracelog.errors import TraceOutputError
from ptserver.tracelog.events import SyscallEvent, TraceStart
from ptserver.tracelog.sinks import BINARY_FORMS, Form, Tee, open_sink

EVENT = SyscallEvent(1, 1, 7, 7, "close", (3, 0, 0, 0, 0, 0), value=0)


@pytest.mark.parametrize(
    ("form", "last_line"),
    [
        ("text", "close(3)                                = 0"),
        ("summary", "100.00    0.000000           0         1           total"),
    ],
)
def test_text_forms(tmp_path: Path, form: Form, last_line: str) -> None:
    assert lines_of(tmp_path, form)[-1] == last_line


def test_json_forms(tmp_path: Path) -> None:
    assert json.loads(lines_of(tmp_path, "json")[-1])["name"] == "close"
    assert json.loads(lines_of(tmp_path, "summary-json")[-1])["rows"][0]["calls"] == 1


def lines_of(tmp_path: Path, form: Form) -> list[str]:
    path = tmp_path / form
    sink = open_sink(form, str(path), TraceStart.now(["./main"]))
    sink.event(EVENT)
    sink.close()
    return path.read_text().splitlines()


def test_tee_gives_to_all(tmp_path: Path) -> None:
    start = TraceStart.now()
    forms: list[Form] = ["text", "summary"]
    tee = Tee(*(open_sink(form, str(tmp_path / form), start) for form in forms))
    tee.event(EVENT)
    tee.flush()
    assert (tmp_path / "text").read_text().startswith("close(3)")
    tee.close()
    assert (tmp_path / "summary").read_text().endswith("total\n")


@pytest.mark.parametrize(
    ("form", "magic"), [("perfetto", b"\x0a"), ("pprof", b"\x1f\x8b"), ("recording", b"ptrecord")]
)
def test_binary_forms(tmp_path: Path, form: Form, magic: bytes) -> None:
    path = tmp_path / form
    sink = open_sink(form, str(path), TraceStart.now())
    sink.event(EVENT)
    sink.close()
    assert path.read_bytes().startswith(magic)


@pytest.mark.parametrize("form", sorted(BINARY_FORMS))
def test_binary_forms_go_to_no_terminal(form: Form) -> None:
    master, slave = os.openpty()
    with pytest.raises(
        TraceOutputError, match=r"^a trace as \w+ is binary and cannot go to a terminal: .* -o FILE$"
    ):
        open_sink(form, os.ttyname(slave), TraceStart.now())
    os.close(slave)
    os.close(master)
    with pytest.raises(TraceOutputError, match="cannot go to standard error"):
        open_sink(form, None, TraceStart.now())


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TraceOutputError):
        open_sink("text", str(tmp_path), TraceStart.now())
