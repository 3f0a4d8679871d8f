"""A recording holds what was put into it, however short it is cut."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptserver.tracelog.errors import FilterError, TraceFormatError
from ptserver.tracelog.events import (
    Event,
    ExitEvent,
    Frame,
    GcEvent,
    GoEvent,
    LossEvent,
    SignalEvent,
    StopEvent,
    SyscallEvent,
    ThreadEvent,
    TraceStart,
)
from ptserver.tracelog.options import TraceOptions
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.recording import EVENTS, Recording, RecordingSink
from ptserver.tracelog.replay import replay
from ptserver.tracelog.ring_events import RecordSink, RingFacts
from stepping.ring import RingCall, unpack_stack
from stepping.ring_batch import RingBatch
from tests.ringrecords import PLANS, Record, batch_of

START = TraceStart(("./main", "-v"), "amd64", 5, 6, 7)
FACTS = RingFacts("/nowhere/main", "id", 0x1000, ("read", "openat"), ("futex",), ("block",), ("zero", "one"))
READ = Record("read", (3, 0xC000, 64, 0, 0, 0), 5, 18, 9, 1_000, 40, (0x401000, 0x402000), (b"hello", b""))
OPEN = Record(
    "openat", (0xFFFFFF9C, 0xC100, 0, 0, 0, 0), -2, 0, 7, 2_000, 90, (0x403000,), (b"/no/file", b"")
)
ALL_EVENTS: tuple[Event, ...] = (
    SyscallEvent(
        1, None, 7, 8, "read", (3, 2**64 - 1, 2), {1: b"\xff"}, {2: b""}, -1, 4, True, 5,
        (Frame("main.main", "/m.go", 3, 4),),
    ),
    SignalEvent(2, 7, 8, 11, b"\x01\x02"),
    StopEvent(3, 7, 8, 19),
    ThreadEvent(4, 7, 8, "created"),
    ExitEvent(5, 7, 7, None, 9, True),
    GoEvent(6, 7, 8, "block", 18, 1, "select", 0xC0001, "main.f", (Frame("main.f"),), (1, 2)),
    GcEvent(7, 7, 8, "sweep", None),
    LossEvent(8, 1000),
)  # fmt: skip


def recorded(pieces: Sequence[RingFacts | RingBatch | Event]) -> bytes:
    """Return a recording of these pieces."""
    fd = os.memfd_create("recording")
    with os.fdopen(fd, "r+b") as file:
        sink = RecordingSink(LineWriter(fd, "recording"), START)
        assert isinstance(sink, RecordSink)
        for piece in pieces:
            match piece:
                case RingFacts():
                    sink.begin(piece)
                case RingBatch():
                    sink.take(piece)
                case _:
                    sink.event(piece)
        sink.close()
        file.seek(0)
        return file.read()


def calls_of(batch: RingBatch) -> list[RingCall]:
    return batch.planned(PLANS).tuples(RingCall, unpack_stack)


def test_all_events_come_back() -> None:
    assert {type(event) for event in ALL_EVENTS} == set(EVENTS)
    recording = Recording(io.BytesIO(recorded(ALL_EVENTS)))
    assert recording.start == START
    back = list(recording.contents())
    assert [type(event) for event in back] == [type(event) for event in ALL_EVENTS]
    call = back[0]
    assert isinstance(call, SyscallEvent)
    assert call._replace(args=tuple(call.args)) == ALL_EVENTS[0]
    assert tuple(back[1:]) == ALL_EVENTS[1:]
    assert not recording.cut_short


def test_records_come_back_with_their_threads() -> None:
    batch = batch_of([READ, OPEN])
    batch.number_threads({9: 900, 7: 7}.__getitem__)
    facts, back = Recording(io.BytesIO(recorded([FACTS, batch]))).contents()
    assert facts == FACTS
    assert isinstance(back, RingBatch)
    assert calls_of(back) == calls_of(batch)
    assert back.tids == [900, 7]


def test_records_without_what_is_empty_are_the_same() -> None:
    long = READ._replace(stack=tuple(range(1, 17)), data=(b"a" * 200, b"b" * 56))
    batch = batch_of([long, READ._replace(stack=(), data=(b"", b"")), OPEN])
    (back,) = Recording(io.BytesIO(recorded([batch]))).contents()
    assert isinstance(back, RingBatch)
    assert calls_of(back) == calls_of(batch)


def test_a_file_that_is_cut_short_can_be_read() -> None:
    whole = recorded([FACTS, batch_of([READ, OPEN]), LossEvent(8, 1000)])
    before = len(recorded([]))
    counts = set()
    for size in range(len(whole) + 1):
        try:
            recording = Recording(io.BytesIO(whole[:size]))
        except TraceFormatError:
            assert size < before
            continue
        read = list(recording.contents())
        counts.add(sum(piece.size for piece in read if isinstance(piece, RingBatch)))
        assert size < len(whole) or not recording.cut_short
    assert counts == {0, 1, 2}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_told(data: st.DataObject) -> None:
    damaged = bytearray(recorded([FACTS, batch_of([READ, OPEN]), *ALL_EVENTS]))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        for piece in Recording(io.BytesIO(bytes(damaged))).contents():
            if isinstance(piece, RingBatch):
                piece.planned(PLANS).calls().tuples(RingCall, unpack_stack)
    except TraceFormatError:
        pass


def test_what_was_recorded_is_chosen_from(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "calls", tmp_path / "text"
    path.write_bytes(recorded([FACTS, batch_of([READ, OPEN]), *ALL_EVENTS]))
    replay(str(path), TraceOptions(output=str(out), filters=("openat",), events=frozenset({"exit"})))
    lines = out.read_text().splitlines()
    assert lines[0].startswith('openat(AT_FDCWD, "/no/file", O_RDONLY)')
    assert "= -1 ENOENT" in lines[0]
    assert not any("read(" in line or "goroutine" in line for line in lines)
    replay(str(path), TraceOptions(output=str(out), stacks=True))
    text = out.read_text()
    assert 'read(3, "hello", 64)' in text
    assert "goroutine 18 blocks" in text
    assert "/nowhere/main: No such file or directory" in capfd.readouterr().err
    with pytest.raises(FilterError, match="waits were not recorded"):
        replay(str(path), TraceOptions(form="summary", by="goroutine", events=frozenset({"block"})))


def test_what_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    path.write_text("openat(...)\n")
    with pytest.raises(TraceFormatError, match="no recording"):
        replay(str(path), TraceOptions())
    path.write_bytes(b"ptrecord\x02\0\0\0")
    with pytest.raises(TraceFormatError, match="version 2"):
        replay(str(path), TraceOptions())
    with pytest.raises(TraceFormatError, match="cannot read"):
        replay(str(tmp_path / "none"), TraceOptions())
