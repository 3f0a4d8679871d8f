"""The reader of a ring: calls of a Go program, in bulk, as they were recorded.

    ring = Ring.attach(pid, rows)
    while ...:
        for call in ring.read(): ...
    ring.detach()

Records are read in the order in which their calls returned. A call that found no free slot is in `lost`. A
thread that is interrupted in the middle of writing a record holds up those behind it until it goes on; after
`STUCK_S` (its thread may have been killed there: a child after vfork) the record is given up and counted as
lost.

Not trusted: the program, which can write anything into the ring.

One thread at a time uses a ring. `attach` and `detach` make ptrace requests and must not be called while the
same process is traced by another thread.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from stepping.errors import MemoryFaultError, TraceeGoneError
from stepping.ring_batch import RingBatch, plans_of
from stepping.ring_clock import TscClock
from stepping.ring_inject import (
    DEFAULT_BUFFER_BYTES,
    DEFAULT_SLOTS,
    Installed,
    install,
    remove,
)
from stepping.ring_layout import (
    HEAD_OFFSET,
    LIMIT_OFFSET,
    LOST_OFFSET,
    PAGE_BYTES,
    RECORD_BYTES,
    RECORDS_OFFSET,
)
from stepping.ring_memory import DistantRing, MappedRing, RingMemory
from stepping.ring_probes import Probes, encode_transitions
from stepping.ring_site import RingSite, find_site
from stepping.syscalls.marshal import Args
from stepping.syscalls.model import Syscall
from stepping.syscalls.table import SYSCALLS
from stepping.tracee_group import TraceeGroup
from stepping.tracee_memory import TraceeMemory

#: How long an unfinished record may hold up the others.
STUCK_S = 2.0
#: How many records are taken at most at once.
BATCH = 2048


class RingCall(NamedTuple):
    """A call that returned.

    start_ns: by CLOCK_MONOTONIC; args: the six registers; ins, outs: by argument index, the first bytes of what
    was read and filled. value: the result (signed), -1 if it failed with *errno*. unfinished: never. goid: the
    goroutine, None for the scheduler's own (g0). frames: return addresses in the program's memory, innermost
    (into the caller of Syscall6) first.
    """

    start_ns: int
    duration_ns: int
    pid: int
    tid: int
    name: str
    args: Args
    ins: Mapping[int, bytes]
    outs: Mapping[int, bytes]
    value: int
    errno: int
    unfinished: bool
    goid: int | None
    frames: tuple[Any, ...]


class Ring:
    """A ring that is installed in a program. lost: how many calls found no slot so far."""

    def __init__(self, installed: Installed, rows: Iterable[Syscall]) -> None:
        self.pid = installed.pid
        self.site = installed.site
        self.stopped_s = installed.stopped_s
        self.lost = 0
        self.clock = TscClock()
        self._installed: Installed | None = installed
        parameters = installed.parameters
        self._memory: RingMemory = (
            MappedRing(installed.fd, parameters.ring_bytes)
            if installed.fd >= 0
            else DistantRing(installed.pid, parameters.ring)
        )
        self._slots = installed.parameters.index_mask + 1
        self._mask = installed.parameters.index_mask
        self._tail = 0
        self._is_populated = False
        self._skipped = 0
        self._stuck_since: float | None = None
        #: By number, what the records of a call are named, and which arguments their data belong to.
        self._plans = plans_of(rows)

    @classmethod
    def attach(
        cls,
        pid: int,
        rows: Iterable[Syscall],
        *,
        slots: int = DEFAULT_SLOTS,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        site: RingSite | None = None,
        group: TraceeGroup | None = None,
        probes: Probes | None = None,
        mapped: bool = True,
    ) -> "Ring":
        """Install a ring for the calls *rows*, and *probes*, in process *pid*; its tracees in *group* are let go.

        mapped: as `install`.

        Raises:
            NoRingError: it is no program for the ring; the message says why.
            PtraceRefusedError, TraceeGoneError: it cannot be traced, or is gone.
        """
        wanted = list(rows)
        found = site or find_site(pid)
        installed = install(
            pid,
            found,
            wanted,
            slots=slots,
            buffer_bytes=buffer_bytes,
            group=group,
            probes=probes,
            mapped=mapped,
        )
        numbers = {place.number for place in probes.raw} if probes is not None else set()
        recorded = [row for row in SYSCALLS.values() if row.numbers.get("amd64") in numbers]
        return cls(installed, [*wanted, *recorded])

    def want(self, transitions: Collection[tuple[int, int]]) -> None:
        """Have the probes record these changes of a goroutine's status, and no others, from now on."""
        if self._installed is None:
            return
        at, bits = encode_transitions(transitions)
        try:
            memory = TraceeMemory(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return  # it has ended
        try:
            memory.write(self._installed.page + PAGE_BYTES + at, bits)
        except MemoryFaultError:
            return  # it executes another program now
        finally:
            memory.close()

    def detach(self) -> bool:
        """Take the ring out of the program; what is recorded can still be read.

        Returns false if a mapping had to be left behind (see `ring_inject.remove`).

        Raises:
            PtraceRefusedError: somebody else traces the program now.
        """
        installed, self._installed = self._installed, None
        if installed is None:
            return True
        try:
            return remove(installed.pid, installed.page, installed.parameters)
        except TraceeGoneError:
            return True

    def close(self) -> None:
        """Give up the memory; nothing can be read any more."""
        self._memory.close()
        self.clock.close()

    def read_batch(self, *, final: bool = False) -> RingBatch | None:
        """Return the next complete records, at most `BATCH`, None if there are none; frees their slots.

        final: the program is gone, so what is incomplete now remains so and is counted as lost.
        """
        raw = self._take(final=final)
        if not raw:
            return None
        self.clock.calibrate()
        base_ns, rate = self.clock.monotonic_ns(0), self.clock.ns_per_count
        return RingBatch(raw, self.pid, self._plans, base_ns, rate)

    def empty_batch(self) -> RingBatch:
        """Return a batch without records."""
        return RingBatch(b"", self.pid, self._plans, 0, 1.0)

    def read(self, *, final: bool = False) -> list[RingCall]:
        """Return the next calls, at most `BATCH`; empty if there are none now. *final* as in `read_batch`."""
        batch = self.read_batch(final=final)
        return batch.calls().tuples(RingCall, unpack_stack) if batch is not None else []

    def _take(self, *, final: bool) -> bytes:
        memory = self._memory
        if self._tail and not self._is_populated:
            self._is_populated = True
            memory.populate()  # takes 16 ms, for which the first records do not wait
        taken = memory.word(HEAD_OFFSET) - self._tail
        self.lost = max(self.lost, memory.word(LOST_OFFSET) + self._skipped)
        if not 0 < taken <= self._slots:
            return b""
        slot = self._tail & self._mask
        count = min(taken, BATCH, self._slots - slot)
        start = RECORDS_OFFSET + slot * RECORD_BYTES
        sequences = memory.words(start, count, RECORD_BYTES)
        expected = range(self._tail + 1, self._tail + count + 1)
        if sequences != list(expected):
            count = next(
                i for i, (got, want) in enumerate(zip(sequences, expected, strict=True)) if got != want
            )
        if not count:
            self._give_up_stuck(final=final)
            return b""
        self._stuck_since = None
        raw = memory.read(start, count * RECORD_BYTES)
        self._advance(count)
        return raw

    def _advance(self, count: int) -> None:
        self._tail += count
        self._memory.write_word(LIMIT_OFFSET, self._tail + self._slots)

    def _give_up_stuck(self, *, final: bool) -> None:
        now = time.monotonic()
        if self._stuck_since is None:
            self._stuck_since = now
        if final or now - self._stuck_since > STUCK_S:
            self._skipped += 1
            self._stuck_since = None
            self._advance(1)


def unpack_stack(stack: bytes) -> tuple[int, ...]:
    """Return the return addresses that an item of `RingBatch.stacks` holds."""
    return tuple(memoryview(stack).cast("Q"))
