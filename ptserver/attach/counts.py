"""Counts the calls of an attached program where they are not seen by the ring, and puts them into snapshots."""

import heapq
import time
from collections.abc import Sequence

import msgspec

from ptserver.attach.snapshot import CallUse, GoroutineUse, SiteUse, Snapshot, Use
from ptserver.inspection.blocked_time import BlockedTime
from ptserver.inspection.goroutine_stats import Accounts
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, LossEvent, SyscallEvent
from ptserver.tracelog.summary import Counts

_FIELDS = ("calls", "errors", "call_ns", "read_bytes", "written_bytes")
#: How many goroutines are added to a snapshot that does not have them but made calls.
_MOST_ADDED = 50


class CallCounts:
    """A `TraceSink` that counts calls by goroutine and by name; `merge` adds them to snapshots that have none.

    exact: it is told of waits, too, and measures how long goroutines are blocked, in place of the snapshots'
    estimates; but not by site, as it does not know that of all goroutines.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self._accounts = Accounts()
        self._blocked = BlockedTime(self._accounts, time.monotonic_ns()) if exact else None
        self._fields = (*_FIELDS, "blocked_ns") if exact else _FIELDS
        self._names: dict[str, Counts] = {}
        self._before: dict[int, Use] = {}
        self._total_before = Use()
        self._sites: dict[int, str] = {}
        self._site_totals: dict[str, Use] = {}

    def event(self, event: Event) -> None:
        """Count a call."""
        if type(event) is SyscallEvent:
            self._accounts.take_call(event)
            counts = self._names.get(event.name)
            if counts is None:
                counts = self._names[event.name] = Counts()
            counts.add(event)

    def calls(self, batch: CallBatch) -> None:
        """Take many calls; a host answers them one by one, so nobody hands in many."""
        for event in batch.events():
            self.event(event)
        if self._blocked is not None:
            self._blocked.take(batch.waits)
            for _, other in batch.others:
                if type(other) is LossEvent:
                    self._blocked.lose(other.start_ns)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def merge(self, snapshot: Snapshot) -> Snapshot:
        """Return *snapshot* with what was counted since the last one."""
        if self._blocked is not None:
            self._blocked.take_waiting(use.goid for use in snapshot.top if use.state == "waiting")
            self._blocked.settle(time.monotonic_ns())
        totals = {account.goid: Use.of(account) for account in self._accounts.by_goroutine()}
        recents = {
            # Whoever makes snapshots began a little later, and looked a little earlier.
            goid: _no_longer_blocked(total.since(self._before.get(goid, Use())), snapshot.interval_ns)
            for goid, total in totals.items()
        }
        self._before = totals
        shown = {use.goid for use in snapshot.top}
        self._sites = {use.goid: use.site for use in snapshot.top if use.site} | {
            goid: site for goid, site in self._sites.items() if goid in totals
        }
        others = [goid for goid, recent in recents.items() if goid not in shown and recent.calls]
        added = heapq.nlargest(_MOST_ADDED, others, key=lambda goid: recents[goid].calls)
        top = [
            msgspec.structs.replace(
                use,
                recent=self._with(use.recent, recents.get(use.goid)),
                total=self._with(use.total, totals.get(use.goid)),
            )
            for use in (
                *snapshot.top,
                *(GoroutineUse(goid, site=self._sites.get(goid, "")) for goid in added),
            )
        ]
        total = Use.of(self._accounts.total())
        recent = msgspec.structs.replace(
            total.since(self._total_before), blocked_ns=sum(each.blocked_ns for each in recents.values())
        )
        self._total_before = total
        names, self._names = self._names, {}
        return msgspec.structs.replace(
            snapshot,
            top=tuple(top),
            sites=tuple(self._merge_sites(snapshot.sites, recents)),
            recent=self._with(snapshot.recent, recent),
            total=self._with(snapshot.total, total),
            calls=tuple(
                CallUse(name, counts.calls, counts.errors, counts.total_ns)
                for name, counts in sorted(names.items(), key=lambda item: (-item[1].calls, item[0]))
            ),
        )

    def _with(self, use: Use, counted: Use | None) -> Use:
        return _with(use, counted or Use(), self._fields) if counted or self._blocked else use

    def _merge_sites(self, sites: tuple[SiteUse, ...], recents: dict[int, Use]) -> list[SiteUse]:
        by_site: dict[str, Use] = {}
        for goid, recent in recents.items():
            site = self._sites.get(goid)
            if site is not None and recent.calls:
                by_site[site] = _sum(by_site.get(site, Use()), recent)
        for site, recent in by_site.items():
            self._site_totals[site] = _sum(self._site_totals.get(site, Use()), recent)
        return [
            msgspec.structs.replace(
                site,
                recent=_with(site.recent, by_site.get(site.site, Use())),
                total=_with(site.total, self._site_totals.get(site.site, Use())),
            )
            for site in sites
        ]


def _with(use: Use, counted: Use, fields: Sequence[str] = _FIELDS) -> Use:
    """Return *use* with these fields of *counted*."""
    return msgspec.structs.replace(use, **{name: getattr(counted, name) for name in fields})


def _no_longer_blocked(use: Use, interval_ns: int) -> Use:
    if use.blocked_ns <= interval_ns:
        return use
    return msgspec.structs.replace(use, blocked_ns=interval_ns)


def _sum(one: Use, other: Use) -> Use:
    return msgspec.structs.replace(
        one, **{name: getattr(one, name) + getattr(other, name) for name in _FIELDS}
    )
