"""Records of a ring without a program, for tests of what reads them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stepping.ring_batch import RingBatch, plans_of
from stepping.ring_layout import DATA_BYTES, MAX_FRAMES, RECORD, STACK
from stepping.syscalls.table import SYSCALLS

PLANS = plans_of(SYSCALLS.values())


class Record(NamedTuple):
    """A record, as the routine would have written it; times are in nanoseconds."""

    name: str
    args: Sequence[int] = (0,) * 6
    value: int = 0
    goid: int = 0
    tid: int = 7
    start: int = 1_000_000_000
    duration: int = 500
    stack: Sequence[int] = ()
    data: tuple[bytes, bytes] = (b"", b"")


def batch_of(records: Iterable[Record], pid: int = 7) -> RingBatch:
    """Return the records as the reader gets them."""
    raw = []
    for index, one in enumerate(records, 1):
        data = one.data[0] + one.data[1]
        assert len(data) <= DATA_BYTES
        stack = STACK.pack(*one.stack, *[0] * (MAX_FRAMES - len(one.stack)))
        raw.append(
            RECORD.pack(
                index, one.start, one.start + one.duration, SYSCALLS[one.name].numbers["amd64"], len(one.stack),
                *map(len, one.data), *one.args, one.value, one.goid, 0, one.tid, stack, data,
            )
        )  # fmt: skip
    return RingBatch(b"".join(raw), pid, PLANS, 0, 1.0)
