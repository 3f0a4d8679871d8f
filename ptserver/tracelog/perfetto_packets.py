"""The packets of a Perfetto trace: tracks that are described when they are first used, and interned names.

Thread rules: as `TraceSink`.

Source: protos/perfetto/trace/ in Perfetto: trace_packet.proto, track_event/*.proto, interned_data.proto
"""

import os
from collections.abc import Iterable
from typing import Any

from ptserver.tracelog.events import Frame, TraceStart
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.protobuf import bytes_field, number_field, text_field, varint

#: How many tracks, and how many interned texts and stacks, are remembered.
_MAX_TRACKS = 1 << 16
_MAX_INTERNED = 1 << 15

# Fields of TracePacket; clock_snapshot is 6, sequence_flags 13, track_descriptor 60.
_SEQUENCE = number_field(10, 1)
NEEDS_STATE = _SEQUENCE + number_field(13, 2)
_STATE_CLEARED = _SEQUENCE + number_field(13, 1)
TIMESTAMP = varint(8 << 3)

# BuiltinClock
_REALTIME = 1
_MONOTONIC = 3

# Fields of InternedData, whose messages all are (1: iid, 2: text).
_CATEGORIES = 1
_EVENT_NAMES = 2
_ANNOTATION_NAMES = 3
_STRINGS = 29

# TrackEvent.type
BEGIN = number_field(9, 1)
END = number_field(9, 2)
INSTANT = number_field(9, 3)

# What a track's uuid begins with; its other 62 bits are pid (22, as PID_MAX_LIMIT) and a tid or goid (40).
_PROCESS = 0
_THREAD = 1
_GOROUTINE = 2
_OTHER = 3
#: Numbers of those of the last kind.
_GOROUTINES_OF_PROCESS = 1
_LOSSES = 2
_COLLECTOR = 3
_WORLD = 4


class Track:
    """A track that was described. uuid: its field in `TrackEvent`; end: what follows the time in a packet that ends a
    slice; busy_ns: when its last slice ended.
    """

    __slots__ = ("busy_ns", "end", "uuid")

    def __init__(self, uuid: int) -> None:
        self.uuid = number_field(11, uuid)
        self.end = NEEDS_STATE + bytes_field(11, END + self.uuid)
        self.busy_ns = 0


class PacketWriter:
    """Writes packets, and knows which tracks and names were written before."""

    def __init__(self, writer: LineWriter, start: TraceStart) -> None:
        self._writer = writer
        self._program = start.program
        self._program_pid = start.pid
        self._tracks: dict[int, Track] = {}
        self._iids: dict[tuple[int, str], int] = {}
        self._stacks: dict[tuple[Frame, ...], bytes] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        self._note_names: dict[str, bytes] = {}
        self._new = b""
        self.packet(bytes_field(6, _clocks(start)) + _SEQUENCE)
        self.clear_state()

    def forget_if_full(self) -> bool:
        """Forget all names if they are too many; return whether that was so."""
        if len(self._iids) + len(self._stacks) <= _MAX_INTERNED:
            return False
        self.clear_state()
        return True

    def take_new(self) -> bytes:
        """Return the field with the names that were interned since the last call; the next packet must have it."""
        new = bytes_field(12, self._new) if self._new else b""
        self._new = b""
        return new

    def packet(self, packet: bytes) -> None:
        """Write a packet."""
        self._writer.write(b"\x0a" + varint(len(packet)) + packet)

    def track_event(
        self,
        kind: bytes,
        track: Track,
        category: str,
        name: str,
        at_ns: int,
        notes: Iterable[bytes] = (),
    ) -> None:
        """Write a `TrackEvent`: `BEGIN` or `INSTANT`. notes: more fields of it."""
        event = bytes_field(11, b"".join((kind, track.uuid, self.head(category, name), *notes)))
        new = self.take_new()
        self.packet(b"".join((TIMESTAMP, varint(at_ns), NEEDS_STATE, new, event)))

    def end(self, track: Track, at_ns: int) -> None:
        """End the slice of a track that began last."""
        self.packet(TIMESTAMP + varint(at_ns) + track.end)

    def clear_state(self) -> None:
        """Forget all names, and say so to the reader."""
        self._iids.clear()
        self._stacks.clear()
        self._heads.clear()
        self._note_names.clear()
        defaults = number_field(58, _MONOTONIC)  # timestamp_clock_id of all packets that follow
        self.packet(_STATE_CLEARED + bytes_field(59, defaults))

    def iid(self, kind: int, text: str) -> int:
        """Return the number of a text of one kind of interned data."""
        iid = self._iids.get((kind, text))
        if iid is None:
            iid = self._iids[kind, text] = len(self._iids) + 1
            self._new += bytes_field(kind, number_field(1, iid) + text_field(2, text))
        return iid

    def note(self, name: str, value: Any) -> bytes:
        """Return an annotation, as a field of `TrackEvent`."""
        return bytes_field(4, self.entry(name, value))

    def entry(self, name: str, value: Any) -> bytes:
        """Return the content of an annotation."""
        return self.note_name(name) + self.value(value)

    def note_name(self, name: str) -> bytes:
        """Return the field of an annotation that names it."""
        field = self._note_names.get(name)
        if field is None:
            field = self._note_names[name] = number_field(1, self.iid(_ANNOTATION_NAMES, name))
        return field

    def head(self, category: str, name: str) -> bytes:
        """Return the fields of `TrackEvent` that name it."""
        head = self._heads.get((category, name))
        if head is None:
            category_field = number_field(3, self.iid(_CATEGORIES, category))
            head = category_field + number_field(10, self.iid(_EVENT_NAMES, name))
            self._heads[category, name] = head
        return head

    def value(self, value: Any) -> bytes:
        """Return the value fields of a `DebugAnnotation`."""
        if value is None:
            return number_field(7, 0)  # a null pointer
        if type(value) is int:
            return number_field(4 if value < 1 << 63 else 3, value)
        if isinstance(value, dict) and value:
            return b"".join(bytes_field(11, self.entry(name, part)) for name, part in value.items())
        if isinstance(value, list | tuple) and value:
            return b"".join(bytes_field(12, self.value(part)) for part in value)
        return text_field(6, str(value))  # an empty list too: without parts an annotation has no value

    def stack(self, stack: tuple[Frame, ...]) -> bytes:
        """Return the annotation with a stack."""
        note = self._stacks.get(stack)
        if note is None:
            name = self.note_name("stack")
            iids = (self.iid(_STRINGS, _frame_text(frame)) for frame in stack)
            values = b"".join(bytes_field(12, number_field(17, iid)) for iid in iids)
            note = self._stacks[stack] = bytes_field(4, name + values)
        return note

    def process(self, pid: int) -> Track:
        """Return the track of a process."""
        uuid = _uuid(_PROCESS, pid, pid)
        track = self._tracks.get(uuid)
        if track is not None:
            return track
        self._program_pid = self._program_pid or pid
        process = number_field(1, pid)
        if pid == self._program_pid and self._program:
            process += b"".join(text_field(2, word) for word in self._program)
            process += text_field(6, os.path.basename(self._program[0]))
        return self.describe(uuid, bytes_field(3, process))

    def thread(self, pid: int, tid: int) -> Track:
        """Return the track of a thread."""
        uuid = _uuid(_THREAD, pid, tid)
        track = self._tracks.get(uuid)
        if track is not None:
            return track
        self.process(pid)
        thread = number_field(1, pid) + number_field(2, tid) + text_field(5, "thread")
        return self.describe(uuid, bytes_field(4, thread))

    def goroutine(self, pid: int, goid: int) -> Track:
        """Return the track of a goroutine."""
        uuid = _uuid(_GOROUTINE, pid, goid)
        track = self._tracks.get(uuid)
        if track is not None:
            return track
        self.process(pid)
        group = _uuid(_OTHER, pid, _GOROUTINES_OF_PROCESS)
        if group not in self._tracks:
            parent = number_field(5, _uuid(_PROCESS, pid, pid))
            self.describe(group, text_field(2, "goroutines") + parent + number_field(11, 3))  # in given order
        rank = number_field(12, min(goid, (1 << 31) - 1))
        return self.describe(uuid, text_field(2, f"goroutine {goid}") + number_field(5, group) + rank)

    def losses(self) -> Track:
        """Return the track that says where events are missing."""
        uuid = _uuid(_OTHER, 0, _LOSSES)
        return self._tracks.get(uuid) or self.describe(uuid, text_field(2, "events lost"))

    def collector(self, pid: int, *, world: bool) -> Track:
        """Return the track of Go's collector, or the one that says when the *world* stood still."""
        uuid = _uuid(_OTHER, pid, _WORLD if world else _COLLECTOR)
        track = self._tracks.get(uuid)
        if track is not None:
            return track
        parent = number_field(5, self._process_uuid(pid))
        name = "stopped world" if world else "garbage collector"
        return self.describe(uuid, text_field(2, name) + parent)

    def _process_uuid(self, pid: int) -> int:
        self.process(pid)
        return _uuid(_PROCESS, pid, pid)

    def describe(self, uuid: int, descriptor: bytes) -> Track:
        """Write a track's descriptor and return the track."""
        if len(self._tracks) >= _MAX_TRACKS:
            self._tracks.clear()
        self.packet(_SEQUENCE + bytes_field(60, number_field(1, uuid) + descriptor))
        track = self._tracks[uuid] = Track(uuid)
        return track


def _uuid(kind: int, pid: int, number: int) -> int:
    return kind << 62 | (pid & (1 << 22) - 1) << 40 | number & (1 << 40) - 1


def _clocks(start: TraceStart) -> bytes:
    readings = ((_MONOTONIC, start.monotonic_ns), (_REALTIME, start.realtime_ns))
    clocks = b"".join(
        bytes_field(1, number_field(1, clock) + number_field(2, now)) for clock, now in readings
    )
    return clocks + number_field(2, _MONOTONIC)  # primary_trace_clock


def _frame_text(frame: Frame) -> str:
    name = frame.function or hex(frame.pc)
    return f"{name} {frame.file}:{frame.line}" if frame.file else name
