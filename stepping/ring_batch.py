"""Many records of a ring at once, column by column.

Python's cost is per operation, not per byte. What formats 300,000 calls a second takes the same field of many records
with one operation, sorts the records by their call once, and makes no object per record that nobody needs.

    batch = ring.read_batch()
    for group in batch.groups():           all records of one call
        group.pick(batch.values)           their results, in the group's order; group.indexes says where they stand

Not trusted: the records. All numbers in them may be anything.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from stepping.ring_copies import CopiedArg, copies_of
from stepping.ring_layout import DATA_BYTES, MAX_FRAMES, RECORD_BYTES
from stepping.ring_packing import pack
from stepping.syscalls.model import Syscall

_WORDS = RECORD_BYTES // 8
_HALVES = RECORD_BYTES // 2
_MAX_ERRNO = 4095
_NO_BYTES: Mapping[int, bytes] = {}

# Where fields are in a record: see ring_layout.RECORD. In words, or (the last three) in halves of 16 bits.
_START, _END, _ARGS, _RESULT, _GOID, _TID, _STACK = 1, 2, 4, 10, 11, 13, 14
_NUMBER, _LENGTH0, _LENGTH1 = 12, 14, 15
_FRAMES_BYTE, _DATA_BYTE = 26, (_STACK + MAX_FRAMES) * 8

_T = TypeVar("_T", bound=tuple[Any, ...])
_V = TypeVar("_V")


class CallPlan(NamedTuple):
    """What records of one call number are of. copied: which arguments their bytes belong to."""

    row: Syscall
    copied: tuple[CopiedArg, ...]


def plans_of(rows: Iterable[Syscall]) -> dict[int, CallPlan]:
    """Return, by number, what records of the calls *rows* are of."""
    return {
        row.numbers["amd64"]: CallPlan(row, tuple(copied for copied, _ in copies_of(row)))
        for row in rows
        if "amd64" in row.numbers
    }


class RingBatch:
    """Complete records, in the order in which their calls returned. Lists have an entry per record.

    pid: the program; size: how many records. base_ns, ns_per_count: when the count of the records' clock was 0, by
    CLOCK_MONOTONIC, and how long it takes.
    """

    def __init__(
        self, raw: bytes, pid: int, plans: Mapping[int, CallPlan], base_ns: int, ns_per_count: float
    ) -> None:
        self.pid = pid
        self._raw = raw
        self._plans = plans
        self.base_ns = base_ns
        self.ns_per_count = ns_per_count
        self._words = memoryview(raw).cast("Q")
        self._halves = memoryview(raw).cast("H")
        self._args: dict[int, list[int]] = {}
        self._outer_tid: Callable[[int], int] | None = None
        self.size = len(raw) // RECORD_BYTES

    @cached_property
    def numbers(self) -> list[int]:
        """The calls' numbers."""
        return self._halves[_NUMBER::_HALVES].tolist()

    @cached_property
    def sequences(self) -> list[int]:
        """What tells records from each other."""
        return self._words[::_WORDS].tolist()

    @cached_property
    def start_ns(self) -> list[int]:
        """When each call began, by CLOCK_MONOTONIC."""
        base, rate = self.base_ns, self.ns_per_count
        return [base + int(count * rate) for count in self._words[_START::_WORDS].tolist()]

    @cached_property
    def duration_ns(self) -> list[int]:
        """How long each call took."""
        rate = self.ns_per_count
        starts, ends = self._words[_START::_WORDS].tolist(), self._words[_END::_WORDS].tolist()
        return [int((end - start) * rate) for start, end in zip(starts, ends, strict=True)]

    @cached_property
    def values(self) -> list[int]:
        """The results, signed, as the kernel returned them: errors are from -4095 to -1."""
        return memoryview(self._raw).cast("q")[_RESULT::_WORDS].tolist()

    @cached_property
    def goids(self) -> list[int]:
        """The goroutines; 0 for the scheduler's own."""
        return self._words[_GOID::_WORDS].tolist()

    @cached_property
    def tids(self) -> list[int]:
        """The threads."""
        tids = self._words[_TID::_WORDS].tolist()
        return tids if self._outer_tid is None else list(map(self._outer_tid, tids))

    @property
    def thread_numbers(self) -> dict[int, int]:
        """The numbers here of its threads, by those that the program knows; empty if they are the same."""
        if self._outer_tid is None:
            return {}
        return {tid: self._outer_tid(tid) for tid in set(self._words[_TID::_WORDS].tolist())}

    def packed(self) -> bytes:
        """Return the records as `ring_packing` packs them."""
        return pack(self._raw)

    def number_threads(self, outer_tid: Callable[[int], int]) -> None:
        """Let `tids` be the numbers that *outer_tid* gives the program's own; before they are first used."""
        self._outer_tid = outer_tid

    @cached_property
    def stacks(self) -> list[bytes]:
        """The return addresses, 8 bytes each, innermost first."""
        raw = self._raw
        depths = memoryview(raw)[_FRAMES_BYTE::RECORD_BYTES].tolist()
        starts = range(_STACK * 8, len(raw), RECORD_BYTES)
        limit = MAX_FRAMES
        return [
            raw[at : at + 8 * (depth if depth < limit else limit)]
            for at, depth in zip(starts, depths, strict=True)
        ]

    @cached_property
    def lengths(self) -> tuple[list[int], list[int]]:
        """How many bytes the first and the second copied argument have in each record."""
        return self._halves[_LENGTH0::_HALVES].tolist(), self._halves[_LENGTH1::_HALVES].tolist()

    @cached_property
    def has_errors(self) -> bool:
        """Whether any result is an error."""
        return min(self.values, default=0) < 0

    def args(self, index: int) -> list[int]:
        """Return the register *index* of each call, unsigned."""
        column = self._args.get(index)
        if column is None:
            column = self._args[index] = self._words[_ARGS + index :: _WORDS].tolist()
        return column

    def data(self, indexes: Iterable[int], slot: int) -> list[bytes]:
        """Return the bytes of the first (0) or second (1) copied argument of these records; empty for none."""
        raw = self._raw
        first, second = self.lengths
        limit = DATA_BYTES
        if slot == 0:
            return [
                raw[at : at + min(first[index], limit)]
                for index in indexes
                for at in (index * RECORD_BYTES + _DATA_BYTE,)
            ]
        found = []
        for index in indexes:
            skipped = min(first[index], limit)
            at = index * RECORD_BYTES + _DATA_BYTE + skipped
            found.append(raw[at : at + min(second[index], limit - skipped)])
        return found

    def planned(self, plans: Mapping[int, CallPlan]) -> "RingBatch":
        """Return the same records as those of other calls."""
        batch = RingBatch(self._raw, self.pid, plans, self.base_ns, self.ns_per_count)
        batch._outer_tid = self._outer_tid
        return batch

    def calls(self) -> "RingBatch":
        """Return the records of calls alone; those of numbers that nobody asked for the program wrote itself."""
        if self._plans.keys() >= set(self.numbers):
            return self
        return self.select([index for index, number in enumerate(self.numbers) if number in self._plans])

    def select(self, indexes: Sequence[int]) -> "RingBatch":
        """Return the batch of these records alone."""
        if len(indexes) == self.size:
            return self
        part = RingBatch(self._cut(indexes), self.pid, self._plans, self.base_ns, self.ns_per_count)
        part._outer_tid = self._outer_tid
        return part

    def groups(self) -> "Iterator[CallGroup]":
        """Return the records by call."""
        numbers = self.numbers
        kinds = set(numbers)
        if len(kinds) == 1:
            yield CallGroup(self, self._plans[numbers[0]], range(self.size))
            return
        by_number: dict[int, list[int]] = {number: [] for number in kinds}
        for index, number in enumerate(numbers):
            by_number[number].append(index)
        for number, indexes in by_number.items():
            yield CallGroup(self, self._plans[number], indexes)

    def tuples(
        self, made_type: type[_T], name_frames: Callable[[bytes], tuple[Any, ...]] | None = None
    ) -> list[_T]:
        """Return the records as tuples of a type with the fields of `ring.RingCall`, in their order.

        name_frames: makes the last field of an item of `stacks`; without it that is empty.
        """
        new, plans, pid = tuple.__new__, self._plans, self.pid
        registers = zip(*(self.args(index) for index in range(6)), strict=True)
        everything = range(self.size)
        first, second = self.data(everything, 0), self.data(everything, 1)
        frames = map(name_frames, self.stacks) if name_frames else iter(((),) * self.size)
        made = []
        for number, start, duration, tid, args, data0, data1, value, goid, stack in zip(
            self.numbers, self.start_ns, self.duration_ns, self.tids, registers, first, second, self.values,
            self.goids, frames, strict=True,
        ):  # fmt: skip
            row, copied = plans[number]
            ins = outs = _NO_BYTES
            if len(copied) > 1:
                if data0 or data1:
                    ins, outs = _by_argument(copied, (data0, data1))
            elif data0 and copied:
                if copied[0].filled:
                    outs = {copied[0].arg: data0}
                else:
                    ins = {copied[0].arg: data0}
            errno = 0
            if value < 0 and value >= -_MAX_ERRNO:
                value, errno = -1, -value
            fields = (
                start, duration, pid, tid, row.name, args, ins, outs, value, errno, False, goid or None, stack
            )  # fmt: skip
            made.append(new(made_type, fields))
        return made

    def _cut(self, indexes: Iterable[int]) -> bytes:
        raw = self._raw
        return b"".join([raw[index * RECORD_BYTES : (index + 1) * RECORD_BYTES] for index in indexes])


class CallGroup:
    """The records of one call in a batch. indexes: where they stand in it, ascending."""

    def __init__(self, batch: RingBatch, plan: CallPlan, indexes: Sequence[int]) -> None:
        self.batch = batch
        self._plan = plan
        self.row = plan.row
        self.copied = plan.copied
        self.indexes = indexes
        self._is_all = len(indexes) == batch.size
        self._pick = itemgetter(*indexes) if len(indexes) > 1 else None
        self._args: dict[int, Sequence[int]] = {}
        self._data: dict[int, list[bytes]] = {}

    def pick(self, column: Sequence[_V]) -> Sequence[_V]:
        """Return a column of the batch for this group's records alone."""
        if self._is_all:
            return column
        if self._pick is None:
            return [column[self.indexes[0]]]
        picked: Sequence[_V] = self._pick(column)
        return picked

    def part(self, indexes: Sequence[int]) -> "CallGroup":
        """Return the group of some of its records, by where they stand in the batch."""
        return CallGroup(self.batch, self._plan, indexes)

    def args(self, index: int) -> Sequence[int]:
        """Return register *index* of each call."""
        column = self._args.get(index)
        if column is None:
            column = self._args[index] = self.pick(self.batch.args(index))
        return column

    @cached_property
    def values(self) -> Sequence[int]:
        """The results, as `RingBatch.values`."""
        return self.pick(self.batch.values)

    def data(self, arg: int, *, filled: bool) -> list[bytes] | None:
        """Return what was read or *filled* at argument *arg*, empty where nothing is; None if it is never copied."""
        for slot, copied in enumerate(self.copied):
            if copied == (arg, filled):
                column = self._data.get(slot)
                if column is None:
                    column = self._data[slot] = self.batch.data(self.indexes, slot)
                return column
        return None

    def call(
        self, position: int
    ) -> tuple[tuple[int, ...], Mapping[int, bytes], Mapping[int, bytes], int, int]:
        """Return args, ins, outs, value and errno of the group's call at *position*, as decoders take them."""
        args = tuple(self.args(index)[position] for index in range(6))
        data = tuple((self.data(one.arg, filled=one.filled) or [])[position] for one in self.copied)
        ins, outs = _by_argument(self.copied, data)
        value = self.values[position]
        if -_MAX_ERRNO <= value < 0:
            return args, ins, outs, -1, -value
        return args, ins, outs, value, 0


def _by_argument(
    copied: tuple[CopiedArg, ...], data: Sequence[bytes]
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Return what was read and what was filled, by argument. Nothing is no bytes, but before a second argument's."""
    ins: dict[int, bytes] = {}
    outs: dict[int, bytes] = {}
    for one, content in zip(copied, data, strict=False):
        if content or data[-1]:
            (outs if one.filled else ins)[one.arg] = content
    return ins, outs
