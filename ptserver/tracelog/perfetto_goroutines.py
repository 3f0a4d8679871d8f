"""Draws what becomes of goroutines: on each one's track what it does, on each thread's track which one it runs.

    goroutine's track     running | chan receive | runnable | running ...     calls lie inside `running`
    thread's track        goroutine 18 | goroutine 1 ...
    arrows                from where a goroutine is unblocked or created to where it runs next
    garbage collector     GC, with `mark termination` in it; and when the world stood still

A slice's name is what the goroutine waits for. The first slice of a track begins with its first event.
"""

from ptserver.tracelog.events import GcEvent, GoEvent
from ptserver.tracelog.perfetto_packets import BEGIN, INSTANT, PacketWriter
from ptserver.tracelog.protobuf import fixed64_field

_CATEGORY = "goroutine"
#: How many goroutines' last states are remembered.
_MAX_OPEN = 1 << 16

# Fields of TrackEvent.
_FLOW = 47
_ENDING_FLOW = 48


class GoroutineSlices:
    """Writes the slices of goroutines' events."""

    def __init__(self, packets: PacketWriter) -> None:
        self._packets = packets
        self._open: set[tuple[int, int]] = set()
        self._running: dict[tuple[int, int], tuple[int, int]] = {}
        self._flows: dict[tuple[int, int], int] = {}
        self._next_flow = 1
        self._phases: set[tuple[int, bool]] = set()

    def event(self, event: GoEvent) -> None:
        """Draw an event of a goroutine."""
        if event.goid is None:
            return  # it never ran, so nothing of it is seen
        if max(len(self._open), len(self._flows)) > _MAX_OPEN:
            self._open.clear()
            self._flows.clear()
        who = (event.pid, event.goid)
        match event.what:
            case "create" | "unblock":
                self._mark(event)
                if event.what == "unblock":
                    self._change(who, "runnable", event.start_ns, [])
            case "start":
                self._leave_thread(event)
                flow = self._flows.pop(who, None)
                arrow = [fixed64_field(_ENDING_FLOW, flow)] if flow is not None else []
                self._change(who, "running", event.start_ns, arrow)
                thread = self._packets.thread(event.pid, event.tid)
                self._packets.track_event(BEGIN, thread, _CATEGORY, f"goroutine {event.goid}", event.start_ns)
                self._running[event.pid, event.tid] = who
            case "block":
                notes = [self._packets.note("channel", f"{event.channel:#x}")] if event.channel else []
                if event.channels:
                    shown = [f"{channel:#x}" for channel in event.channels]
                    notes.append(self._packets.note("channels", shown))
                if event.stack:
                    notes.append(self._packets.stack(event.stack))
                name = "runnable" if event.reason in ("preempted", "yielded") else event.reason
                self._change(who, name, event.start_ns, notes)
                self._leave_thread(event)
            case "exit":
                self._end(who, event.start_ns)
                self._leave_thread(event)

    def gc(self, event: GcEvent) -> None:
        """Draw a phase of the collector."""
        world = event.phase.endswith("the world")
        track = self._packets.collector(event.pid, world=world)
        key = (event.pid, world)
        if event.phase == "mark termination":
            self._packets.track_event(INSTANT, track, "gc", event.phase, event.start_ns)
            return
        if key in self._phases:
            self._phases.discard(key)
            self._packets.end(track, event.start_ns)
        if event.phase in ("start", "stop the world"):
            self._phases.add(key)
            name = "GC" if event.phase == "start" else "stopped"
            self._packets.track_event(BEGIN, track, "gc", name, event.start_ns)

    def _mark(self, event: GoEvent) -> None:
        """Draw where a goroutine is created or unblocked, with an arrow to where it runs."""
        assert event.goid is not None
        flow = self._flows[event.pid, event.goid] = self._next_flow
        self._next_flow += 1
        packets = self._packets
        track = (
            packets.thread(event.pid, event.tid)
            if event.by is None
            else packets.goroutine(event.pid, event.by)
        )
        notes = [fixed64_field(_FLOW, flow)]
        if event.function:
            notes.append(packets.note("function", event.function))
        if event.stack:
            notes.append(packets.stack(event.stack))
        name = f"{'creates' if event.what == 'create' else 'unblocks'} goroutine {event.goid}"
        packets.track_event(INSTANT, track, _CATEGORY, name, event.start_ns, notes)

    def _change(self, who: tuple[int, int], name: str, at_ns: int, notes: list[bytes]) -> None:
        self._end(who, at_ns)
        self._open.add(who)
        self._packets.track_event(BEGIN, self._packets.goroutine(*who), _CATEGORY, name, at_ns, notes)

    def _end(self, who: tuple[int, int], at_ns: int) -> None:
        if who in self._open:
            self._open.discard(who)
            self._packets.end(self._packets.goroutine(*who), at_ns)

    def _leave_thread(self, event: GoEvent) -> None:
        if self._running.pop((event.pid, event.tid), None) is not None:
            self._packets.end(self._packets.thread(event.pid, event.tid), event.start_ns)
