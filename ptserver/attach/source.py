"""Watches a running Go program and says, interval by interval, what it does.

Three things go on side by side, in small steps, so that whoever drives them (`poll`) can look at keys in between:

    calls       by the ring, if the program can have one; it is not stopped for them
    threads     sampled some 50 to 100 times a second, without a stop (`goroutine_meter`)
    goroutines  listed with their stacks, a few hundred in a stop of some milliseconds (`attach.listing`)

Not trusted: the program. Thread rules: one thread does everything, for the kernel ties tracees to threads.
"""

import heapq
import os
import select
import time
from collections.abc import Collection, Iterator, Sequence

import msgspec

from ptserver.attach.listing import STOP_RECORDS, Listing, place
from ptserver.attach.snapshot import CallUse, GoroutineUse, GroupUse, SiteUse, Snapshot, Use
from ptserver.inspection.goroutine_list import FrameRow, GoroutineRow, GroupRow, Selection
from ptserver.inspection.goroutine_meter import Meter
from ptserver.inspection.goroutine_stats import Account, Accounts, Listed, Totals
from ptserver.inspection.process import InspectedProcess
from ptserver.tracelog.frame_names import exe_identity
from ptserver.tracelog.go_events import RuntimeWanted, read_waits
from stepping.ring import BATCH, Ring
from stepping.ring_site import NoRingError, find_site
from stepping.syscalls import SYSCALLS

#: How much of each kind a snapshot has at most.
MOST_TOP, MOST_GROUPS, MOST_SITES, MOST_CALLS = 200, 100, 100, 100


class AttachSource:
    """Watches process *pid*; close it.

    names: the calls to count, by name; none, and the program is left without a ring. selection: which goroutines
    to show. force: as `inspect_process`. exact: measure how long goroutines are blocked, by the ring.

    Raises:
        InspectError: there is no such process, or it runs no Go program that is known.
        PtraceRefusedError: the kernel does not allow it.
    """

    def __init__(
        self,
        pid: int,
        names: Collection[str],
        selection: Selection,
        *,
        force: bool = False,
        exact: bool = False,
    ) -> None:
        self._inspected = InspectedProcess(pid, force=force, stop_records=STOP_RECORDS)
        self.pid = self._inspected.pid
        self.title = self._inspected.title
        self._notes: list[str] = []
        self._ring: Ring | None = None
        self._meter = Meter(self.pid, listings=False)
        accounts = self._meter.accounts
        self._listing = Listing(self._inspected, selection, lambda goid: accounts.get(goid) is not None)
        self._pidfd = os.pidfd_open(self.pid)
        self._exe = exe_identity(self.pid)
        self._calls: dict[str, list[int]] = {}
        self._lost = self._lost_waits = self._stops = 0
        self._before: dict[int, Use] = {}
        self._sites_before: dict[str, Use] = {}
        self._total_before = Use()
        self._blocked = _Blocked()
        self._since = time.monotonic_ns()
        try:
            if names or exact:
                self._attach_ring(names, RuntimeWanted(waits=exact))
        except BaseException:
            self.close()
            raise

    def _attach_ring(self, names: Collection[str], runtime: RuntimeWanted) -> None:
        rows = [row for row in SYSCALLS.values() if row.name in names]
        try:
            site = find_site(self.pid, with_c_code=True)
            probes = runtime.find_probes(f"/proc/{self.pid}/exe")
            self._ring = Ring.attach(self.pid, rows, site=site, probes=probes)
            if probes is not None:
                self._meter.measure_blocked(self._since)
            if site.has_c_code:
                self._notes.append("calls that its C code makes are not counted")
        except NoRingError as error:
            self._notes.append(
                f"calls are not counted: {error.reason}; `ptserver trace {self.pid}` shows them"
            )

    def fileno(self) -> int:
        """Return a descriptor that is readable when the program has ended."""
        return self._pidfd

    def poll(self) -> bool:
        """Do a bit of everything; return whether there is more to do at once."""
        busy = self._read_ring()
        self._meter.sample_if_due()
        return self._listing.step() or busy

    def ended(self) -> str:
        """Return why there will be no more to see, "" while there will."""
        if select.select([self._pidfd], [], [], 0)[0]:
            return "the program has ended"
        if exe_identity(self.pid) not in (self._exe, None):
            return "the program has executed another one"
        return ""

    @property
    def is_ready(self) -> bool:
        """Whether there is a complete list of the goroutines."""
        return self._listing.complete_ns > 0

    def snapshot(self, ended: str = "") -> Snapshot:
        """Return what happened since the last one. ended: why it is the last."""
        self._read_ring(final=bool(ended))
        listing, accounts = self._listing, self._meter.accounts
        fresh = listing.take_fresh()
        now = time.monotonic_ns()
        exact = self._meter.blocked
        if exact is not None:
            if fresh is not None:
                exact.take_listing(listing.complete_ns, fresh)
            exact.settle(now)
        elif fresh is not None:
            self._blocked.take(listing.complete_ns, fresh, accounts)
        interval_ns = max(1, now - self._since)
        total = Use.of(accounts.total())
        calls = sorted(self._calls.items(), key=lambda item: (-item[1][0], item[0]))
        stacks = _Stacks()
        lost = 0 if self._ring is None else self._ring.lost
        stopped_ns, stops = int(self._inspected.longest_stop_s * 1e9), self._inspected.stops - self._stops
        made = Snapshot(
            title=self.title,
            pid=self.pid,
            monotonic_ns=now,
            interval_ns=interval_ns,
            goroutines=sum(listing.states.values()),
            states=listing.states,
            listed_ns_ago=max(0, now - listing.complete_ns) if listing.complete_ns else 0,
            threads=self._meter.threads,
            cores=os.cpu_count() or 1,
            recent=total.since(self._total_before),
            total=total,
            lost=lost - self._lost,
            stopped_ns=stopped_ns,
            stops=stops,
            calls=tuple(CallUse(name, *numbers) for name, numbers in calls[:MOST_CALLS]),
            top=tuple(self._top(interval_ns, stacks)),
            groups=tuple(_group(row, stacks) for row in listing.groups[:MOST_GROUPS]),
            sites=tuple(self._sites()),
            stacks=stacks.rows(),
            notes=(*self._notes, *listing.notes),
            ended=ended,
        )
        self._inspected.longest_stop_s = 0.0
        self._stops += stops
        self._calls = {}
        self._lost = lost
        self._since = now
        self._total_before = total
        return made

    def close(self) -> None:
        """Take the ring out if it is in there, and give up everything."""
        if self._ring is not None:
            self._ring.detach()
            self._ring.close()
            self._ring = None
        self._meter.close()
        self._inspected.close()
        os.close(self._pidfd)

    def _read_ring(self, *, final: bool = False) -> bool:
        ring = self._ring
        if ring is None:
            return False
        while True:
            batch = ring.read_batch(final=final)
            if batch is not None:
                if self._meter.blocked is not None:
                    self._meter.blocked.take(read_waits(batch))
                sums = self._meter.accounts.take_batch(batch.calls(), time.monotonic_ns())
                for name, (calls, errors, call_ns) in sums.items():
                    before = self._calls.setdefault(name, [0, 0, 0])
                    before[0] += calls
                    before[1] += errors
                    before[2] += call_ns
            if self._meter.blocked is not None and ring.lost > self._lost_waits:
                self._lost_waits = ring.lost
                self._meter.blocked.lose(time.monotonic_ns())
            if not (final and batch):
                return batch is not None and batch.size >= BATCH // 2

    def _top(self, interval_ns: int, stacks: "_Stacks") -> Iterator[GoroutineUse]:
        """Yield the goroutines that used most in this interval, then those that the list has first."""
        accounts = {account.goid: account for account in self._meter.accounts.by_goroutine()}
        rows, before = self._listing.rows, self._before
        nothing = Use()

        def recent(account: Account) -> tuple[int, int, int]:
            old = before.get(account.goid, nothing)
            return account.cpu_ns - old.cpu_ns, account.calls - old.calls, account.cpu_ns

        shown = [each for each in accounts.values() if self._listing.shows(each.goid)]
        chosen = [account.goid for account in heapq.nlargest(MOST_TOP, shown, key=recent)]
        chosen += [goid for goid in rows if goid not in accounts][: MOST_TOP - len(chosen)]
        for goid in chosen:
            account = accounts.get(goid) or Totals()
            total = Use.of(account)
            recent_use = total.since(before.get(goid, nothing))
            if self._meter.blocked is None:
                blocked_ns = self._blocked.of(goid, interval_ns)
                recent_use = msgspec.structs.replace(recent_use, blocked_ns=blocked_ns)
            yield _goroutine(goid, rows.get(goid), account, total, recent_use, stacks)
        self._before = {goid: Use.of(account) for goid, account in accounts.items()}

    def _sites(self) -> Iterator[SiteUse]:
        uses = []
        now = {}
        for site in self._meter.accounts.by_site():
            total = now[site.site] = Use.of(site)
            recent = total.since(self._sites_before.get(site.site, Use()))
            uses.append(SiteUse(site.site, site.live, site.ended, recent, total))
        self._sites_before = now
        uses.sort(key=lambda use: (-use.recent.cpu_ns, -use.recent.calls, -use.live, use.site))
        yield from uses[:MOST_SITES]


class _Blocked:
    """Which part of the time between the last two lists each goroutine was blocked: snapshots may be more often."""

    def __init__(self) -> None:
        self._last_ns = 0
        self._shares: dict[int, float] = {}

    def take(self, now_ns: int, listed: Sequence[Listed], accounts: Accounts) -> None:
        """Take a list, and give it to the accounts."""
        before = {account.goid: account.blocked_ns for account in accounts.by_goroutine()}
        accounts.take_listing(now_ns, listed)
        elapsed_ns, self._last_ns = now_ns - self._last_ns, now_ns
        self._shares = {
            account.goid: (account.blocked_ns - before.get(account.goid, 0)) / elapsed_ns
            for account in accounts.by_goroutine()
        }

    def of(self, goid: int, interval_ns: int) -> int:
        """Return how long a goroutine was blocked in such an interval."""
        return int(self._shares.get(goid, 0.0) * interval_ns)


class _Stacks:
    """Numbers the stacks that a snapshot refers to."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[FrameRow, ...], int] = {}
        self._by_id: dict[int, int] = {}

    def number(self, stack: tuple[FrameRow, ...]) -> int:
        """Return the number of a stack, -1 of an empty one."""
        if not stack:
            return -1
        number = self._by_id.get(id(stack))
        if number is None:
            number = self._by_id[id(stack)] = self._numbers.setdefault(stack, len(self._numbers))
        return number

    def rows(self) -> tuple[tuple[FrameRow, ...], ...]:
        """Return all stacks by number."""
        return tuple(self._numbers)


def _goroutine(
    goid: int, row: GoroutineRow | None, totals: Totals, total: Use, recent: Use, stacks: _Stacks
) -> GoroutineUse:
    site = totals.site if isinstance(totals, Account) else ""
    if row is None:
        return GoroutineUse(goid, site=site, recent=recent, total=total)
    return GoroutineUse(
        goid,
        row.state,
        row.reason,
        row.waited_ns,
        place(row.at),
        site or place(row.created_by),
        row.tid,
        stacks.number(row.stack),
        recent,
        total,
    )


def _group(row: GroupRow, stacks: _Stacks) -> GroupUse:
    return GroupUse(
        row.count, row.state, row.reason, row.goids, row.shortest_ns, row.longest_ns, stacks.number(row.stack)
    )
