"""Events of goroutines in each format."""

from pathlib import Path

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace  # type: ignore[import-untyped]

from ptserver.tracelog.events import Event, Frame, GcEvent, GoEvent, SyscallEvent, TraceStart
from ptserver.tracelog.jsonl import GcLine, GoroutineLine, read_lines
from ptserver.tracelog.sinks import Form, open_sink

START = TraceStart(("./main",), "amd64", 0, 0, 7)
WAIT = (Frame("runtime.gopark", "/go/src/runtime/proc.go", 9, 1), Frame("main.worker", "/main.go", 14, 2))
MAKE = (Frame("main.main", "/main.go", 25, 3),)
EVENTS: list[Event] = [
    GoEvent(10, 7, 7, "create", 18, 1, function="main.worker", stack=MAKE),
    GoEvent(20, 7, 8, "start", 18),
    SyscallEvent(22, 3, 7, 8, "close", (3, 0, 0, 0, 0, 0), value=0, goid=18),
    GoEvent(30, 7, 8, "block", 18, reason="chan receive", channel=0xC000, stack=WAIT),
    GoEvent(40, 7, 7, "unblock", 18, 1, stack=MAKE),
    GoEvent(50, 7, 7, "start", 18),
    GcEvent(55, 7, 7, "start", 18),
    GcEvent(56, 7, 7, "mark termination", 18),
    GcEvent(57, 7, 7, "sweep", 18),
    GoEvent(60, 7, 7, "exit", 18),
]


def written(folder: Path, form: Form) -> bytes:
    path = folder / form
    sink = open_sink(form, str(path), START)
    for event in EVENTS:
        sink.event(event)
    sink.close()
    return path.read_bytes()


def test_text(tmp_path: Path) -> None:
    assert written(tmp_path, "text").decode().splitlines() == [
        "[7 g1] --- goroutine 18 created: main.worker() at main.main /main.go:25 ---",
        "[8] --- goroutine 18 runs ---",
        "[8 g18] close(3)                                = 0",
        "[8] --- goroutine 18 blocks: chan receive 0xc000 at main.worker /main.go:14 ---",
        "[7 g1] --- goroutine 18 unblocked at main.main /main.go:25 ---",
        "[7] --- goroutine 18 runs ---",
        "[7 g18] --- gc: start ---",
        "[7 g18] --- gc: mark termination ---",
        "[7 g18] --- gc: sweep ---",
        "[7] --- goroutine 18 exits ---",
    ]


def test_json(tmp_path: Path) -> None:
    lines = list(read_lines(written(tmp_path, "json").splitlines(keepends=True)))
    goroutines = [line for line in lines if isinstance(line, GoroutineLine)]
    assert [line.event for line in goroutines] == ["create", "start", "block", "unblock", "start", "exit"]
    assert goroutines[0].function == "main.worker"
    assert (goroutines[2].reason, goroutines[2].channel) == ("chan receive", "0xc000")
    assert [frame.line for frame in goroutines[2].stack] == [9, 14]
    assert [line.phase for line in lines if isinstance(line, GcLine)] == [
        "start",
        "mark termination",
        "sweep",
    ]


def test_perfetto(tmp_path: Path) -> None:
    packets = Trace.FromString(written(tmp_path, "perfetto")).packet
    tracks = {
        packet.track_descriptor.uuid: packet.track_descriptor.name
        for packet in packets
        if packet.HasField("track_descriptor")
    }
    uuids = {packet.track_descriptor.uuid: packet.track_descriptor for packet in packets}
    names: dict[int, str] = {}
    slices: dict[str, list[tuple[str, int, int]]] = {}
    stacks: dict[int, list[tuple[str, int]]] = {}
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    events = []
    for packet in packets:
        names |= {entry.iid: entry.name for entry in packet.interned_data.event_names}
        if packet.HasField("track_event"):
            events.append((packet.timestamp, packet.track_event, names.get(packet.track_event.name_iid, "")))
    for at, event, name in sorted(events, key=lambda item: item[0]):  # as the viewer does
        track = event.track_uuid
        label = tracks[track] or f"thread {uuids[track].thread.tid}"
        match event.type:
            case 1:
                stacks.setdefault(track, []).append((name, at))
                starts |= dict.fromkeys(event.terminating_flow_ids, at)
            case 2:
                begun, since = stacks[track].pop()
                slices.setdefault(label, []).append((begun, since, at))
            case 3:
                ends |= dict.fromkeys(event.flow_ids, at)
    assert slices["goroutine 18"] == [
        ("close", 22, 25),
        ("running", 20, 30),
        ("chan receive", 30, 40),
        ("runnable", 40, 50),
        ("running", 50, 60),
    ]
    assert slices["thread 8"] == [("close", 22, 25), ("goroutine 18", 20, 30)]
    assert slices["thread 7"] == [("goroutine 18", 50, 60)]
    assert slices["garbage collector"] == [("GC", 55, 57)]
    assert not any(stacks.values())
    # Arrows: from the go statement and from where it was unblocked, to where it ran.
    assert [(ends[flow], starts[flow]) for flow in sorted(ends)] == [(10, 20), (40, 50)]
