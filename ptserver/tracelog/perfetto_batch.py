"""Writes many calls at once as Perfetto's packets: those that `PerfettoSink` writes one by one, made of fewer pieces.

A packet is joined from bytes that are known already (a track, a name, a small number, a stack) and from columns that
are made all at once. What is named or described for the first time is written before the batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import repeat
from typing import Generic, TypeVar

from ptserver.tracelog.batch import LINES_AT_ONCE, MOSTLY_REPEATED, CallBatch, Remembered, Table, are_texts
from ptserver.tracelog.events import Frame
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.perfetto_packets import BEGIN, NEEDS_STATE, TIMESTAMP, PacketWriter
from ptserver.tracelog.protobuf import bytes_field, varint, varints
from stepping.ring_batch import CallGroup
from stepping.syscalls.decode_columns import ColumnPlan
from stepping.syscalls.decode_values import Data, Node, to_plain
from stepping.syscalls.errno_names import errno_name, is_restart
from stepping.syscalls.model import Arch, Syscall

_MAX_ERRNO = 4095
_MAX_BUSY = 1 << 16
#: The tag of int_value in a `DebugAnnotation`.
_NUMBER = b"\x20"

K = TypeVar("K")


class PerfettoBatches:
    """Writes batches. packets: where names and tracks come from; limit: how many bytes of a buffer are written."""

    def __init__(self, writer: LineWriter, packets: PacketWriter, arch: Arch, limit: int) -> None:
        self._writer = writer
        self._packets = packets
        self._arch: Arch = arch
        self._limit = limit
        self._pid = 0
        self._time_bytes = 0
        self._name_stack: Callable[[bytes], tuple[Frame, ...]] | None = None
        #: When the last slice ended on each goroutine's track, and on each thread's.
        self._goroutines_busy: dict[int, int] = {}
        self._threads_busy: dict[int, int] = {}
        self.forget()

    def forget(self) -> None:
        """Forget what refers to names and tracks, which may have to be written anew."""
        packets = self._packets
        self._plans: dict[str, _Plan] = {}
        self._goroutines: Remembered[int, bytes] = Remembered(
            lambda goid: BEGIN + packets.goroutine(self._pid, goid).uuid
        )
        self._threads: Remembered[int, bytes] = Remembered(
            lambda tid: BEGIN + packets.thread(self._pid, tid).uuid
        )
        self._goroutine_ends: _Fixed[int] = _Fixed(
            lambda goid: packets.goroutine(self._pid, goid).end, self._head
        )
        self._thread_ends: _Fixed[int] = _Fixed(lambda tid: packets.thread(self._pid, tid).end, self._head)
        self._results = Remembered(self._result)
        self._tids: Remembered[int, bytes] = Remembered(lambda tid: packets.note("tid", tid))
        self._stacks = Remembered(self._stack)
        #: What stands before and after the time, by the size of an event.
        self._heads: Remembered[int, bytes] = Remembered(
            lambda size: self._head(len(NEEDS_STATE) + len(_event_head(size)) + size)
        )
        self._middles: Remembered[int, bytes] = Remembered(lambda size: NEEDS_STATE + _event_head(size))

    def write(self, batch: CallBatch) -> bool:
        """Write the calls; return false, and write nothing, if their times are not of one size."""
        records = batch.records
        begins = records.start_ns
        ends = [begin + took for begin, took in zip(begins, records.duration_ns, strict=True)]
        time_bytes = len(varint(max(ends)))
        if time_bytes != len(varint(min(begins))):
            return False
        if (records.pid, time_bytes) != (self._pid, self._time_bytes):
            self._pid, self._time_bytes = records.pid, time_bytes
            self.forget()
        self._name_stack = batch.name_stack
        times = _Times(begins, ends)
        on_thread = times.apart(records.tids, self._threads_busy)
        on_goroutine = times.apart(records.goids, self._goroutines_busy)
        made = [b""] * records.size
        for group in records.groups():
            for part in _by_owner(group):
                packets = self._group(batch, part, on_goroutine, on_thread)
                for index, joined in zip(part.indexes, packets, strict=True):
                    made[index] = joined
        new = self._packets.take_new()
        if new:
            self._packets.packet(NEEDS_STATE + new)
        for start in range(0, len(made), LINES_AT_ONCE):
            self._writer.write(b"".join(made[start : start + LINES_AT_ONCE]))
        return True

    def _group(
        self, batch: CallBatch, group: CallGroup, on_goroutine: "_Times", on_thread: "_Times"
    ) -> Iterable[bytes]:
        """Return each call's packets; all have a goroutine, or none."""
        records, pick = batch.records, group.pick
        plan = self._plans.get(group.row.name)
        if plan is None:
            plan = self._plans[group.row.name] = self._plan(group.row)
        tids, goids = pick(records.tids), pick(records.goids)
        notes: list[Iterable[bytes]] = [*plan.arguments(group), self._results.of(group.values)]
        if batch.name_stack is not None:
            notes.append(self._stacks.of(pick(records.stacks)))
        thread_times = pick(on_thread.begin_bytes), pick(on_thread.end_bytes)
        thread_ends = self._thread_ends.of(tids)
        if not goids[0]:
            begins = self._begins(self._threads.of(tids), plan, notes, thread_times[0])
            return map(b"".join, zip(*begins, *_around(thread_ends, thread_times[1]), strict=True))
        notes.append(self._tids.of(tids))
        times = pick(on_goroutine.begin_bytes), pick(on_goroutine.end_bytes)
        pieces = (
            *self._begins(self._goroutines.of(goids), plan, notes, times[0]),
            *_around(self._goroutine_ends.of(goids), times[1]),
            *_around(plan.on_thread.of(list(zip(tids, goids, strict=True))), thread_times[0]),
            *_around(thread_ends, thread_times[1]),
        )
        return map(b"".join, zip(*pieces, strict=True))

    def _begins(
        self, tracks: list[bytes], plan: "_Plan", notes: list[Iterable[bytes]], times: Sequence[bytes]
    ) -> tuple[Sequence[bytes], ...]:
        """Return the pieces of the packets that begin slices."""
        events = list(map(b"".join, zip(tracks, repeat(plan.head), *notes, strict=False)))
        sizes = list(map(len, events))
        return self._heads.of(sizes), times, self._middles.of(sizes), events

    def _plan(self, row: Syscall) -> "_Plan":
        columns = ColumnPlan(
            row, lambda name, _: _EntryRenderer(self._packets, name, self._limit), self._arch
        )
        return _Plan(row, self._pid, self._packets, columns, self._head)

    def _head(self, size: int) -> bytes:
        """Return what stands before the time in a packet that has *size* bytes after it."""
        return b"\x0a" + varint(len(TIMESTAMP) + self._time_bytes + size) + TIMESTAMP

    def _result(self, value: int) -> bytes:
        if not -_MAX_ERRNO <= value < 0:
            return self._packets.note("value", value)
        shown = b"" if is_restart(-value) else self._packets.note("value", -1)
        return shown + self._packets.note("errno", errno_name(-value))

    def _stack(self, stack: bytes) -> bytes:
        frames = self._name_stack(stack) if self._name_stack is not None else ()
        return self._packets.stack(frames) if frames else b""


class _Times:
    """When the slices of a batch begin and end, in numbers and as a packet has them."""

    def __init__(self, begins: list[int], ends: list[int]) -> None:
        self.begins = begins
        self.ends = ends

    @cached_property
    def begin_bytes(self) -> list[bytes]:
        return varints(self.begins)

    @cached_property
    def end_bytes(self) -> list[bytes]:
        return varints(self.ends)

    def apart(self, tracks: list[int], busy: dict[int, int]) -> "_Times":
        """Return the times such that no slice begins before the one before it on its track has ended.

        busy: by track, when its last slice ended; is brought up to date.
        """
        if len(busy) > _MAX_BUSY:
            busy.clear()
        last: dict[int, int] = {}
        for track, begin, end in zip(tracks, self.begins, self.ends, strict=True):
            if begin < (last.get(track) or busy.get(track, 0)):
                return self._moved(tracks, busy)
            last[track] = end
        busy.update(last)
        return self

    def _moved(self, tracks: list[int], busy: dict[int, int]) -> "_Times":
        moved = _Times([], [])
        for track, begin, end in zip(tracks, self.begins, self.ends, strict=True):
            later = max(begin, busy.get(track, 0))
            busy[track] = later + end - begin
            moved.begins.append(later)
            moved.ends.append(busy[track])
        return moved


class _Fixed(Generic[K]):
    """What stands before and after the time in packets that differ in nothing else."""

    def __init__(self, make: Callable[[K], bytes], head: Callable[[int], bytes]) -> None:
        self._after = Remembered(make)
        self._before: Remembered[K, bytes] = Remembered(lambda key: head(len(make(key))))

    def of(self, keys: Sequence[K]) -> tuple[list[bytes], list[bytes]]:
        """Return both for each key."""
        return self._before.of(keys), self._after.of(keys)


class _Plan:
    """What the packets of one call have in common."""

    def __init__(
        self,
        row: Syscall,
        pid: int,
        packets: PacketWriter,
        columns: ColumnPlan[bytes],
        head: Callable[[int], bytes],
    ) -> None:
        self.head = packets.head("syscall", row.name)
        self._columns = columns
        name, on_thread = packets.note_name("args"), packets.head("thread", row.name)
        self._labels: Remembered[int, bytes] = Remembered(
            lambda size: b"\x22" + varint(len(name) + size) + name if size else b""
        )

        def begin_on_thread(key: tuple[int, int]) -> bytes:
            tid, goid = key
            track = packets.thread(pid, tid).uuid
            return NEEDS_STATE + bytes_field(11, BEGIN + track + on_thread + packets.note("goid", goid))

        #: The packets that begin a slice on a thread's track, by thread and goroutine.
        self.on_thread = _Fixed(begin_on_thread, head)

    def arguments(self, group: CallGroup) -> tuple[Iterable[bytes], ...]:
        """Return the pieces of the annotation `args`; none for calls without arguments."""
        columns = self._columns.columns(group)
        if not columns:
            return ()
        joined = list(map(b"".join, zip(*columns, strict=True)))
        return self._labels.of(list(map(len, joined))), joined


class _EntryRenderer:
    """Makes entries of the annotation `args`. What stands before a value depends on its size alone."""

    def __init__(self, packets: PacketWriter, name: str, limit: int) -> None:
        self._packets = packets
        self._name = name
        self._limit = limit
        label, text = packets.note_name(name), packets.note_name("text")
        self._known = Remembered(self.node)
        self._numbers: Table[int, bytes] = Table(lambda size: _entry_head(label + _NUMBER, size))
        self._texts: Table[int, bytes] = Table(lambda size: _entry_head(label + _text_head(size), size))
        self._parts: Table[int, bytes] = Table(lambda size: _entry_head(text + _text_head(size), size))
        self._wholes: Table[int, bytes] = Table(lambda size: _entry_head(label, size))
        self._sizes: Remembered[int, bytes] = Remembered(
            lambda size: bytes_field(11, packets.entry("size", size))
        )

    def absent(self) -> bytes:
        return b""

    def node(self, node: Node) -> bytes:
        return bytes_field(11, self._packets.entry(self._name, to_plain(node, self._limit)))

    def numbers(self, numbers: Sequence[int]) -> Sequence[bytes]:
        highest = max(numbers)
        if highest < MOSTLY_REPEATED:
            return self._known.of(numbers)
        if highest >= 1 << 63 or min(numbers) < 0:
            return list(map(self.node, numbers))
        heads = self._numbers
        return [heads[len(encoded)] + encoded for encoded in varints(numbers)]

    def addresses(self, addresses: Sequence[int]) -> Sequence[bytes]:
        heads = self._texts
        shown = [heads[len(text)] + text for text in map(b"%#x".__mod__, addresses)]
        if 0 in addresses:
            null = self.node(None)
            return [text if address else null for text, address in zip(shown, addresses, strict=True)]
        return shown

    def buffers(self, contents: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
        limit, texts, parts, wholes = self._limit, self._texts, self._parts, self._wholes
        cut = [content[:limit] for content in contents]
        if not are_texts(cut):
            return [self.node(Data(content, size)) for content, size in zip(contents, sizes, strict=True)]
        real = [max(size, len(content)) for content, size in zip(contents, sizes, strict=True)]
        return [
            texts[len(shown)] + shown
            if size == len(shown)
            else wholes[len(parts[len(shown)]) + len(shown) + len(entry)] + parts[len(shown)] + shown + entry
            for shown, size, entry in zip(cut, real, self._sizes.of(real), strict=True)
        ]


def _entry_head(label: bytes, size: int) -> bytes:
    """Return what stands before *size* bytes in a dictionary's entry; label: what comes first in it."""
    return b"\x5a" + varint(len(label) + size) + label


def _text_head(size: int) -> bytes:
    return b"\x32" + varint(size)


def _around(
    fixed: tuple[list[bytes], list[bytes]], times: Sequence[bytes]
) -> tuple[Sequence[bytes], Sequence[bytes], Sequence[bytes]]:
    return fixed[0], times, fixed[1]


def _event_head(size: int) -> bytes:
    """Return what stands before a `TrackEvent` of *size* bytes."""
    return b"\x5a" + varint(size)


def _by_owner(group: CallGroup) -> Iterator[CallGroup]:
    """Return the calls that goroutines made, and those that threads made by themselves, as groups."""
    goids = group.batch.goids
    own = [index for index in group.indexes if not goids[index]]
    if not own:
        yield group
        return
    yield group.part(own)
    others = [index for index in group.indexes if goids[index]]
    if others:
        yield group.part(others)
