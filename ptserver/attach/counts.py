"""Counts the calls of an attached program where they are not seen by the ring, and puts them into snapshots."""

import heapq

import msgspec

from ptserver.attach.snapshot import CallUse, GoroutineUse, SiteUse, Snapshot, Use
from ptserver.inspection.goroutine_stats import Accounts
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, SyscallEvent
from ptserver.tracelog.summary import Counts

_FIELDS = ("calls", "errors", "call_ns", "read_bytes", "written_bytes")
#: How many goroutines are added to a snapshot that does not have them but made calls.
_MOST_ADDED = 50


class CallCounts:
    """A `TraceSink` that counts calls by goroutine and by name; `merge` adds them to snapshots that have none."""

    def __init__(self) -> None:
        self._accounts = Accounts()
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

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def merge(self, snapshot: Snapshot) -> Snapshot:
        """Return *snapshot* with what was counted since the last one."""
        totals = {account.goid: Use.of(account) for account in self._accounts.by_goroutine()}
        recents = {goid: total.since(self._before.get(goid, Use())) for goid, total in totals.items()}
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
                recent=_with(use.recent, recents.get(use.goid)),
                total=_with(use.total, totals.get(use.goid)),
            )
            for use in (
                *snapshot.top,
                *(GoroutineUse(goid, site=self._sites.get(goid, "")) for goid in added),
            )
        ]
        total = Use.of(self._accounts.total())
        recent = total.since(self._total_before)
        self._total_before = total
        names, self._names = self._names, {}
        return msgspec.structs.replace(
            snapshot,
            top=tuple(top),
            sites=tuple(self._merge_sites(snapshot.sites, recents)),
            recent=_with(snapshot.recent, recent),
            total=_with(snapshot.total, total),
            calls=tuple(
                CallUse(name, counts.calls, counts.errors, counts.total_ns)
                for name, counts in sorted(names.items(), key=lambda item: (-item[1].calls, item[0]))
            ),
        )

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
                recent=_with(site.recent, by_site.get(site.site)),
                total=_with(site.total, self._site_totals.get(site.site)),
            )
            for site in sites
        ]


def _with(use: Use, counted: Use | None) -> Use:
    """Return *use* with the calls of *counted*."""
    if counted is None:
        return use
    return msgspec.structs.replace(use, **{name: getattr(counted, name) for name in _FIELDS})


def _sum(one: Use, other: Use) -> Use:
    return msgspec.structs.replace(
        one, **{name: getattr(one, name) + getattr(other, name) for name in _FIELDS}
    )
