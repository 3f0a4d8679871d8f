"""Copies goroutines out of a stopped process, quickly: records, and of each stack the part in use.

Only what depends on the stop is done in it, `capture`; `Capture.iter_sightings` decodes when the process has been let
go. What cannot be read, or makes no sense, is left out and counted.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

from goabi.errors import MemoryFaultError, RuntimeDataError
from goabi.goroutine import Goroutine, GoStatus
from goabi.sched import GoRuntime
from goabi.unwind import Registers, Stack, Unwinder
from ptserver.inspection.inspector import Sighting
from stepping.bulk_read import Pieces, read_pieces
from stepping.tracee_memory import TraceeMemory

#: How many bytes of stacks are copied in one stop.
STOP_STACK_BYTES = 64 << 20

RegistersOf = Callable[[int], Registers | None]

_BELOW_SP = 16  # arm64 saves the frame pointer below SP
_SCAN_BIT = 0x1000
_LAST_ADDRESS = (1 << 64) - 1
_DEAD = frozenset({GoStatus.IDLE, GoStatus.DEAD, GoStatus.DEADEXTRA})
_FIELDS = ("atomicstatus", "stack.lo", "stack.hi", "sched.sp", "syscallsp", "m")


class Capture:
    """What was copied of goroutines. count: how many of the addresses were dealt with, live or not."""

    def __init__(self, addresses: Sequence[int], records: Pieces) -> None:
        self.count = len(addresses)
        self.skipped = 0
        self.addresses = addresses
        self.records = records
        #: Of each live one: its index, and where the copy of its stack begins.
        self.live: list[tuple[int, int]] = []
        self.stacks: Pieces | None = None
        self.tids: dict[int, int] = {}
        #: By index, what could not wait.
        self.running: dict[int, Stack] = {}
        self.details: dict[int, tuple[dict[str, str], tuple[int, ...]]] = {}

    def iter_sightings(self, runtime: GoRuntime) -> Iterator[Sighting]:
        """Yield the live goroutines; `skipped` is right at the end."""
        decode = runtime.decoder.decode_g
        for position, (index, stack_start) in enumerate(self.live):
            raw = self.records[index]
            try:
                goroutine = decode(self.addresses[index], raw or b"")
            except RuntimeDataError:
                self.skipped += 1
                continue
            labels, channels = self.details.get(index, ({}, ()))
            yield Sighting(
                goroutine,
                self.tids.get(index, 0),
                labels,
                channels,
                self.running.get(index),
                (self.stacks[position] if self.stacks is not None else None) or b"",
                stack_start,
            )


class Capturer:
    """Captures goroutines of one process.."""

    def __init__(self, runtime: GoRuntime, pid: int, memory: TraceeMemory) -> None:
        self._runtime = runtime
        self._pid = pid
        self._memory = memory
        layout = runtime.layouts["g"]
        by_offset = sorted(_FIELDS, key=layout.offset)
        fields = layout.unpacker(_FIELDS)
        padding = runtime.decoder.g_bytes - fields.size
        self._record = struct.Struct(f"{fields.format}{padding}x")
        self._order = itemgetter(*(by_offset.index(name) for name in _FIELDS))
        self._procid = runtime.layouts["m"].offset("procid")

    def capture(
        self, addresses: Sequence[int], max_stack_bytes: int, registers_of: RegistersOf | None
    ) -> Capture:
        """Copy the goroutines whose records are at *addresses*, or the first of them if their stacks are large.

        max_stack_bytes: how much of each stack, from its innermost frame on. registers_of: by the number that the
        program knows; without it, goroutines that run have no stacks.
        """
        g_bytes = self._runtime.decoder.g_bytes
        capture = Capture(
            addresses, read_pieces(self._pid, self._memory, addresses, [g_bytes] * len(addresses))
        )
        starts, sizes, ms = self._plan(capture, max_stack_bytes)
        places = [(m + self._procid) & _LAST_ADDRESS for _, m in ms]
        pieces = read_pieces(self._pid, self._memory, starts + places, sizes + [8] * len(places))
        capture.stacks = pieces
        for position, (index, _) in enumerate(ms, len(starts)):
            capture.tids[index] = int.from_bytes(pieces[position] or b"", "little")
        if capture.running:
            self._unwind_running(capture, registers_of)
        return capture

    def _plan(
        self, capture: Capture, max_stack_bytes: int
    ) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """Decide what to copy of the stacks; return where and how much, and the Ms of those that have one."""
        live, missing = capture.live, capture.records.missing
        starts: list[int] = []
        sizes: list[int] = []
        ms: list[tuple[int, int]] = []
        total = 0
        records = map(self._order, capture.records.unpack(self._record))
        for index, (status, low, high, sp, syscall_sp, m) in enumerate(records):
            if index in missing:
                continue
            status &= ~_SCAN_BIT
            if status in _DEAD:
                continue
            start = (syscall_sp or sp) - _BELOW_SP
            start, size = (start, min(high - start, max_stack_bytes)) if low <= start < high else (0, 0)
            if total + size > STOP_STACK_BYTES and live:
                capture.count = index
                break
            total += size
            live.append((index, start))
            starts.append(start)
            sizes.append(size)
            if m:
                ms.append((index, m))
                if status == GoStatus.RUNNING and not syscall_sp:
                    capture.running[index] = Stack((), "it is running")
        capture.skipped = sum(index < capture.count for index in missing)
        return starts, sizes, ms

    def _unwind_running(self, capture: Capture, registers_of: RegistersOf | None) -> None:
        """Unwind at once those whose stacks begin in registers and may begin on another stack than their own."""
        unwinder = Unwinder(self._runtime, registers_of)
        for index in capture.running:
            goroutine = self._decode(capture, index)
            if goroutine is not None:
                capture.running[index] = unwinder.unwind_goroutine(goroutine)

    def read_details(self, capture: Capture) -> None:
        """Copy the labels and channels of what was captured; what makes no sense is left out."""
        for index, _ in capture.live:
            goroutine = self._decode(capture, index)
            if goroutine is None:
                continue
            try:
                labels = self._runtime.labels(goroutine)
                channels = self._runtime.waiting_on(goroutine)
            except (MemoryFaultError, RuntimeDataError):
                continue
            capture.details[index] = labels, channels

    def _decode(self, capture: Capture, index: int) -> Goroutine | None:
        raw = capture.records[index]
        try:
            return self._runtime.decoder.decode_g(capture.addresses[index], raw or b"")
        except RuntimeDataError:
            return None
