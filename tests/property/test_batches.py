"""Calls that are written many at once are written as one by one, whatever they are."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Frame, TraceSink, TraceStart
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.selection import SelectingSink, Selection
from ptserver.tracelog.sinks import Form, open_sink
from ptserver.tracelog.text import TextOptions
from stepping.ring import unpack_stack
from stepping.ring_batch import RingBatch
from tests.ringrecords import PLANS, Record, batch_of

REGISTERS = st.integers(0, 2**64 - 1) | st.integers(0, 80) | st.sampled_from([2**64 - 100, 2**31, 2**63, 577])
VALUES = (
    st.integers(-(2**63), 2**63 - 1) | st.integers(-140, 300) | st.sampled_from([-512, -516, -4095, -4096])
)
CONTENTS = (
    st.binary(max_size=120)
    | st.text(max_size=30).map(str.encode)
    | st.sampled_from([b"/etc/hosts", b'"quoted\\"', b"\x7f", b"caf\xc3", b"x" * 33, "ü".encode() * 40])
)
RECORDS = st.builds(
    Record,
    st.sampled_from([plan.row.name for plan in PLANS.values()])
    | st.sampled_from(["read", "openat", "write", "pread64", "fstat", "close", "fcntl", "rename", "futex"]),
    st.tuples(*[REGISTERS] * 6),
    VALUES,
    st.sampled_from([0, 1, 17, 2**40]),
    st.sampled_from([7, 8, 9]),
    st.integers(2**30, 2**30 + 5000),
    st.integers(0, 3000),
    st.lists(st.integers(1, 2**64 - 1), max_size=4),
    st.tuples(CONTENTS, CONTENTS),
)
START = TraceStart(("./main",), "amd64", 0, 0, 7)


def frames_of(stack: bytes) -> tuple[Frame, ...]:
    return tuple(Frame(f"main.f{pc % 3}", "/src/main.go", pc % 100, pc) for pc in unpack_stack(stack))


def written(
    form: Form, batches: list[RingBatch], give: Callable[[TraceSink, CallBatch], Any], *, stacks: bool
) -> bytes:
    fd = os.memfd_create("trace")
    with os.fdopen(fd, "r+b") as file:
        sink = open_sink(form, f"/proc/self/fd/{fd}", START, TextOptions(durations=True, stacks=stacks))
        for batch in batches:
            give(sink, CallBatch(batch, frames_of if stacks else None))
        sink.close()
        return file.read()


def one_by_one(sink: TraceSink, batch: CallBatch) -> None:
    for event in batch.events():
        sink.event(event)


def all_at_once(sink: TraceSink, batch: CallBatch) -> None:
    sink.calls(batch)


BATCHES = st.lists(st.lists(RECORDS, min_size=1, max_size=12).map(batch_of), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(batches=BATCHES, stacks=st.booleans(), form=st.sampled_from(["json", "text", "summary-json"]))
def test_the_same_is_written(batches: list[RingBatch], stacks: bool, form: Form) -> None:
    expected = written(form, batches, one_by_one, stacks=stacks)
    assert written(form, batches, all_at_once, stacks=stacks) == expected


@settings(max_examples=20, deadline=None)
@given(batches=BATCHES, stacks=st.booleans())
def test_the_same_slices_are_drawn(batches: list[RingBatch], stacks: bool) -> None:
    drawn = [slices(written("perfetto", batches, give, stacks=stacks)) for give in (one_by_one, all_at_once)]
    assert drawn[0] == drawn[1]


def slices(content: bytes) -> list[Any]:
    """Return the events of a trace with the names that they refer to."""
    trace = Trace()
    trace.ParseFromString(content)
    names: dict[tuple[str, int], str] = {}
    found = []
    for packet in trace.packet:
        for field, entries in packet.interned_data.ListFields():
            for entry in entries:
                names[field.name, entry.iid] = getattr(entry, "name", "") or entry.str.decode()

        def plain(note: Any) -> Any:
            value = note.WhichOneof("value")
            content: Any = getattr(note, value) if value else None
            if value == "string_value_iid":
                content = names["debug_annotation_string_values", content]
            parts = [plain(part) for part in (*note.dict_entries, *note.array_values)]
            return names.get(("debug_annotation_names", note.name_iid)), value, content, parts

        if packet.HasField("track_event"):
            event = packet.track_event
            kinds = [names["event_categories", iid] for iid in event.category_iids]
            name = names.get(("event_names", event.name_iid))
            notes = [plain(note) for note in event.debug_annotations]
            found.append((packet.timestamp, event.type, event.track_uuid, kinds, name, notes))
    return found


SELECTIONS = st.builds(
    Selection.parse,
    st.lists(st.sampled_from([0, 1, 17]), max_size=2),
    st.none() | st.sampled_from(["f1", "main", "nothing"]),
    st.lists(st.sampled_from(["/etc/*", "caf*"]), max_size=1),
    st.none() | st.sampled_from([">1us", "<= 500ns"]),
    st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(batches=BATCHES, selection=SELECTIONS)
def test_the_same_is_selected(batches: list[RingBatch], selection: Selection) -> None:
    def selecting(give: Callable[[TraceSink, CallBatch], None]) -> bytes:
        sinks: dict[int, SelectingSink] = {}

        def through(sink: TraceSink, batch: CallBatch) -> None:
            give(sinks.setdefault(id(sink), SelectingSink(sink, selection)), batch)

        return written("json", batches, through, stacks=True)

    assert selecting(all_at_once) == selecting(one_by_one)


def test_a_writer_is_not_disturbed_by_times_of_different_size() -> None:
    batch = batch_of([Record("close", start=2**14 - 2, duration=4, goid=3), Record("close", start=2**40)])
    drawn = [slices(written("perfetto", [batch], give, stacks=False)) for give in (one_by_one, all_at_once)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 6


def test_line_writer_is_given_whole_lines() -> None:
    writes: list[bytes] = []

    class Writer(LineWriter):
        def write(self, line: bytes) -> None:
            writes.append(line)

    from ptserver.tracelog.jsonl import JsonLinesSink

    JsonLinesSink(Writer(2, "nothing"), START).calls(CallBatch(batch_of([Record("close")] * 150)))
    assert all(line.endswith(b"\n") for line in writes)
    assert sum(line.count(b"\n") for line in writes) == 151
