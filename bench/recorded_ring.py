"""A ring without a program: records as a busy server leaves them, put into shared memory for a reader to be timed.

The calls are those of a file and network server: names and buffers differ from call to call as they do there, so that
nothing is answered from a cache that a real program would miss.
"""

import dataclasses
import os
import random

from stepping.ring import Ring
from stepping.ring_clock import TscClock
from stepping.ring_inject import Installed
from stepping.ring_layout import (
    HEAD_OFFSET,
    LIMIT_OFFSET,
    RECORD,
    RECORD_BYTES,
    RECORDS_OFFSET,
    STACK,
    Parameters,
)
from stepping.ring_site import RingSite
from stepping.syscalls.table import SYSCALLS

#: What the server does for each request: a call, its six arguments, how much it copies, what it returns.
_REQUEST = (
    ("epoll_pwait", 0, 1),
    ("read", 64, 412),
    ("openat", -1, 11),
    ("fstat", 144, 0),
    ("pread64", 64, 4096),
    ("pread64", 64, 4096),
    ("close", 0, 0),
    ("write", 64, 8432),
    ("openat", -1, -2),
    ("epoll_ctl", 0, 0),
)
_WORDS = STACK.size // 8


def recorded_ring(records: int, pcs: list[int], *, pid: int = 4711) -> Ring:
    """Return a ring that holds *records*, a power of two, of process *pid*, with stacks made of *pcs*."""
    size = RECORDS_OFFSET + records * RECORD_BYTES
    fd = os.memfd_create("recorded-ring", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    os.pwrite(fd, _records(records, pcs, random.Random(1)), RECORDS_OFFSET)
    os.pwrite(fd, records.to_bytes(8, "little"), HEAD_OFFSET)
    os.pwrite(fd, records.to_bytes(8, "little"), LIMIT_OFFSET)
    none = dict.fromkeys((field.name for field in dataclasses.fields(Parameters)), 0)
    parameters = Parameters(**none | {"index_mask": records - 1, "ring_bytes": size})
    site = RingSite(0, 0, 0, 0, 0, "go1.27.3")
    return Ring(Installed(pid, site, 0, parameters, fd, 0.0), SYSCALLS.values())


def rewind(ring: Ring) -> None:
    """Let *ring* be read from its beginning again."""
    ring._tail = 0


def _count_now() -> int:
    clock = TscClock()
    try:
        return clock.read_count()
    finally:
        clock.close()


def _records(count: int, pcs: list[int], rng: random.Random) -> bytes:
    stacks = [[rng.choice(pcs) for _ in range(rng.randint(5, 12))] for _ in range(200)]
    packed = [(len(stack), STACK.pack(*stack, *[0] * (_WORDS - len(stack)))) for stack in stacks]
    stats = [b"".join(rng.randrange(1 << 16).to_bytes(8, "little") for _ in range(18)) for _ in range(500)]
    made = []
    clock = _count_now()
    for index in range(count):
        name, copied, value = _REQUEST[index % len(_REQUEST)]
        row = SYSCALLS[name]
        data = b""
        if copied < 0:
            data = f"/srv/www/site{rng.randrange(50)}/page{rng.randrange(40)}.html".encode()
        elif name == "fstat":
            data = rng.choice(stats)
        elif copied:
            data = b"HTTP/1.1 200 OK\r\nX-Request: %032x\r\nContent" % rng.getrandbits(128)
        depth, stack = rng.choice(packed)
        args = [rng.randrange(5, 90), 0xC000_0000_0000 + rng.randrange(1 << 20) * 64, 4096, index * 8, 0, 0]
        if name == "openat":
            args[0], args[2], args[3] = (1 << 64) - 100, 0o2000000, 0
        clock += rng.randrange(1000, 4000)
        made.append(
            RECORD.pack(
                index + 1, clock - rng.randrange(400, 900), clock, row.numbers["amd64"], depth, len(data), 0,
                *args, value, rng.randrange(20, 84), 0, 4711 + rng.randrange(4), stack, data,
            )
        )  # fmt: skip
    return b"".join(made)
