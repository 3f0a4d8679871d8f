"""Writes a trace as Perfetto's viewer reads it (ui.perfetto.dev): slices on a track per goroutine and per thread.

    file    = *packet                           appended one by one, so a file cut short is good up to there
    packet  = field 1 of `Trace`: a `TracePacket`
    first     clock_snapshot                    the trace's clock is the monotonic one; the date of one moment
    then      a start of interned data, and for each event
              [track_descriptor of process, thread or goroutine]    when it is first seen
              track_event: slice begin, slice end, or instant       with the interned data that it is first to use

Calls are slices of category `syscall` on the track of their goroutine, or of their thread where no goroutine is
known, with `args`, `value`, `errno`, `tid` and `stack` as annotations. A call with a goroutine shows on its thread's
track too, as a slice of category `thread` with the `goid` alone. All else are instants.

Memory is bounded: when a table of what was written already is full, it is forgotten, and what is needed is
written anew, which the format allows.

Thread rules: as `TraceSink`.

Source: protos/perfetto/trace/ in Perfetto: trace_packet.proto, track_event/*.proto, interned_data.proto
"""

import os
from typing import Any

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
    row_of,
)
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.protobuf import bytes_field, number_field, text_field, varint
from stepping.syscalls.decode import DEFAULT_LIMIT, decode_call
from stepping.syscalls.decode_buffers import find_buffer
from stepping.syscalls.decode_scalars import signal_name
from stepping.syscalls.decode_values import to_plain

#: How many tracks, and how many interned texts and stacks, are remembered.
_MAX_TRACKS = 1 << 16
_MAX_INTERNED = 1 << 15

# Fields of TracePacket; clock_snapshot is 6, sequence_flags 13, track_descriptor 60.
_SEQUENCE = number_field(10, 1)
_NEEDS_STATE = _SEQUENCE + number_field(13, 2)
_STATE_CLEARED = _SEQUENCE + number_field(13, 1)
_TIMESTAMP = varint(8 << 3)

# BuiltinClock
_REALTIME = 1
_MONOTONIC = 3

# Fields of InternedData, whose messages all are (1: iid, 2: text).
_CATEGORIES = 1
_EVENT_NAMES = 2
_ANNOTATION_NAMES = 3
_STRINGS = 29

# TrackEvent.type
_BEGIN = number_field(9, 1)
_END = number_field(9, 2)
_INSTANT = number_field(9, 3)

# What a track's uuid begins with; its other 62 bits are pid (22, as PID_MAX_LIMIT) and a tid or goid (40).
_PROCESS = 0
_THREAD = 1
_GOROUTINE = 2
_OTHER = 3
#: Numbers of those of the last kind.
_GOROUTINES_OF_PROCESS = 1
_LOSSES = 2


class _Track:
    """A track that was described. uuid: its field in `TrackEvent`; end: what follows the time in a packet that ends a
    slice; busy_ns: when its last slice ended.
    """

    __slots__ = ("busy_ns", "end", "uuid")

    def __init__(self, uuid: int) -> None:
        self.uuid = number_field(11, uuid)
        self.end = _NEEDS_STATE + bytes_field(11, _END + self.uuid)
        self.busy_ns = 0


class PerfettoSink:
    """A `TraceSink` that writes Perfetto's format. limit: how many bytes of a buffer are written."""

    def __init__(self, writer: LineWriter, start: TraceStart, *, limit: int = DEFAULT_LIMIT) -> None:
        self._writer = writer
        self._arch = start.arch
        self._limit = limit
        self._program = start.program
        self._program_pid = start.pid
        self._tracks: dict[int, _Track] = {}
        self._iids: dict[tuple[int, str], int] = {}
        self._stacks: dict[tuple[Frame, ...], bytes] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        self._note_names: dict[str, bytes] = {}
        self._new = b""
        self._packet(bytes_field(6, _clocks(start)) + _SEQUENCE)
        self._clear_state()

    def event(self, event: Event) -> None:
        """Write an event."""
        if len(self._iids) + len(self._stacks) > _MAX_INTERNED:
            self._clear_state()
        if type(event) is SyscallEvent:
            self._syscall(event)
        else:
            self._other(event)

    def flush(self) -> None:
        """Write what was kept back."""
        self._writer.flush()

    def close(self) -> None:
        """Write all that is left."""
        self._writer.close()

    def _syscall(self, event: SyscallEvent) -> None:
        start_ns, duration_ns, pid, tid, name, args, ins, outs, value, errno, unfinished, goid, stack = event
        decoded = decode_call(row_of(name), args, ins, outs, value, errno, limit=self._limit, arch=self._arch)
        notes = []
        if decoded["args"]:
            notes.append(self._note("args", decoded["args"]))
        if decoded["value"] is not None:
            notes.append(self._note("value", decoded["value"]))
        if errno:
            notes.append(self._note("errno", decoded["errno"]))
        if stack:
            notes.append(self._stack(stack))
        thread = self._thread(pid, tid)
        if goid is None:
            self._slice(thread, "syscall", name, start_ns, duration_ns, unfinished, notes)
            return
        notes.append(self._note("tid", tid))
        goroutine = self._goroutine(pid, goid)
        self._slice(goroutine, "syscall", name, start_ns, duration_ns, unfinished, notes)
        self._slice(thread, "thread", name, start_ns, duration_ns, unfinished, [self._note("goid", goid)])

    def _other(self, event: Event) -> None:
        match event:
            case SignalEvent():
                decode = find_buffer("siginfo", self._arch) if event.info else None
                info = to_plain(decode(event.info, self._arch), self._limit) if decode else None
                notes = [self._note("info", info)] if info else []
                track = self._thread(event.pid, event.tid)
                self._instant(track, "signal", signal_name(event.signo), event.start_ns, notes)
            case StopEvent():
                name = f"stopped by {signal_name(event.signo)}"
                self._instant(self._thread(event.pid, event.tid), "signal", name, event.start_ns, [])
            case ThreadEvent():
                name = f"thread {event.event}"
                self._instant(self._thread(event.pid, event.tid), "thread", name, event.start_ns, [])
            case ExitEvent():
                how = f"exited with {event.status}"
                if event.status is None:
                    how = f"killed by {signal_name(event.signo)}{' (core dumped)' if event.core else ''}"
                self._instant(self._process(event.pid), "process", how, event.start_ns, [])
            case LossEvent():
                notes = [self._note("lost", event.lost)]
                self._instant(self._losses(), "loss", "events lost", event.start_ns, notes)
            case SyscallEvent():
                self._syscall(event)

    def _slice(
        self,
        track: _Track,
        category: str,
        name: str,
        start_ns: int,
        duration_ns: int | None,
        unfinished: bool,
        notes: list[bytes],
    ) -> None:
        if duration_ns is None and not unfinished:
            self._instant(track, category, name, start_ns, notes)
            return
        # An end closes the slice that began last: clocks of several cores may differ by less than matters,
        # but a call that began before the last one's end would be closed with it.
        start_ns = max(start_ns, track.busy_ns)
        self._track_event(_BEGIN, track, category, name, start_ns, notes)
        if duration_ns is not None:
            track.busy_ns = start_ns + duration_ns
            self._packet(_TIMESTAMP + varint(track.busy_ns) + track.end)

    def _instant(self, track: _Track, category: str, name: str, start_ns: int, notes: list[bytes]) -> None:
        self._track_event(_INSTANT, track, category, name, start_ns, notes)

    def _track_event(
        self, kind: bytes, track: _Track, category: str, name: str, at_ns: int, notes: list[bytes]
    ) -> None:
        event = bytes_field(11, b"".join((kind, track.uuid, self._head(category, name), *notes)))
        new = bytes_field(12, self._new) if self._new else b""
        self._new = b""
        self._packet(b"".join((_TIMESTAMP, varint(at_ns), _NEEDS_STATE, new, event)))

    def _packet(self, packet: bytes) -> None:
        self._writer.write(b"\x0a" + varint(len(packet)) + packet)

    def _clear_state(self) -> None:
        self._iids.clear()
        self._stacks.clear()
        self._heads.clear()
        self._note_names.clear()
        defaults = number_field(58, _MONOTONIC)  # timestamp_clock_id of all packets that follow
        self._packet(_STATE_CLEARED + bytes_field(59, defaults))

    def _iid(self, kind: int, text: str) -> int:
        iid = self._iids.get((kind, text))
        if iid is None:
            iid = self._iids[kind, text] = len(self._iids) + 1
            self._new += bytes_field(kind, number_field(1, iid) + text_field(2, text))
        return iid

    def _note(self, name: str, value: Any) -> bytes:
        """Return an annotation, as a field of `TrackEvent`."""
        return bytes_field(4, self._entry(name, value))

    def _entry(self, name: str, value: Any) -> bytes:
        return self._note_name(name) + self._value(value)

    def _note_name(self, name: str) -> bytes:
        field = self._note_names.get(name)
        if field is None:
            field = self._note_names[name] = number_field(1, self._iid(_ANNOTATION_NAMES, name))
        return field

    def _head(self, category: str, name: str) -> bytes:
        """Return the fields of `TrackEvent` that name it."""
        head = self._heads.get((category, name))
        if head is None:
            category_field = number_field(3, self._iid(_CATEGORIES, category))
            head = category_field + number_field(10, self._iid(_EVENT_NAMES, name))
            self._heads[category, name] = head
        return head

    def _value(self, value: Any) -> bytes:
        """Return the value fields of a `DebugAnnotation`."""
        if value is None:
            return number_field(7, 0)  # a null pointer
        if type(value) is int:
            return number_field(4 if value < 1 << 63 else 3, value)
        if isinstance(value, dict) and value:
            return b"".join(bytes_field(11, self._entry(name, part)) for name, part in value.items())
        if isinstance(value, list | tuple) and value:
            return b"".join(bytes_field(12, self._value(part)) for part in value)
        return text_field(6, str(value))  # an empty list too: without parts an annotation has no value

    def _stack(self, stack: tuple[Frame, ...]) -> bytes:
        note = self._stacks.get(stack)
        if note is None:
            name = self._note_name("stack")
            iids = (self._iid(_STRINGS, _frame_text(frame)) for frame in stack)
            values = b"".join(bytes_field(12, number_field(17, iid)) for iid in iids)
            note = self._stacks[stack] = bytes_field(4, name + values)
        return note

    def _process(self, pid: int) -> _Track:
        uuid = _uuid(_PROCESS, pid, pid)
        track = self._tracks.get(uuid)
        if track is not None:
            return track
        self._program_pid = self._program_pid or pid
        process = number_field(1, pid)
        if pid == self._program_pid and self._program:
            process += b"".join(text_field(2, word) for word in self._program)
            process += text_field(6, os.path.basename(self._program[0]))
        return self._describe(uuid, bytes_field(3, process))

    def _thread(self, pid: int, tid: int) -> _Track:
        uuid = _uuid(_THREAD, pid, tid)
        track = self._tracks.get(uuid)
        if track is not None:
            return track
        self._process(pid)
        thread = number_field(1, pid) + number_field(2, tid) + text_field(5, "thread")
        return self._describe(uuid, bytes_field(4, thread))

    def _goroutine(self, pid: int, goid: int) -> _Track:
        uuid = _uuid(_GOROUTINE, pid, goid)
        track = self._tracks.get(uuid)
        if track is not None:
            return track
        self._process(pid)
        group = _uuid(_OTHER, pid, _GOROUTINES_OF_PROCESS)
        if group not in self._tracks:
            parent = number_field(5, _uuid(_PROCESS, pid, pid))
            self._describe(
                group, text_field(2, "goroutines") + parent + number_field(11, 3)
            )  # in given order
        rank = number_field(12, min(goid, (1 << 31) - 1))
        return self._describe(uuid, text_field(2, f"goroutine {goid}") + number_field(5, group) + rank)

    def _losses(self) -> _Track:
        uuid = _uuid(_OTHER, 0, _LOSSES)
        return self._tracks.get(uuid) or self._describe(uuid, text_field(2, "events lost"))

    def _describe(self, uuid: int, descriptor: bytes) -> _Track:
        if len(self._tracks) >= _MAX_TRACKS:
            self._tracks.clear()
        self._packet(_SEQUENCE + bytes_field(60, number_field(1, uuid) + descriptor))
        track = self._tracks[uuid] = _Track(uuid)
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
