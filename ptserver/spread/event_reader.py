"""What a host tells of its goroutines: what routines in its instance record, read every few milliseconds."""

import time

from ptserver.spread.host_pages import Emit
from ptserver.spread.messages import Change, Happened
from ptserver.spread.requests import Later
from stepping.ring import BATCH, Ring
from stepping.ring_batch import RingBatch

#: How often records are read. The home tells nothing of a moment before all hosts have read what they recorded then.
_READ_SECONDS = 0.005
#: How many records are read at once, so that pages do not wait for long.
_MOST = 4 * BATCH
#: The moment until which the last message of a host is: after it nothing comes.
END_NS = (1 << 63) - 1


class EventReader:
    """Reads *ring* until it is finished, and says by *emit* what it held.

    ahead_ns: by how much the program's clock is ahead of this machine's.
    """

    def __init__(self, ring: Ring, emit: Emit, later: Later, ahead_ns: int) -> None:
        self._ring = ring
        self._emit = emit
        self._later = later
        self._ahead_ns = ahead_ns
        self._lost = 0
        self._finished = False
        later(_READ_SECONDS, self._go_on)

    def finish(self) -> None:
        """Say what is left, of a program that has ended."""
        if not self._finished:
            self._finished = True
            self._read(END_NS, final=True)
            self._ring.close()

    def _go_on(self) -> None:
        if not self._finished:
            self._read(time.monotonic_ns() + self._ahead_ns, final=False)
            self._later(_READ_SECONDS, self._go_on)

    def _read(self, until_ns: int, *, final: bool) -> None:
        changes: list[Change] = []
        while len(changes) < _MOST and (batch := self._ring.read_batch(final=final)) is not None:
            changes += changes_of(batch, self._ahead_ns)
        lost, self._lost = self._ring.lost - self._lost, self._ring.lost
        self._emit(Happened(until_ns, tuple(changes), lost))


def changes_of(batch: RingBatch, ahead_ns: int) -> list[Change]:
    """Return what the records of *batch*, all of which are of changed statuses, say."""
    addresses, olds, news, reasons, _, entries = (batch.args(index) for index in range(6))
    return [
        Change(start_ns + ahead_ns, *rest)
        for start_ns, *rest in zip(
            batch.start_ns, batch.tids, olds, news, addresses, batch.values, batch.goids, reasons, entries,
            batch.stacks, strict=True,
        )
    ]  # fmt: skip
