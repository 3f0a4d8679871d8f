"""What `ptserver ps` and `ptserver top` show of a spread program: its hosts, its goroutines, its faults."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from goabi.errors import GoAbiError
from goabi.goroutine import Goroutine, GoStatus
from goabi.sched import GoRuntime
from ptserver.spread.operator import threads_of
from ptserver.spread.operator_messages import FaultRow, HostRow, Listed, UnlinkedRow

_OBJECT = 1  # STT_OBJECT


class _Row(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """Base of rows."""


class Program(_Row, frozen=True, tag="program"):
    """The program. session: its name for other commands; pid: of its process at host 0; moves: of threads so far.

    counts: what became of pages so far: first touches, reads, writes and upgrades by a host that lacked them, and
    pages fetched ahead; of those that went from one host to another, neither of which is host 0, how many went
    straight and how many were relayed by the home. unadapted: adaptations that its code has no place for. unlinked:
    pairs of hosts that have no connection with each other, and why.
    """

    session: str
    pid: int
    path: str
    moves: int
    counts: dict[str, int]
    unadapted: tuple[str, ...]
    unlinked: tuple[UnlinkedRow, ...] = ()


class Host(_Row, frozen=True, tag="host"):
    """A host; the fields are those of `HostRow`."""

    host: int
    address: str
    condition: str
    threads: int
    running: int
    pages: int
    straight: tuple[int, ...] = ()


class GoroutineAt(_Row, frozen=True, tag="goroutine"):
    """A goroutine. host, tid: where it runs and on which thread, None if no thread runs it. function: where it began.

    state, reason: as Go says them. doing: what its thread does, as `ThreadRow` says. stays: why it does not move now,
    empty if it computes. pinned: by runtime/remote.Migrate. moves: of its thread. faults: of its thread, since the
    last listing.
    """

    goid: int
    state: str
    function: str
    reason: str = ""
    host: int | None = None
    tid: int | None = None
    doing: str = ""
    pinned: bool = False
    moves: int = 0
    faults: int = 0
    stays: str = ""


class FaultsAt(_Row, frozen=True, tag="faults"):
    """How often memory had to be fetched in the interval. symbol: what lies there, as `Places.name` says."""

    symbol: str
    reads: int
    writes: int


Row = Program | Host | GoroutineAt | FaultsAt


class Listing(NamedTuple):
    """One look."""

    program: Program
    hosts: list[Host]
    goroutines: list[GoroutineAt]
    faults: list[FaultsAt]

    def rows(self) -> Iterator[Row]:
        """Yield everything in it."""
        yield self.program
        yield from self.hosts
        yield from self.goroutines
        yield from self.faults


def look(session: str, listed: Listed, runtime: GoRuntime, *, system: bool = False) -> Listing:
    """Return what is to be seen now. system: Go's own goroutines, too.

    Raises:
        GoAbiError: the program's list of goroutines cannot be read, as before it has begun.
    """
    goroutines = list(runtime.iter_goroutines())
    by_tid = Counter[int]()
    for row in listed.faults:
        by_tid[row.tid] += row.count
    shown = [g for g in goroutines if system or not runtime.is_system(g)]
    return Listing(
        Program(
            session, listed.pid, listed.path, listed.moves, listed.counts, listed.unadapted, listed.unlinked
        ),
        [_host(row) for row in listed.hosts],
        list(_goroutines(shown, listed, runtime, by_tid)),
        list(_faults(listed.faults, Places(runtime, goroutines))),
    )


def find_stay(goid: int, listed: Listed, runtime: GoRuntime) -> str:
    """Return why goroutine *goid* does not move now, in words."""
    goroutine = runtime.find_goroutine(goid)
    if goroutine is None:
        return "it has ended"
    m = threads_of(runtime).get(goroutine.addr)
    doing = next((row.doing for row in listed.threads if m is not None and row.tid == m.procid), "")
    stays = why_it_stays(goroutine.status, runtime.wait_reason(goroutine), doing)
    return stays or "it had no processor, or waited for memory"


def why_it_stays(status: GoStatus, reason: str, doing: str) -> str:
    """Return why a goroutine does not move now; empty if it computes.

    reason: why it waits; doing: what its thread does, as `ThreadRow` says, empty if that is not known.
    """
    match status:
        case GoStatus.WAITING:
            return f"it sleeps ({reason})"
        case GoStatus.SYSCALL if doing == "runs":
            return "it executes C code, and that of a library is at host 0 alone"
        case GoStatus.SYSCALL:
            return f"it is in {doing or 'a call'}"
        case GoStatus.RUNNABLE | GoStatus.PREEMPTED:
            return "it waits for a processor"
        case _:
            return ""


def _host(row: HostRow) -> Host:
    return Host(row.host, row.address, row.condition, row.threads, row.running, row.pages, row.straight)


def _goroutines(
    goroutines: Iterable[Goroutine], listed: Listed, runtime: GoRuntime, faults: Counter[int]
) -> Iterator[GoroutineAt]:
    threads = {row.tid: row for row in listed.threads}
    ms = threads_of(runtime)
    for goroutine in goroutines:
        entry = runtime.entry(goroutine)
        m = ms.get(goroutine.addr)
        thread = threads.get(m.procid) if m is not None else None
        reason = runtime.wait_reason(goroutine) if goroutine.status is GoStatus.WAITING else ""
        row = GoroutineAt(
            goroutine.goid,
            goroutine.status.name.lower(),
            entry.function if entry is not None else "",
            reason,
            stays=why_it_stays(goroutine.status, reason, thread.doing if thread is not None else ""),
        )
        if thread is not None:
            row = msgspec.structs.replace(
                row,
                host=thread.host,
                tid=thread.tid,
                doing=thread.doing,
                pinned=thread.pinned,
                moves=thread.moves,
                faults=faults[thread.tid],
            )
        yield row


def _faults(rows: Iterable[FaultRow], places: "Places") -> Iterator[FaultsAt]:
    reads, writes = Counter[str](), Counter[str]()
    for row in rows:
        (writes if row.write else reads)[places.name(row.address)] += row.count
    for symbol, _ in (reads + writes).most_common():
        yield FaultsAt(symbol, reads[symbol], writes[symbol])


class _Span(NamedTuple):
    start: int
    end: int
    name: str


class Places:
    """What lies where in the program: its variables, the runtime's records of goroutines, Ms and Ps, and stacks."""

    def __init__(self, runtime: GoRuntime, goroutines: Iterable[Goroutine]) -> None:
        spans = sorted([*_variables(runtime), *_records(runtime, goroutines)])
        self._segments = runtime.binary.elf.writable_segments
        self._spans = spans
        self._starts = [span.start for span in spans]

    def name(self, address: int) -> str:
        """Return a variable's name, ``stack of goroutine N``, ``g of goroutine N``, ``m N``, ``p N``, or ``heap``.

        A variable without a symbol, as all are in a stripped program, is ``data``.
        """
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._spans[index].end:
            return self._spans[index].name
        return (
            "data"
            if any(each.vaddr <= address < each.vaddr + each.memsz for each in self._segments)
            else "heap"
        )


def _variables(runtime: GoRuntime) -> Iterator[_Span]:
    for symbol in runtime.binary.elf.iter_symbols():
        if symbol.type == _OBJECT and symbol.size:
            yield _Span(symbol.addr, symbol.addr + symbol.size, symbol.name)


def _records(runtime: GoRuntime, goroutines: Iterable[Goroutine]) -> Iterator[_Span]:
    g_bytes = runtime.layouts["g"].size
    for g in goroutines:
        yield _Span(g.addr, g.addr + g_bytes, f"g of goroutine {g.goid}")
        yield _Span(g.stack_lo, g.stack_hi, f"stack of goroutine {g.goid}")
    try:
        for m in runtime.iter_ms():
            yield _Span(m.addr, m.addr + runtime.layouts["m"].size, f"m {m.id}")
        for p in runtime.read_ps():
            yield _Span(p.addr, p.addr + runtime.layouts["p"].size, f"p {p.id}")
    except GoAbiError:
        pass  # they decorate, and change while they are read
