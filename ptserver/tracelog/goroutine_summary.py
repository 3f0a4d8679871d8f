"""Counts what goroutines use instead of listing calls (`-c --by goroutine`, `--by site`).

    cpu s     +-  blocked s   calls  errors  in calls s  bytes in  bytes out  goroutine
    0.412  0.003      1.250   10432       0       0.113   4.2 MiB    1.0 KiB       18  created at main.main main.go:40

Calls are exact. Processor time and blocked time are estimates, as `ptserver.inspection.goroutine_stats` says; `+-` is
the standard deviation of the processor time. Where the ring tells of waits (`--events`), blocked time is measured;
where it tells who is created, goroutines that no list has seen are named as well. The process is sampled as it runs,
when events come and when the source is idle.
"""

import json
import time
from typing import Any, Literal

from ptserver.inspection.goroutine_meter import Meter
from ptserver.inspection.goroutine_stats import (
    NO_GOROUTINE,
    Account,
    Accounts,
    SiteTotals,
    Totals,
    format_site,
)
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, ExitEvent, GoEvent, LossEvent, SyscallEvent
from ptserver.tracelog.go_events import WaitsOfEvents
from ptserver.tracelog.output import LineWriter

GoroutineKey = Literal["goroutine", "site"]

_CREATING = ("runtime.systemstack", "runtime.newproc")
_NOT_KNOWN = "(not known)"
_RUNTIME = "(no goroutine: the runtime's own work, C code)"
_PLAIN = (
    *("cpu_ns", "cpu_error_ns", "blocked_ns", "blocked_unsure_ns"),
    *("calls", "errors", "call_ns", "read_bytes", "written_bytes"),
)
_HEADER = "    cpu s       +-  blocked s     calls   errors  in calls s   bytes in  bytes out  "


class GoroutineSummarySink:
    """A `TraceSink` that writes a table when it is closed.

    pid: the process, 0 if its first event tells. here: whether it is on this machine; if not, only calls are counted.
    waits_by_events: whether events tell how long goroutines are blocked, from the first to the last that there is.
    """

    def __init__(
        self,
        writer: LineWriter,
        *,
        by: GoroutineKey,
        as_json: bool = False,
        pid: int = 0,
        here: bool = True,
        waits_by_events: bool = False,
    ) -> None:
        self._writer = writer
        self._by: GoroutineKey = by
        self._as_json = as_json
        self._here = here
        self._since_ns = time.monotonic_ns()
        self._meter = Meter(pid if here else 0) if pid else None
        self._ended = False
        self._waits = WaitsOfEvents() if waits_by_events else None
        self._last_ns = 0

    def event(self, event: Event) -> None:
        """Count an event, if it is a call; take a sample, if it is time."""
        if type(event) is SyscallEvent:
            if self._meter is None:
                self._meter = Meter(event.pid if self._here else 0)
            self._meter.accounts.take_call(event)
        elif type(event) is ExitEvent:
            self._ended = True
            self._settle(event.start_ns)
        elif type(event) is GoEvent:
            self._take_go_event(event)
        elif type(event) is LossEvent and self._meter is not None and self._meter.blocked is not None:
            self._meter.blocked.lose(event.start_ns)
        self.flush()

    def calls(self, batch: CallBatch) -> None:
        """Count many calls; take a sample, if it is time."""
        if self._meter is None:
            self._meter = Meter(batch.records.pid if self._here else 0)
        self._meter.accounts.take_batch(batch.records, time.monotonic_ns())
        if batch.waits:
            self._meter.measure_blocked(self._since_ns).take(batch.waits)
        for _, event in batch.others:
            if type(event) is GoEvent:
                self._take_go_event(event)
            elif type(event) is LossEvent and self._waits is not None:
                self.event(event)
        self.flush()

    def flush(self) -> None:
        """Take a sample, if it is time."""
        if self._meter is not None and not self._ended:
            self._meter.sample_if_due()

    def close(self) -> None:
        """Take the last sample and write the table."""
        if self._meter is not None:
            if not self._ended:
                self._meter.finish()
                self._settle(time.monotonic_ns() if self._waits is None else self._last_ns)
            self._meter.close()
        text = json.dumps(self.as_plain()) if self._as_json else self.as_text()
        self._writer.write(f"{text}\n".encode(errors="backslashreplace"))
        self._writer.close()

    def _settle(self, now_ns: int) -> None:
        if self._meter is not None and self._meter.blocked is not None:
            self._meter.blocked.settle(now_ns)

    def _take_go_event(self, event: GoEvent) -> None:
        """Note where a goroutine was created, and how long it is blocked."""
        if self._meter is None:
            self._meter = Meter(event.pid if self._here else 0)
        if self._waits is not None:
            wait = self._waits.take(event)
            if wait is not None:
                self._meter.measure_blocked(event.start_ns).take((wait,))
            self._last_ns = event.start_ns
        if event.what == "create" and event.goid is not None and event.stack:
            # The runtime's own frames lie above the go statement.
            frames = (frame for frame in event.stack if not frame.function.startswith(_CREATING))
            frame = next(frames, event.stack[0])
            site = format_site(frame.function, frame.file, frame.line)
            self._meter.accounts.name_site(event.goid, site, event.start_ns)

    @property
    def accounts(self) -> Accounts:
        """What was counted so far."""
        return Accounts() if self._meter is None else self._meter.accounts

    def as_text(self) -> str:
        """Return the table."""
        lines = [f"{_HEADER}{self._by}"]
        lines += [_line(totals) for totals in self._rows()]
        pending = Totals()
        pending.cpu_ns = self.accounts.pending_cpu_ns
        if pending.cpu_ns:
            lines.append(_line_of(pending, "(not given to any yet)"))
        return "\n".join([*lines, _line_of(self.accounts.total(), "total")])

    def as_plain(self) -> dict[str, Any]:
        """Return the table as plain values: `by`, `rows` in order, `total`."""
        return {
            "by": self._by,
            "rows": [{**_key(totals), **_plain(totals)} for totals in self._rows()],
            "total": _plain(self.accounts.total()),
        }

    def _rows(self) -> list[Account] | list[SiteTotals]:
        accounts = self.accounts
        if self._by == "goroutine":
            return sorted(accounts.by_goroutine(), key=lambda each: (-each.cpu_ns, -each.call_ns, each.goid))
        return sorted(accounts.by_site(), key=lambda each: (-each.cpu_ns, -each.call_ns, each.site))


def format_bytes(count: int) -> str:
    """Return a number of bytes in at most eight characters."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _line(totals: Account | SiteTotals) -> str:
    site = totals.site or _NOT_KNOWN
    if isinstance(totals, SiteTotals):
        return _line_of(totals, f"{site}  ({totals.live} live, {totals.ended} ended)")
    if totals.goid == NO_GOROUTINE:
        return _line_of(totals, _RUNTIME)
    return _line_of(totals, f"{totals.goid:>7}  created at {site}")


def _line_of(totals: Totals, name: str) -> str:
    return (
        f"{totals.cpu_ns / 1e9:9.3f} {totals.cpu_error_ns / 1e9:8.3f} {totals.blocked_ns / 1e9:10.3f}"
        f" {totals.calls:9} {totals.errors or '':>8} {totals.call_ns / 1e9:11.3f}"
        f" {format_bytes(totals.read_bytes):>10} {format_bytes(totals.written_bytes):>10}  {name}"
    )


def _key(totals: Account | SiteTotals) -> dict[str, Any]:
    if isinstance(totals, Account):
        return {"goid": totals.goid, "site": totals.site}
    return {"site": totals.site, "live": totals.live, "ended": totals.ended}


def _plain(totals: Totals) -> dict[str, int]:
    return {name: getattr(totals, name) for name in _PLAIN}
