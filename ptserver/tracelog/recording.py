"""A recording: a trace as its source gives it, which any other form can be made of later (`replay.py`).

    file   = "ptrecord" version:u32 {chunk}
    chunk  = kind:u8 size:u32 body[size]
    body   = start     kind 1: a `TraceStart`
           | facts     kind 2: `RingFacts` of the records to come
           | threads   kind 3: threads' numbers here, by those that the program knows, where they differ
           | records   kind 4: pid:u32 base_ns:s64 ns_per_count:f64 and a ring's records, packed (`ring_packing.py`)
           | event     kind 5: [type, event]; the type is its place in `EVENTS`

Integers are little-endian; bodies of other kinds than records are MessagePack, tuples as arrays. A file that ends in
the middle of a chunk is a recording up to there: whoever wrote it was killed.

Writing a call takes about 1 µs, a tenth to a fifth of what forms for people and other programs take, so that the
reader of a busy program's ring leaves it the processor.

Not trusted: a file that is read.

Thread rules: those of `TraceSink`.
"""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.errors import TraceFormatError
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
)
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.ring_events import RingFacts
from stepping.ring_batch import CallPlan, RingBatch
from stepping.ring_packing import unpack

_MAGIC = b"ptrecord"
_VERSION = 1
_HEAD = struct.Struct("<8sI")
_CHUNK = struct.Struct("<BI")
_RECORDS = struct.Struct("<Iqd")
_START, _FACTS, _THREADS, _RECORDS_KIND, _EVENT = 1, 2, 3, 4, 5

#: Larger chunks are never written.
_MAX_CHUNK_BYTES = 1 << 24

#: The types of events, in an order that never changes; new ones come last.
EVENTS: tuple[type[Event], ...] = (
    SyscallEvent,
    SignalEvent,
    StopEvent,
    ThreadEvent,
    ExitEvent,
    GoEvent,
    GcEvent,
    LossEvent,
)

_encode = msgspec.msgpack.Encoder().encode
_decoders = [msgspec.msgpack.Decoder(tuple[int, kind]) for kind in EVENTS]  # type: ignore[valid-type]


class RecordingSink:
    """A `RecordSink` that writes a recording."""

    def __init__(self, writer: LineWriter, start: TraceStart) -> None:
        self._writer = writer
        self._threads: dict[int, int] = {}
        writer.write(_HEAD.pack(_MAGIC, _VERSION))
        self._chunk(_START, _encode(start))

    def begin(self, facts: RingFacts) -> None:
        """Write what must be known of a ring's records."""
        self._chunk(_FACTS, _encode(facts))

    def take(self, batch: RingBatch) -> None:
        """Write records."""
        threads = batch.thread_numbers
        if not threads.items() <= self._threads.items():
            self._threads |= threads
            self._chunk(_THREADS, _encode(self._threads))
        head = _RECORDS.pack(batch.pid, batch.base_ns, batch.ns_per_count)
        self._chunk(_RECORDS_KIND, head + batch.packed())

    def finish(self) -> None:
        """Nothing is kept back."""

    def event(self, event: Event) -> None:
        """Write an event."""
        self._chunk(_EVENT, _encode((EVENTS.index(type(event)), event)))

    def calls(self, batch: CallBatch) -> None:
        """Write events one by one."""
        for event in batch.all_events():
            self.event(event)

    def flush(self) -> None:
        """Write what was kept back."""
        self._writer.flush()

    def close(self) -> None:
        """Write all that is left."""
        self._writer.close()

    def _chunk(self, kind: int, body: bytes) -> None:
        self._writer.write(_CHUNK.pack(kind, len(body)) + body)


class Recording:
    """A recording that is read from a file.

    start: how the trace began; cut_short: whether the file has turned out to end in the middle of something.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the beginning.

        Raises:
            TraceFormatError: it is none, or one of another version.
        """
        self._file = file
        self.cut_short = False
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise TraceFormatError("this is no recording of a trace (--format recording makes them)")
        version = _HEAD.unpack(head)[1]
        if version != _VERSION:
            raise TraceFormatError(
                f"this recording is of version {version}; this program reads version {_VERSION}"
            )
        kind, body = self._chunk() or (0, b"")
        if kind != _START:
            raise TraceFormatError("this recording was cut off at its very beginning")
        self.start = _decoded(body, TraceStart)

    def contents(self) -> Iterator[RingFacts | RingBatch | Event]:
        """Return what was recorded, in its order. The batches know no calls: see `RingBatch.planned`.

        Raises:
            TraceFormatError: what is in it cannot have been written.
        """
        threads: dict[int, int] = {}
        while (chunk := self._chunk()) is not None:
            kind, body = chunk
            if kind == _RECORDS_KIND:
                batch = self._batch(body)
                if threads:
                    batch.number_threads(_Numbers(threads).__getitem__)
                yield batch
            elif kind == _THREADS:
                threads = _decoded(body, dict[int, int])
            elif kind == _FACTS:
                yield _decoded(body, RingFacts)
            elif kind == _EVENT:
                yield _decode_event(body)
            else:
                raise TraceFormatError(f"the recording holds something of an unknown kind, {kind}")

    def _chunk(self) -> tuple[int, bytes] | None:
        head = self._file.read(_CHUNK.size)
        if len(head) == _CHUNK.size:
            kind, size = _CHUNK.unpack(head)
            if size > _MAX_CHUNK_BYTES:
                raise TraceFormatError(f"the recording holds a piece of {size} bytes, which is never written")
            body = self._file.read(size)
            if len(body) == size:
                return kind, body
            self.cut_short = True
            return (kind, body) if kind == _RECORDS_KIND and len(body) > _RECORDS.size else None
        self.cut_short = self.cut_short or bool(head)
        return None

    def _batch(self, body: bytes) -> RingBatch:
        if len(body) < _RECORDS.size:
            raise TraceFormatError("the recording holds records without what dates them")
        pid, base_ns, ns_per_count = _RECORDS.unpack_from(body)
        if not 0 < ns_per_count < 1e6:
            raise TraceFormatError("the recording holds records whose clock does not run")
        raw, used = unpack(body[_RECORDS.size :])
        if used != len(body) - _RECORDS.size and not self.cut_short:
            raise TraceFormatError("the recording holds a record that is not whole")
        return RingBatch(raw, pid, NO_PLANS, base_ns, ns_per_count)


#: Of a batch of which nobody has said yet which calls it is of.
NO_PLANS: dict[int, CallPlan] = {}


class _Numbers(dict[int, int]):
    """Numbers of threads; those that are the same are left out."""

    def __missing__(self, key: int) -> int:
        return key


def _decode_event(body: bytes) -> Event:
    kind = _decoded(body, tuple[int, Any])[0]
    if not 0 <= kind < len(EVENTS):
        raise TraceFormatError(f"the recording holds an event of an unknown type, {kind}")
    try:
        event: Event = _decoders[kind].decode(body)[1]
    except (msgspec.DecodeError, ValueError) as error:
        raise TraceFormatError(f"the recording holds a malformed {EVENTS[kind].__name__}: {error}") from error
    return event


def _decoded(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise TraceFormatError(f"the recording holds something malformed: {error}") from error
