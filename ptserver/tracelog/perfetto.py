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

from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import (
    Event,
    ExitEvent,
    GcEvent,
    GoEvent,
    LossEvent,
    SignalEvent,
    StopEvent,
    SyscallEvent,
    ThreadEvent,
    TraceStart,
    row_of,
)
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.perfetto_batch import PerfettoBatches
from ptserver.tracelog.perfetto_goroutines import GoroutineSlices
from ptserver.tracelog.perfetto_packets import BEGIN, INSTANT, TIMESTAMP, PacketWriter, Track
from ptserver.tracelog.protobuf import varint
from stepping.syscalls.decode import DEFAULT_LIMIT, decode_call
from stepping.syscalls.decode_buffers import find_buffer
from stepping.syscalls.decode_scalars import signal_name
from stepping.syscalls.decode_values import to_plain


class PerfettoSink:
    """A `TraceSink` that writes Perfetto's format. limit: how many bytes of a buffer are written."""

    def __init__(self, writer: LineWriter, start: TraceStart, *, limit: int = DEFAULT_LIMIT) -> None:
        self._writer = writer
        self._arch = start.arch
        self._limit = limit
        self._packets = PacketWriter(writer, start)
        self._goroutines = GoroutineSlices(self._packets)
        self._batches = PerfettoBatches(writer, self._packets, start.arch, limit)

    def event(self, event: Event) -> None:
        """Write an event."""
        if self._packets.forget_if_full():
            self._batches.forget()
        if type(event) is SyscallEvent:
            self._syscall(event)
        else:
            self._other(event)

    def calls(self, batch: CallBatch) -> None:
        """Write many calls."""
        if self._packets.forget_if_full():
            self._batches.forget()
        if batch.records.size and not self._batches.write(batch):
            for event in batch.events():
                self._syscall(event)
        for _, other in batch.others:  # whoever reads the file puts packets in the order of their times
            self._other(other)

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
            notes.append(self._packets.note("args", decoded["args"]))
        if decoded["value"] is not None:
            notes.append(self._packets.note("value", decoded["value"]))
        if errno:
            notes.append(self._packets.note("errno", decoded["errno"]))
        if stack:
            notes.append(self._packets.stack(stack))
        thread = self._packets.thread(pid, tid)
        if goid is None:
            self._slice(thread, "syscall", name, start_ns, duration_ns, unfinished, notes)
            return
        notes.append(self._packets.note("tid", tid))
        goroutine = self._packets.goroutine(pid, goid)
        self._slice(goroutine, "syscall", name, start_ns, duration_ns, unfinished, notes)
        self._slice(
            thread, "thread", name, start_ns, duration_ns, unfinished, [self._packets.note("goid", goid)]
        )

    def _other(self, event: Event) -> None:
        match event:
            case SignalEvent():
                decode = find_buffer("siginfo", self._arch) if event.info else None
                info = to_plain(decode(event.info, self._arch), self._limit) if decode else None
                notes = [self._packets.note("info", info)] if info else []
                track = self._packets.thread(event.pid, event.tid)
                self._instant(track, "signal", signal_name(event.signo), event.start_ns, notes)
            case StopEvent():
                name = f"stopped by {signal_name(event.signo)}"
                self._instant(self._packets.thread(event.pid, event.tid), "signal", name, event.start_ns, [])
            case ThreadEvent():
                name = f"thread {event.event}"
                self._instant(self._packets.thread(event.pid, event.tid), "thread", name, event.start_ns, [])
            case ExitEvent():
                how = f"exited with {event.status}"
                if event.status is None:
                    how = f"killed by {signal_name(event.signo)}{' (core dumped)' if event.core else ''}"
                self._instant(self._packets.process(event.pid), "process", how, event.start_ns, [])
            case GoEvent():
                self._goroutines.event(event)
            case GcEvent():
                self._goroutines.gc(event)
            case LossEvent():
                notes = [self._packets.note("lost", event.lost)]
                self._instant(self._packets.losses(), "loss", "events lost", event.start_ns, notes)
            case SyscallEvent():
                self._syscall(event)

    def _slice(
        self,
        track: Track,
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
        self._track_event(BEGIN, track, category, name, start_ns, notes)
        if duration_ns is not None:
            track.busy_ns = start_ns + duration_ns
            self._packets.packet(TIMESTAMP + varint(track.busy_ns) + track.end)

    def _instant(self, track: Track, category: str, name: str, start_ns: int, notes: list[bytes]) -> None:
        self._track_event(INSTANT, track, category, name, start_ns, notes)

    def _track_event(
        self, kind: bytes, track: Track, category: str, name: str, at_ns: int, notes: list[bytes]
    ) -> None:
        self._packets.track_event(kind, track, category, name, at_ns, notes)
