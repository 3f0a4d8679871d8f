"""The pages of the live view: which rows of a snapshot each has, and what its columns show of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ptserver.attach.snapshot import GoroutineUse, GroupUse, SiteUse, Snapshot, Use
from ptserver.inspection.goroutine_list import FrameRow, format_duration, is_shown
from ptserver.inspection.goroutine_stats import NO_GOROUTINE


class Shown(Protocol):
    """What columns ask the view: which time is shown, and how numbers of it are written."""

    @property
    def seconds(self) -> float:
        """How long the interval is."""

    def use(self, row: GoroutineUse | SiteUse) -> Use:
        """Return what a row's goroutines used in the time that is shown."""

    def rate(self, count: int) -> str:
        """Return a count as it is shown."""

    def bytes(self, count: int) -> str:
        """Return a number of bytes as it is shown."""

    def share(self, ns: int) -> str:
        """Return a time as it is shown."""

    def stack(self, number: int) -> tuple[FrameRow, ...]:
        """Return a stack of the snapshot."""


class Column(NamedTuple):
    """A column: its head, what it shows of a row, and by what rows are ordered (largest first for numbers).

    right: whether it stands to the right; width: of the narrowest window that has room for it.
    """

    head: str
    show: Callable[[Any, Shown], str]
    key: Callable[[Any, Shown], Any]
    right: bool = True
    width: int = 0


class Page(NamedTuple):
    """A page: its name, its rows of a snapshot, its columns, and which of them orders the rows at first."""

    name: str
    rows: Callable[[Snapshot], Sequence[Any]]
    columns: tuple[Column, ...]
    order: int


def _waited(row: GoroutineUse | GroupUse) -> int:
    return (row.waited_ns if isinstance(row, GoroutineUse) else row.longest_ns) or 0


def _waited_text(row: GoroutineUse | GroupUse) -> str:
    waited = _waited(row)
    return format_duration(waited) if waited else ""


def _goid_text(row: GoroutineUse) -> str:
    return "-" if row.goid == NO_GOROUTINE else str(row.goid)


def _at_text(row: GoroutineUse) -> str:
    if row.goid == NO_GOROUTINE:
        return "(no goroutine: the runtime's own work, C code)"
    return f"{row.at or '?'}  <- {row.site or '?'}"


def _cpu_text(row: GoroutineUse | SiteUse, view: Shown) -> str:
    use = view.use(row)
    if not use.cpu_ns:
        return ""
    return f"{view.share(use.cpu_ns)}±{view.share(use.cpu_error_ns)}"


def _group_top(row: GroupUse, view: Shown) -> str:
    stack = view.stack(row.stack)
    names = [frame.function for frame in stack if is_shown(frame.function)] or [f.function for f in stack]
    return " < ".join(names)


def _use_columns(name: str) -> tuple[Column, ...]:
    return (
        Column(f"{name}", _cpu_text, lambda row, view: view.use(row).cpu_ns),
        Column(
            "blocked",
            lambda row, view: view.share(view.use(row).blocked_ns),
            lambda row, view: view.use(row).blocked_ns,
            width=100,
        ),
        Column(
            "calls", lambda row, view: view.rate(view.use(row).calls), lambda row, view: view.use(row).calls
        ),
        Column(
            "in",
            lambda row, view: view.bytes(view.use(row).read_bytes),
            lambda row, view: view.use(row).read_bytes,
            width=110,
        ),
        Column(
            "out",
            lambda row, view: view.bytes(view.use(row).written_bytes),
            lambda row, view: view.use(row).written_bytes,
            width=110,
        ),
    )


PAGES: tuple[Page, ...] = (
    Page(
        "goroutines",
        lambda snapshot: snapshot.top,
        (
            Column("goid", lambda row, view: _goid_text(row), lambda row, view: -row.goid),
            Column(
                "state",
                lambda row, view: row.reason or row.state,
                lambda row, view: row.reason or row.state,
                False,
            ),
            Column("waits", lambda row, view: _waited_text(row), lambda row, view: _waited(row), width=90),
            *_use_columns("cpu %"),
            Column(
                "at  <- created at", lambda row, view: _at_text(row), lambda row, view: _at_text(row), False
            ),
        ),
        3,
    ),
    Page(
        "stacks",
        lambda snapshot: snapshot.groups,
        (
            Column("count", lambda row, view: str(row.count), lambda row, view: row.count),
            Column(
                "state",
                lambda row, view: row.reason or row.state,
                lambda row, view: row.reason or row.state,
                False,
            ),
            Column("waits", lambda row, view: _waited_text(row), lambda row, view: _waited(row), width=90),
            Column("stack, innermost first", _group_top, _group_top, False),
        ),
        0,
    ),
    Page(
        "states",
        lambda snapshot: tuple(snapshot.states.items()),
        (
            Column("count", lambda row, view: str(row[1]), lambda row, view: row[1]),
            Column("state", lambda row, view: row[0], lambda row, view: row[0], False),
        ),
        0,
    ),
    Page(
        "created at",
        lambda snapshot: snapshot.sites,
        (
            Column("live", lambda row, view: str(row.live), lambda row, view: row.live),
            Column("ended", lambda row, view: str(row.ended), lambda row, view: row.ended),
            *_use_columns("cpu %"),
            Column(
                "created at", lambda row, view: row.site or "(not known)", lambda row, view: row.site, False
            ),
        ),
        2,
    ),
    Page(
        "calls",
        lambda snapshot: snapshot.calls,
        (
            Column(
                "calls/s", lambda row, view: f"{row.calls / view.seconds:.1f}", lambda row, view: row.calls
            ),
            Column(
                "failed/s", lambda row, view: f"{row.errors / view.seconds:.1f}", lambda row, view: row.errors
            ),
            Column(
                "each",
                lambda row, view: format_duration(row.call_ns // max(1, row.calls)),
                lambda row, view: row.call_ns / max(1, row.calls),
            ),
            Column(
                "threads",
                lambda row, view: f"{row.call_ns / 1e9 / view.seconds:.2f}",
                lambda row, view: row.call_ns,
            ),
            Column("call", lambda row, view: row.name, lambda row, view: row.name, False),
        ),
        0,
    ),
)
