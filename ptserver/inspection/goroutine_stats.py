"""What each goroutine has used: processor time, time blocked, calls and their bytes. Pure: fed by whoever watches.

Three kinds of things are taken, in any mixture:

    calls       exact: how many, how many failed, their time, the bytes that they moved, by goroutine
    threads     from time to time, the processor time of each thread and the goroutine that it runs at that moment
    listings    from time to time, all goroutines with their states

Processor time is an estimate. The kernel counts it by thread. What a thread used since it was last seen running is
given to the goroutine that it is seen running next. One is seen running as often as it runs, so in the long run
each gets what it used, and none is lost or made up: the sum of all, and of what is not yet given to any, is what
the kernel says. In the short run it is as good as the number of samples; `cpu_error_ns` is the standard deviation of
what a goroutine has been given, at most. Calls say nothing here: they show where a goroutine was, but show those that
make calls too often.

Blocked time is an estimate as well: the time between two listings counts if a goroutine waited at both, half of it
(also in `blocked_unsure_ns`) if at one. Who knows better (`ptserver.inspection.blocked_time`) hands in `take_blocked`
and asks for no estimates.

Bounded: at most `max_goroutines` are kept one by one. Those that have ended, and the longest unseen of too many, are
added up by the place where they were created.
"""

import math
import os
from collections.abc import Iterable
from typing import NamedTuple

from ptserver.inspection.goroutine_list import printable
from ptserver.tracelog.events import SyscallEvent, row_of
from stepping.ring_batch import RingBatch
from stepping.syscalls import ArgKind, ResultKind

#: Stands for what runs on threads without a goroutine: the scheduler, the collector's own work, C code.
NO_GOROUTINE = 0

_IN = frozenset({ArgKind.IN, ArgKind.IOV_IN, ArgKind.MSG_IN, ArgKind.MMSG_IN})
_OUT = frozenset({ArgKind.OUT, ArgKind.IOV_OUT, ArgKind.MSG_OUT, ArgKind.MMSG_OUT})
_ABSENT_LISTINGS = 2
_MAX_ERRNO = 4095


class ThreadSample(NamedTuple):
    """A thread at one moment.

    cpu_ns: since it began; runs: whether it is on a processor, or waits for one; goid: of the goroutine that it has,
    or `NO_GOROUTINE`.
    """

    tid: int
    cpu_ns: int
    runs: bool
    goid: int


class Listed(NamedTuple):
    """A goroutine at one moment. waits: whether it is blocked; site: the go statement that made it, for people."""

    goid: int
    waits: bool
    site: str


class Totals:
    """Sums. Times in nanoseconds; read_bytes: what calls brought in, written_bytes: what they took out."""

    __slots__ = (
        "blocked_ns",
        "blocked_unsure_ns",
        "call_ns",
        "calls",
        "cpu_ns",
        "cpu_square",
        "errors",
        "read_bytes",
        "written_bytes",
    )

    def __init__(self) -> None:
        self.calls = self.errors = self.call_ns = self.read_bytes = self.written_bytes = 0
        self.cpu_ns = self.cpu_square = self.blocked_ns = self.blocked_unsure_ns = 0

    @property
    def cpu_error_ns(self) -> int:
        """The standard deviation of `cpu_ns`, at most: the root of the sum of the squares of what was given."""
        return math.isqrt(self.cpu_square)

    def add(self, other: "Totals") -> None:
        """Add another's sums to these."""
        self.calls += other.calls
        self.errors += other.errors
        self.call_ns += other.call_ns
        self.read_bytes += other.read_bytes
        self.written_bytes += other.written_bytes
        self.cpu_ns += other.cpu_ns
        self.cpu_square += other.cpu_square
        self.blocked_ns += other.blocked_ns
        self.blocked_unsure_ns += other.blocked_unsure_ns


class Account(Totals):
    """The sums of one goroutine. site: as `Listed.site`, "" if it is not known; last_ns: when it was last seen."""

    __slots__ = ("absent", "goid", "last_ns", "site", "waits")

    def __init__(self, goid: int, now_ns: int) -> None:
        super().__init__()
        self.goid = goid
        self.site = ""
        self.last_ns = now_ns
        self.waits = False
        self.absent = 0


class SiteTotals(Totals):
    """The sums of all goroutines that one go statement made; live and ended: how many of them there were."""

    __slots__ = ("ended", "live", "site")

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.live = self.ended = 0


class _Thread:
    """A thread: its processor time when it was last sampled, and how much of that nobody has been given yet."""

    __slots__ = ("cpu_ns", "pool_ns")

    def __init__(self, cpu_ns: int) -> None:
        self.cpu_ns = cpu_ns
        self.pool_ns = 0


class Accounts:
    """The accounts of all goroutines of one program; see the module's text.

    estimate_blocked: whether listings say how long goroutines were blocked. All times are of one clock.
    """

    def __init__(self, *, max_goroutines: int = 1 << 16, estimate_blocked: bool = True) -> None:
        self._max = max_goroutines
        self.estimate_blocked = estimate_blocked
        self._accounts: dict[int, Account] = {}
        self._ended: dict[str, SiteTotals] = {}
        self._threads: dict[int, _Thread] = {}
        self._lost_ns = 0
        self._sampled = False
        self._listed_ns: int | None = None

    def take_call(self, event: SyscallEvent) -> None:
        """Take a call that has ended, or that nobody saw the end of (it counts, with no time)."""
        duration_ns = event.duration_ns or 0
        moved = max(event.value or 0, 0)
        end_ns = event.start_ns + duration_ns
        self.add_calls(
            event.goid or NO_GOROUTINE, event.name, 1, int(event.errno != 0), duration_ns, moved, end_ns
        )

    def take_batch(self, batch: RingBatch, now_ns: int) -> dict[str, tuple[int, int, int]]:
        """Take many calls, the same as `take_call` of each, and quicker: what belongs together is added up first.

        Returns by name how many calls there were, how many failed, and their time.
        """
        sums: dict[str, tuple[int, int, int]] = {}
        durations, goids, values = batch.duration_ns, batch.goids, batch.values
        for group in batch.groups():
            by_goroutine: dict[int, list[int]] = {}
            for index in group.indexes:
                value = values[index]
                used = by_goroutine.get(goids[index])
                if used is None:
                    used = by_goroutine[goids[index]] = [0, 0, 0, 0]
                used[0] += 1
                used[2] += durations[index]
                if value > 0:
                    used[3] += value
                elif 0 > value >= -_MAX_ERRNO:
                    used[1] += 1
            name = group.row.name
            for goid, (calls, errors, call_ns, moved) in by_goroutine.items():
                self.add_calls(goid, name, calls, errors, call_ns, moved, now_ns)
            columns = zip(*by_goroutine.values(), strict=True)
            calls, errors, call_ns, _ = (sum(column) for column in columns)
            sums[name] = calls, errors, call_ns
        return sums

    def add_calls(
        self, goid: int, name: str, calls: int, errors: int, call_ns: int, moved: int, last_ns: int
    ) -> None:
        """Take calls of one name by one goroutine. moved: the sum of what they returned, if they did not fail."""
        account = self._accounts.get(goid) or self._open(goid, last_ns)
        account.calls += calls
        account.errors += errors
        account.call_ns += call_ns
        account.last_ns = max(account.last_ns, last_ns)
        if moved:
            moves = _MOVES.get(name)
            if moves is None:
                moves = _MOVES[name] = _moves(name)
            account.read_bytes += moved * moves[0]
            account.written_bytes += moved * moves[1]

    def take_threads(self, now_ns: int, samples: Iterable[ThreadSample]) -> None:
        """Take a sample of all threads."""
        before = self._threads
        self._threads = {}
        for tid, cpu_ns, runs, goid in samples:
            thread = before.pop(tid, None)
            if thread is None or cpu_ns < thread.cpu_ns:
                # One that is new began with nothing; of one that was there before us only the rest counts.
                thread = _Thread(0 if self._sampled else cpu_ns)
            self._threads[tid] = thread
            thread.pool_ns += cpu_ns - thread.cpu_ns
            thread.cpu_ns = cpu_ns
            if runs and thread.pool_ns:
                account = self._accounts.get(goid) or self._open(goid, now_ns)
                account.cpu_ns += thread.pool_ns
                account.cpu_square += thread.pool_ns**2
                account.last_ns = max(account.last_ns, now_ns)
                thread.pool_ns = 0
        self._lost_ns += sum(thread.pool_ns for thread in before.values())
        self._sampled = True

    @property
    def pending_cpu_ns(self) -> int:
        """Processor time that no goroutine has been given: of threads not seen running since, or that have ended."""
        return self._lost_ns + sum(thread.pool_ns for thread in self._threads.values())

    def take_listing(self, now_ns: int, goroutines: Iterable[Listed]) -> None:
        """Take a list of all goroutines that there are."""
        elapsed_ns = 0 if self._listed_ns is None else max(0, now_ns - self._listed_ns)
        self._listed_ns = now_ns
        missing = set(self._accounts)
        missing.discard(NO_GOROUTINE)
        for goid, waits, site in goroutines:
            account = self._accounts.get(goid) or self._open(goid, now_ns)
            missing.discard(goid)
            account.site = site
            account.absent = 0
            account.last_ns = max(account.last_ns, now_ns)
            if self.estimate_blocked and elapsed_ns:
                if waits and account.waits:
                    account.blocked_ns += elapsed_ns
                elif waits or account.waits:
                    account.blocked_ns += elapsed_ns // 2
                    account.blocked_unsure_ns += elapsed_ns // 2
            account.waits = waits
        for goid in missing:
            absent = self._accounts.get(goid)
            if absent is None:
                continue  # it had to make room
            absent.absent += 1
            # Calls of one that has just ended may be on their way yet.
            if absent.absent >= _ABSENT_LISTINGS:
                self._close(absent)

    def take_blocked(self, goid: int, duration_ns: int, end_ns: int) -> None:
        """Take a time that a goroutine is known to have been blocked, up to *end_ns*."""
        account = self._accounts.get(goid) or self._open(goid, end_ns)
        account.blocked_ns += duration_ns
        account.last_ns = max(account.last_ns, end_ns)

    def name_site(self, goid: int, site: str, now_ns: int) -> None:
        """Note where a goroutine was created, when somebody knows without a listing."""
        (self._accounts.get(goid) or self._open(goid, now_ns)).site = site

    def get(self, goid: int) -> Account | None:
        """Return the account of a goroutine, None if there is nothing on it."""
        return self._accounts.get(goid)

    def by_goroutine(self) -> list[Account]:
        """Return the accounts that are kept one by one, `NO_GOROUTINE`'s too; they change with what is taken."""
        return list(self._accounts.values())

    def by_site(self) -> list[SiteTotals]:
        """Return the sums by go statement, of goroutines that have ended too; without `NO_GOROUTINE`."""
        sites: dict[str, SiteTotals] = {}
        for ended in self._ended.values():
            totals = sites[ended.site] = SiteTotals(ended.site)
            totals.ended = ended.ended
            totals.add(ended)
        for account in self._accounts.values():
            if account.goid != NO_GOROUTINE:
                totals = sites.get(account.site) or sites.setdefault(account.site, SiteTotals(account.site))
                totals.live += 1
                totals.add(account)
        return list(sites.values())

    def total(self) -> Totals:
        """Return the sums of everything that was taken; processor time with `pending_cpu_ns`."""
        sums = Totals()
        for totals in (*self._accounts.values(), *self._ended.values()):
            sums.add(totals)
        sums.cpu_ns += self.pending_cpu_ns
        return sums

    def _open(self, goid: int, now_ns: int) -> Account:
        if len(self._accounts) >= self._max:
            others = [account for account in self._accounts.values() if account.goid != NO_GOROUTINE]
            others.sort(key=lambda account: account.last_ns)
            for account in others[: self._max // 4 + 1]:
                self._close(account)
        account = self._accounts[goid] = Account(goid, now_ns)
        return account

    def _close(self, account: Account) -> None:
        site = account.site
        ended = self._ended.get(site) or self._ended.setdefault(site, SiteTotals(site))
        ended.ended += 1
        ended.add(account)
        del self._accounts[account.goid]


def format_site(function: str, file: str, line: int) -> str:
    """Return a place in a program for people."""
    return printable(f"{function} {os.path.basename(file)}:{line}")


#: By name of a call that returns a number of bytes, how often those count as read and as written.
_MOVES: dict[str, tuple[int, int]] = {}


def _moves(name: str) -> tuple[int, int]:
    row = row_of(name)
    if row.result is not ResultKind.BYTES:
        return 0, 0
    kinds = {arg.kind for arg in row.args}
    if kinds & _OUT:
        return 1, 0
    # What has no buffer moves from one descriptor to another (sendfile, splice...): in and out again.
    return (0, 1) if kinds & _IN else (1, 1)
