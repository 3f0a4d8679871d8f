"""The trace for Perfetto, read with Perfetto's own classes, its interned data resolved as its parser does."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (  # type: ignore[import-untyped]
    BuiltinClock,
    DebugAnnotation,
    Trace,
    TracePacket,
    TrackEvent,
)

from ptserver.tracelog import perfetto_packets
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
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.perfetto import PerfettoSink
from ptserver.tracelog.protobuf import split_fields
from stepping.syscalls import SYSCALLS

START = TraceStart(("/bin/main", "\udcff"), "amd64", 1_000_000_000, 1_764_000_000_000_000_000, pid=7)
INFO = struct.pack("<iiiiiI", 17, 0, 1, 0, 8, 0).ljust(128, b"\0")
STACK = (Frame("main.f", "/src/main.go", 3, 0x401000), Frame("\udcffg", pc=1), Frame("", pc=0x402000))

BEGIN, END, INSTANT = (
    TrackEvent.TYPE_SLICE_BEGIN,
    TrackEvent.TYPE_SLICE_END,
    TrackEvent.TYPE_INSTANT,
)


class Seen(NamedTuple):
    """A track event as the viewer shows it."""

    track: str
    at_ns: int
    kind: int
    category: str = ""
    name: str = ""
    notes: Mapping[str, Any] = MappingProxyType({})


class Viewer:
    """Resolves packets as Perfetto's parser does: a reference to what was never interned is a KeyError."""

    def __init__(self) -> None:
        self.tracks: dict[int, str] = {}
        self.clears = 0

    def events(self, packets: Iterable[Any]) -> Iterator[Seen]:
        for packet in packets:
            if packet.sequence_flags & TracePacket.SEQ_INCREMENTAL_STATE_CLEARED:
                self.clears += 1
                self.iids: dict[str, dict[int, str]] = {}
                assert packet.trace_packet_defaults.timestamp_clock_id == BuiltinClock.BUILTIN_CLOCK_MONOTONIC
            for kind, entries in packet.interned_data.ListFields():
                table = self.iids.setdefault(kind.name, {})
                for entry in entries:
                    table[entry.iid] = entry.str.decode() if "string" in kind.name else entry.name
            if packet.HasField("track_descriptor"):
                self._describe(packet.track_descriptor)
            if packet.HasField("track_event"):
                yield self._event(packet)

    def _describe(self, track: Any) -> None:
        name = track.name
        if track.HasField("process"):
            name = f"process {track.process.pid} {track.process.process_name}".strip()
        elif track.HasField("thread"):
            name = f"thread {track.thread.pid}/{track.thread.tid}"
        if track.HasField("parent_uuid"):
            name = f"{self.tracks[track.parent_uuid]} > {name}"
        assert self.tracks.setdefault(track.uuid, name) == name

    def _event(self, packet: Any) -> Seen:
        event, track = packet.track_event, self.tracks[packet.track_event.track_uuid]
        assert packet.sequence_flags == TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        if event.type == END:
            return Seen(track, packet.timestamp, END)
        [category] = event.category_iids
        return Seen(
            track,
            packet.timestamp,
            event.type,
            self.iids["event_categories"][category],
            self.iids["event_names"][event.name_iid],
            self._entries(event.debug_annotations),
        )

    def _entries(self, notes: Iterable[Any]) -> dict[str, Any]:
        return {self.iids["debug_annotation_names"][note.name_iid]: self._value(note) for note in notes}

    def _value(self, note: DebugAnnotation) -> Any:
        if note.dict_entries:
            return self._entries(note.dict_entries)
        if note.array_values:
            return [self._value(part) for part in note.array_values]
        kind = note.WhichOneof("value")
        if kind == "string_value_iid":
            return self.iids["debug_annotation_string_values"][note.string_value_iid]
        return None if kind == "pointer_value" and not note.pointer_value else getattr(note, kind)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.pftrace"


def write(path: Path, events: Iterable[Event]) -> list[Any]:
    sink = PerfettoSink(LineWriter.open(str(path)), START)
    for event in events:
        sink.event(event)
    sink.close()
    return list(Trace.FromString(path.read_bytes()).packet)


def seen(path: Path, *events: Event) -> list[Seen]:
    return list(Viewer().events(write(path, events)))


def call(start_ns: int, duration_ns: int | None, name: str = "sched_yield", **fields: Any) -> SyscallEvent:
    return SyscallEvent(start_ns, duration_ns, 7, 8, name, (0,) * 6, **{"value": 0, **fields})


OPEN = SyscallEvent(
    11, 5, 7, 8, "openat", (2**64 - 100, 4096, 0x80000, 0, 0, 0), ins={1: b"/etc/\xff"}, value=-1, errno=2
)
WRITE = SyscallEvent(
    20, 9, 7, 8, "write", (1, 4096, 2, 0, 0, 0), ins={1: b"hi"}, value=2, goid=34, stack=STACK
)
EVERYTHING: list[Event] = [
    ThreadEvent(10, 7, 8, "created"),
    OPEN,
    WRITE,
    SignalEvent(30, 7, 8, 17, INFO),
    SignalEvent(31, 7, 8, 23),
    StopEvent(32, 7, 8, 20),
    LossEvent(33, 3),
    ExitEvent(34, 7, 7, 0),
    ExitEvent(35, 9, 9, None, 11, core=True),
]


def test_everything_is_on_its_track_with_its_facts(path: Path) -> None:
    thread, process = "thread 7/8", "process 7 main"
    goroutine = f"{process} > goroutines > goroutine 34"
    opened = {
        "dirfd": "AT_FDCWD",
        "path": {"base64": "L2V0Yy//"},
        "flags": ["O_RDONLY", "O_CLOEXEC"],
    }
    result = seen(path, *EVERYTHING)
    frames = ["main.f /src/main.go:3", "\\udcffg", "0x402000"]
    written = {"args": {"fd": 1, "buf": "hi", "count": 2}, "value": 2, "stack": frames, "tid": 8}
    signal = result.pop(7)
    assert signal[:5] == (thread, 30, INSTANT, "signal", "SIGCHLD")
    assert signal.notes["info"]["si_pid"] == 8
    assert result == [
        Seen(thread, 10, INSTANT, "thread", "thread created"),
        Seen(thread, 11, BEGIN, "syscall", "openat", {"args": opened, "value": -1, "errno": "ENOENT"}),
        Seen(thread, 16, END),
        Seen(goroutine, 20, BEGIN, "syscall", "write", written),
        Seen(goroutine, 29, END),
        Seen(thread, 20, BEGIN, "thread", "write", {"goid": 34}),
        Seen(thread, 29, END),
        Seen(thread, 31, INSTANT, "signal", "SIGURG"),
        Seen(thread, 32, INSTANT, "signal", "stopped by SIGTSTP"),
        Seen("events lost", 33, INSTANT, "loss", "events lost", {"lost": 3}),
        Seen(process, 34, INSTANT, "process", "exited with 0"),
        Seen("process 9", 35, INSTANT, "process", "killed by SIGSEGV (core dumped)"),
    ]


def test_first_packet_dates_the_trace_s_clock(path: Path) -> None:
    snapshot = write(path, [])[0].clock_snapshot
    clocks = {clock.clock_id: clock.timestamp for clock in snapshot.clocks}
    assert snapshot.primary_trace_clock == BuiltinClock.BUILTIN_CLOCK_MONOTONIC
    assert clocks == {
        BuiltinClock.BUILTIN_CLOCK_MONOTONIC: START.monotonic_ns,
        BuiltinClock.BUILTIN_CLOCK_REALTIME: START.realtime_ns,
    }


def test_process_says_what_it_runs(path: Path) -> None:
    [process] = [
        p.track_descriptor.process for p in write(path, [OPEN]) if p.track_descriptor.HasField("process")
    ]
    assert list(process.cmdline) == ["/bin/main", "\\udcff"]


def test_goroutines_are_ordered_by_number(path: Path) -> None:
    events = [call(at, 1, goid=goid) for at, goid in enumerate((100, 2, 2**40 - 1))]
    tracks = [packet.track_descriptor for packet in write(path, events)]
    ranks = {track.name: track.sibling_order_rank for track in tracks if track.HasField("sibling_order_rank")}
    assert ranks == {"goroutine 100": 100, "goroutine 2": 2, "goroutine 1099511627775": 2**31 - 1}
    [group] = [track for track in tracks if track.name == "goroutines"]
    assert group.child_ordering == group.EXPLICIT


def test_calls_that_did_not_end_stay_open_and_those_nobody_measured_are_instants(path: Path) -> None:
    events = seen(path, call(1, None, unfinished=True, value=None), call(2, None, "getpid"))
    assert [(event.kind, event.name) for event in events] == [(BEGIN, "sched_yield"), (INSTANT, "getpid")]


def test_slices_of_a_track_never_overlap(path: Path) -> None:
    events = seen(path, call(10, 10), call(19, 5, goid=3), call(23, 0))
    thread = [(event.at_ns, event.kind) for event in events if event.track == "thread 7/8"]
    assert thread == [(10, BEGIN), (20, END), (20, BEGIN), (25, END), (25, BEGIN), (25, END)]
    goroutine = [(event.at_ns, event.kind) for event in events if "goroutine" in event.track]
    assert goroutine == [(19, BEGIN), (24, END)]


@pytest.mark.parametrize("word", [0, 2**63, 2**64 - 1])
def test_any_call_with_any_number_can_be_shown(path: Path, word: int) -> None:
    names = [*SYSCALLS, "syscall_0x1f5"]
    calls = [SyscallEvent(1, 1, 7, 8, name, (word,) * 6, value=-(2**63)) for name in names]
    assert [event.name for event in seen(path, *calls) if event.kind == BEGIN] == names


def test_file_cut_short_is_good_up_to_there(path: Path) -> None:
    whole = write(path, EVERYTHING)
    content = path.read_bytes()
    counts = set()
    for size in range(len(content) + 1):
        packets = list(packets_of(content[:size]))
        assert packets == whole[: len(packets)]
        list(Viewer().events(packets))
        counts.add(len(packets))
    assert counts == set(range(len(whole) + 1))


def packets_of(content: bytes) -> Iterator[Any]:
    """As Perfetto's tokenizer: packet by packet, an incomplete last one is left out."""
    try:
        for field, packet in split_fields(content):
            assert field == 1
            yield TracePacket.FromString(packet)
    except TraceFormatError:
        return


def test_events_are_in_the_file_before_the_end(path: Path) -> None:
    sink = PerfettoSink(LineWriter.open(str(path)), START)
    sink.event(OPEN)
    sink.flush()
    assert Trace.FromString(path.read_bytes()).packet[-1].timestamp == 16
    sink.close()


def test_memory_is_bounded_and_what_was_forgotten_is_written_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perfetto_packets, "_MAX_TRACKS", 10)
    monkeypatch.setattr(perfetto_packets, "_MAX_INTERNED", 20)
    sink = PerfettoSink(LineWriter.open(str(path)), START)
    for number in range(300):
        stack = (Frame(f"main.f{number % 50}"),)
        sink.event(call(number, 1, f"syscall_{number % 70}", goid=number % 40, stack=stack))
        assert len(sink._packets._tracks) <= 10
        assert len(sink._packets._iids) + len(sink._packets._stacks) <= 20 + 10
    sink.close()
    viewer = Viewer()
    events = [
        event
        for event in viewer.events(Trace.FromString(path.read_bytes()).packet)
        if event.kind == BEGIN and event.category == "syscall"
    ]
    assert [(event.track.rpartition(" ")[2], event.name, event.notes["stack"]) for event in events] == [
        (str(n % 40), f"syscall_{n % 70}", [f"main.f{n % 50}"]) for n in range(300)
    ]
    assert viewer.clears > 10
