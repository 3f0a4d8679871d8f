"""What becomes of a ring's records: they are given to a sink as calls and events, or recorded as they are."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import TraceSink
from ptserver.tracelog.frame_names import FrameNames
from ptserver.tracelog.go_events import GoEvents
from stepping.ring_batch import RingBatch


class RingFacts(NamedTuple):
    """What one must know of a ring to make sense of its records.

    exe: the program's file; build_id: what tells it from others, empty if it has none; load_bias: how much higher
    than there its functions lie. names: the calls that are recorded; runtime_calls: those that the runtime makes by
    itself; events: kinds of what becomes of goroutines. wait_reasons: the runtime's texts.
    """

    exe: str
    build_id: str
    load_bias: int
    names: tuple[str, ...]
    runtime_calls: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    wait_reasons: tuple[str, ...] = ()


class RecordTaker(Protocol):
    """Takes all records of a ring, in their order."""

    def take(self, batch: RingBatch) -> None:
        """Take a batch."""

    def finish(self) -> None:
        """Hand on what was kept back. No batch comes afterwards."""


@runtime_checkable
class RecordSink(RecordTaker, TraceSink, Protocol):
    """A sink that keeps records as they are."""

    def begin(self, facts: RingFacts) -> None:
        """Take what must be known of the records to come."""


class RingEvents:
    """Gives *sink* what records tell.

    select: returns the calls of a batch of calls that are wanted. stacks: names the calls' stacks, None if nobody
    wants them; go: makes events of the other records, None if nobody wants those.
    """

    def __init__(
        self,
        sink: TraceSink,
        select: Callable[[RingBatch], RingBatch],
        stacks: FrameNames | None,
        go: GoEvents | None,
    ) -> None:
        self._sink = sink
        self._select = select
        self._stacks = stacks
        self._go = go

    def take(self, batch: RingBatch) -> None:
        """Give a batch on."""
        calls = CallBatch(self._select(batch.calls()), self._stacks)
        if self._go is not None and calls.records is not batch:
            calls = self._go.merge(batch, calls)
        self._sink.calls(calls)

    def finish(self) -> None:
        """Give the events that were kept back, and give up the program's file."""
        if self._go is not None:
            for event in self._go.rest():
                self._sink.event(event)
            self._go.close()
        if self._stacks is not None:
            self._stacks.close()
