"""Goroutines, Ms and Ps as records, decoded from the bytes of the runtime's structs.

Decoding is pure. Programs have a million goroutines, so a record is a named tuple that one `struct.unpack` and one
reordering make. Everything in it is an address of the process, as the runtime has it (the load bias included).
"""

from collections.abc import Callable
from enum import IntEnum
from operator import itemgetter
from typing import Any, NamedTuple

from goabi.errors import RuntimeDataError
from goabi.layouts import Layout, Layouts


class GoStatus(IntEnum):
    """A goroutine's status. Source: runtime/runtime2.go; the numbers are the same in Go 1.21 to 1.27."""

    IDLE = 0
    RUNNABLE = 1
    RUNNING = 2
    SYSCALL = 3
    WAITING = 4
    MORIBUND = 5
    DEAD = 6
    ENQUEUE = 7
    COPYSTACK = 8
    PREEMPTED = 9
    LEAKED = 10
    DEADEXTRA = 11


class PStatus(IntEnum):
    """A P's status. Since Go 1.26 a P in a system call stays RUNNING."""

    IDLE = 0
    RUNNING = 1
    SYSCALL = 2
    GCSTOP = 3
    DEAD = 4


_SCAN_BIT = 0x1000
_DEAD = frozenset({GoStatus.IDLE, GoStatus.DEAD, GoStatus.DEADEXTRA})
_STATUSES = {number | scan: (GoStatus(number), bool(scan)) for number in GoStatus for scan in (0, _SCAN_BIT)}


class Goroutine(NamedTuple):
    """One goroutine (or an M's own: g0, gsignal). Times are the runtime's monotonic clock, in ns.

    `wait_since_ns` is 0 unless the collector has seen it wait (see `GoRuntime.wait_ns`). `gopc` is the
    return address of the go
    statement, `startpc` the entry of its function. `sched_*` is where it resumes when it does not run;
    `syscall_*` where it entered a system call (0 when it is in none). `waiting` is its first sudog.
    """

    addr: int
    goid: int
    raw_status: int
    wait_reason_index: int
    wait_since_ns: int
    parent_goid: int
    gopc: int
    startpc: int
    stack_lo: int
    stack_hi: int
    m: int
    sched_sp: int
    sched_pc: int
    sched_lr: int
    sched_bp: int
    syscall_sp: int
    syscall_pc: int
    waiting: int
    param: int
    labels: int
    locked_m: int
    sig: int
    sigpc: int
    async_safe_point: int
    preempt: int

    @property
    def status(self) -> GoStatus:
        """The status without the collector's scan bit."""
        return _STATUSES[self.raw_status][0]

    @property
    def is_being_scanned(self) -> bool:
        """Whether the collector owns its stack at the moment."""
        return _STATUSES[self.raw_status][1]

    @property
    def is_dead(self) -> bool:
        """Whether it is no goroutine at present: finished, or not begun."""
        return self.status in _DEAD


class M(NamedTuple):
    """An OS thread of the runtime's. `procid` is its tid; `p` is 0 unless it may run Go code."""

    addr: int
    id: int
    procid: int
    g0: int
    gsignal: int
    curg: int
    p: int
    locked_g: int
    next: int
    spinning: bool
    blocked: bool
    in_cgo: bool
    is_extra: bool
    cgo_calls: int
    vdso_sp: int
    vdso_pc: int


class P(NamedTuple):
    """A processor. `run_queue` holds the addresses of its runnable goroutines, next first."""

    addr: int
    id: int
    status: PStatus
    m: int
    sched_tick: int
    syscall_tick: int
    run_queue: tuple[int, ...]


# The record's fields in order, and the runtime's for each; `addr` comes from elsewhere.
_G_FIELDS = (
    *(
        "goid",
        "atomicstatus",
        "waitreason",
        "waitsince",
        "parentGoid",
        "gopc",
        "startpc",
        "stack.lo",
        "stack.hi",
    ),
    *(
        "m",
        "sched.sp",
        "sched.pc",
        "sched.lr",
        "sched.bp",
        "syscallsp",
        "syscallpc",
        "waiting",
        "param",
        "labels",
    ),
    *("lockedm", "sig", "sigpc", "asyncSafePoint", "preempt"),
)
_RUN_QUEUE_SLOTS = 256


class Decoder:
    """Decodes the three kinds of records by a binary's layouts. Raises: `LayoutError` when they do not suffice."""

    def __init__(self, layouts: Layouts) -> None:
        layout = layouts["g"]
        self.g_bytes = max(sum(layout.fields[name]) for name in _G_FIELDS)
        by_offset = sorted(_G_FIELDS, key=layout.offset)
        self._g_unpack = layout.unpacker(_G_FIELDS)
        self._g_order: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(
            *(by_offset.index(name) for name in _G_FIELDS)
        )
        self._m, self._p = layouts["m"], layouts["p"]
        self.m_bytes, self.p_bytes = self._m.size, self._p_end(self._p)

    @staticmethod
    def _p_end(layout: Layout) -> int:
        """A P is large, and all that is read lies at its beginning."""
        return max(sum(layout.fields[name]) for name in ("runq", "runnext", "m", "syscalltick"))

    def decode_g(self, addr: int, raw: bytes) -> Goroutine:
        """The goroutine at `addr`, of which `raw` is at least `g_bytes`. Raises: `RuntimeDataError`."""
        goroutine = Goroutine(addr, *self._g_order(self._g_unpack.unpack_from(raw)))
        if goroutine.raw_status not in _STATUSES or goroutine.stack_lo > goroutine.stack_hi:
            raise RuntimeDataError(f"there is no goroutine at {addr:#x}, or it is just being made")
        return goroutine

    def decode_m(self, addr: int, raw: bytes) -> M:
        """The M at `addr`."""
        get = self._m.get
        return M(
            addr=addr,
            id=get(raw, "id"),
            procid=get(raw, "procid"),
            g0=get(raw, "g0"),
            gsignal=get(raw, "gsignal"),
            curg=get(raw, "curg"),
            p=get(raw, "p"),
            locked_g=get(raw, "lockedg"),
            next=get(raw, "alllink"),
            spinning=bool(get(raw, "spinning")),
            blocked=bool(get(raw, "blocked")),
            in_cgo=bool(get(raw, "incgo")),
            is_extra=bool(get(raw, "isextra")),
            cgo_calls=get(raw, "ncgocall"),
            vdso_sp=get(raw, "vdsoSP"),
            vdso_pc=get(raw, "vdsoPC"),
        )

    def decode_p(self, addr: int, raw: bytes) -> P:
        """The P at `addr`. Raises: `RuntimeDataError`."""
        get = self._p.get
        status, head, tail = get(raw, "status"), get(raw, "runqhead"), get(raw, "runqtail")
        length = (tail - head) & 0xFFFFFFFF
        if status > PStatus.DEAD or length > _RUN_QUEUE_SLOTS:
            raise RuntimeDataError(f"there is no P at {addr:#x}, or it is being changed")
        slots = self._p.offset("runq")
        queue = [get(raw, "runnext")] if get(raw, "runnext") else []
        for number in range(head, head + length):
            at = slots + 8 * (number % _RUN_QUEUE_SLOTS)
            queue.append(int.from_bytes(raw[at : at + 8], "little"))
        return P(
            addr=addr,
            id=get(raw, "id"),
            status=PStatus(status),
            m=get(raw, "m"),
            sched_tick=get(raw, "schedtick"),
            syscall_tick=get(raw, "syscalltick"),
            run_queue=tuple(queue),
        )
