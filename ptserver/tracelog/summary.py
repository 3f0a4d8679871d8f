"""Counts calls instead of listing them (`-c`): how many, how long, how many failed, by call, goroutine or function.

    % time     seconds  usecs/call     calls    errors syscall
    ------ ----------- ----------- --------- --------- ----------------
     83.33    0.000010           5         2           read
     16.67    0.000002           2         1         1 openat
    ------ ----------- ----------- --------- --------- ----------------
    100.00    0.000012           4         3         1 total

The time is what passed while the thread was in the call, waiting included.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, SyscallEvent
from ptserver.tracelog.output import LineWriter

#: What calls are counted by.
Key = Literal["syscall", "goroutine", "function"]
#: What rows are ordered by, largest first; `name` in alphabetical order.
Order = Literal["time", "calls", "errors", "name"]

_MAX_ERRNO = 4095
_RULE = "------ ----------- ----------- --------- --------- ----------------"


class Counts:
    """The calls of one row of the summary."""

    __slots__ = ("calls", "errors", "longest_ns", "total_ns")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.total_ns = 0
        self.longest_ns = 0

    def add(self, event: SyscallEvent) -> None:
        """Count a call."""
        duration_ns = event.duration_ns or 0
        self.calls += 1
        self.total_ns += duration_ns
        if event.errno:
            self.errors += 1
        if duration_ns > self.longest_ns:
            self.longest_ns = duration_ns


class SummarySink:
    """A `TraceSink` that writes a summary when it is closed. as_json: one JSON object instead of a table."""

    def __init__(
        self, writer: LineWriter, *, by: Key = "syscall", order: Order = "time", as_json: bool = False
    ) -> None:
        self._writer = writer
        self._by: Key = by
        self._order: Order = order
        self._as_json = as_json
        self._rows: dict[str, Counts] = {}
        self._name: Callable[[SyscallEvent], str] = _NAMES[by]

    def event(self, event: Event) -> None:
        """Count an event, if it is a call."""
        if type(event) is SyscallEvent:
            name = self._name(event)
            row = self._rows.get(name)
            if row is None:
                row = self._rows[name] = Counts()
            row.add(event)

    def calls(self, batch: CallBatch) -> None:
        """Count many calls."""
        if self._by != "syscall":
            for event in batch.events():
                self.event(event)
            return
        for group in batch.records.groups():
            row = self._rows.setdefault(group.row.name, Counts())
            durations = group.pick(batch.records.duration_ns)
            row.calls += len(durations)
            row.total_ns += sum(durations)
            row.longest_ns = max(row.longest_ns, *durations)
            row.errors += sum(-_MAX_ERRNO <= value < 0 for value in group.values)

    def flush(self) -> None:
        """Nothing is written before the end."""

    def close(self) -> None:
        """Write the summary."""
        text = json.dumps(self.as_plain()) if self._as_json else self.as_text()
        self._writer.write(f"{text}\n".encode(errors="backslashreplace"))
        self._writer.close()

    def rows(self) -> list[tuple[str, Counts]]:
        """Return the names and counts, in order."""
        key = _ORDERS[self._order]
        return sorted(self._rows.items(), key=lambda row: (key(row[1]), row[0]))

    def as_text(self) -> str:
        """Return the summary as a table."""
        rows = self.rows()
        total = _sum(counts for _, counts in rows)
        lines = [f"% time     seconds  usecs/call     calls    errors {self._by}", _RULE]
        lines += [_row_text(name, counts, total.total_ns) for name, counts in rows]
        return "\n".join([*lines, _RULE, _row_text("total", total, total.total_ns)])

    def as_plain(self) -> dict[str, Any]:
        """Return the summary as plain values: `rows` in order, each with its name under `by`, and `total`."""
        rows = self.rows()
        return {
            "by": self._by,
            "rows": [{self._by: name, **_row_plain(counts)} for name, counts in rows],
            "total": _row_plain(_sum(counts for _, counts in rows)),
        }


def _syscall_name(event: SyscallEvent) -> str:
    return event.name


def _goroutine_name(event: SyscallEvent) -> str:
    return f"thread {event.tid}" if event.goid is None else f"goroutine {event.goid}"


def _function_name(event: SyscallEvent) -> str:
    """Return the innermost function that is not of the packages through which every call goes."""
    for frame in event.stack:
        if not frame.function.startswith(_CALLING_PACKAGES):
            return frame.function
    return event.stack[0].function if event.stack else "(unknown)"


_CALLING_PACKAGES = ("internal/runtime/syscall", "runtime/internal/syscall", "syscall.", "internal/poll.")

_NAMES: dict[Key, Callable[[SyscallEvent], str]] = {
    "syscall": _syscall_name,
    "goroutine": _goroutine_name,
    "function": _function_name,
}

_ORDERS: dict[Order, Callable[[Counts], int]] = {
    "time": lambda counts: -counts.total_ns,
    "calls": lambda counts: -counts.calls,
    "errors": lambda counts: -counts.errors,
    "name": lambda counts: 0,
}


def _sum(rows: Any) -> Counts:
    total = Counts()
    for counts in rows:
        total.calls += counts.calls
        total.errors += counts.errors
        total.total_ns += counts.total_ns
        total.longest_ns = max(total.longest_ns, counts.longest_ns)
    return total


def _row_text(name: str, counts: Counts, total_ns: int) -> str:
    percent = 100 * counts.total_ns / total_ns if total_ns else 0.0
    each = counts.total_ns // counts.calls // 1000 if counts.calls else 0
    errors = counts.errors or ""
    return (
        f"{percent:6.2f} {counts.total_ns / 1e9:11.6f} {each:11} {counts.calls:9} {errors:>9} "
        f"{name if name.isprintable() else ascii(name)}"
    )


def _row_plain(counts: Counts) -> dict[str, int]:
    return {
        "calls": counts.calls,
        "errors": counts.errors,
        "total_ns": counts.total_ns,
        "longest_ns": counts.longest_ns,
    }
