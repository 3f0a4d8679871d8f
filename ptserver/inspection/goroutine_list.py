"""Lists of goroutines: filtering, grouping, and how they are written, for people and for programs. Pure.

The classes that end in `Row` are the JSON form, one object a line (`schema()` prints it; `docs/goroutines.md` has the
prose): a `goroutine` or a `group` each, and a `summary` last. Fields may be added, so readers must ignore those that
they do not know.

All text comes from the program that is looked at, so what cannot be printed is escaped by whoever makes the rows.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from inspect import cleandoc
from typing import Any

import msgspec

_MINUTE_NS = 60 * 10**9
_SHOWN_GOIDS = 10
_TOP_OF_RUNTIME = ("runtime.", "internal/runtime/")


class FrameRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call: a function and the line that is being executed in it.

    pc: in base 16; offset: that many bytes from the function's entry, null for a call that was inlined.
    """

    function: str
    file: str = ""
    line: int = 0
    pc: str = ""
    offset: int | None = None


class _Row(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, gc=False):
    """Base of all rows; `type` says which it is."""


class GoroutineRow(_Row, frozen=True, tag="goroutine"):
    """A goroutine.

    state: idle, runnable, running, syscall, waiting, copystack, preempted, leaked... reason: why it waits, in Go's
    own words. waited_ns: since when, where the runtime noted it. at: where it is, the innermost call that is not the
    runtime's. created_by: its go statement, by goroutine `parent`. entry: the function that it runs.
    tid: the thread that it has, if any; locked: it keeps that thread. system: it is one of the runtime's own.
    labels: the profiler's; channels: the addresses of those it waits for. stack: innermost first, if asked
    for; problem: why the stack is not complete.
    """

    goid: int
    state: str
    reason: str = ""
    waited_ns: int | None = None
    at: FrameRow | None = None
    created_by: FrameRow | None = None
    parent: int = 0
    entry: str = ""
    tid: int = 0
    locked: bool = False
    system: bool = False
    labels: dict[str, str] = {}
    channels: tuple[str, ...] = ()
    stack: tuple[FrameRow, ...] = ()
    problem: str = ""


class GroupRow(_Row, frozen=True, tag="group"):
    """Goroutines with the same state, reason and stack; or, without a stack, those of a state and reason.

    goids: the first ten. shortest_ns and longest_ns: how long they have waited, where the runtime noted it.
    """

    count: int
    state: str
    reason: str = ""
    goids: tuple[int, ...] = ()
    shortest_ns: int | None = None
    longest_ns: int | None = None
    stack: tuple[FrameRow, ...] = ()


class SummaryRow(_Row, frozen=True, tag="summary"):
    """The last line: how many were listed, how many of the runtime's own and how many others were not.

    skipped: records that made no sense. stopped_ns: the longest stop of the process.
    """

    goroutines: int
    system_hidden: int = 0
    filtered: int = 0
    skipped: int = 0
    stopped_ns: int = 0


Row = GoroutineRow | GroupRow | SummaryRow


class Selection:
    """Which goroutines are wanted.

    states: states or wait reasons, any of them (none: all); function: what a function somewhere on the stack
    must match; system: whether the runtime's own are wanted.
    """

    def __init__(
        self, states: Collection[str] = (), function: re.Pattern[str] | None = None, *, system: bool = False
    ) -> None:
        self.states = frozenset(state.lower() for state in states)
        self.function = function
        self.system = system

    @property
    def needs_stack(self) -> bool:
        """Whether `matches_stack` has to be asked."""
        return self.function is not None

    def matches(self, state: str, reason: str) -> bool:
        """Whether a goroutine of that state, waiting for that reason, is wanted."""
        return not self.states or state in self.states or reason.lower() in self.states

    def matches_stack(self, stack: Iterable[FrameRow]) -> bool:
        """Whether its stack is wanted."""
        function = self.function
        return function is None or any(function.search(frame.function) for frame in stack)


class Groups:
    """Counts goroutines that are the same, by state and reason and, unless `by_state`, by stack."""

    def __init__(self, *, by_state: bool = False) -> None:
        self._by_state = by_state
        self._groups: dict[tuple[object, ...], list[Any]] = {}

    def add(self, row: GoroutineRow) -> None:
        """Count one."""
        stack = () if self._by_state else row.stack
        key = (row.state, row.reason, tuple(frame.pc for frame in stack))
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = [0, [], None, None, row.state, row.reason, stack]
        group[0] += 1
        if len(group[1]) < _SHOWN_GOIDS:
            group[1].append(row.goid)
        waited = row.waited_ns
        if waited is not None:
            group[2] = waited if group[2] is None else min(group[2], waited)
            group[3] = waited if group[3] is None else max(group[3], waited)

    def rows(self) -> list[GroupRow]:
        """Return the groups, the largest first."""
        rows = [
            GroupRow(count, state, reason, tuple(goids), shortest, longest, stack)
            for count, goids, shortest, longest, state, reason, stack in self._groups.values()
        ]
        return sorted(rows, key=lambda row: (-row.count, row.goids))


def printable(text: str) -> str:
    """Return text of the program's with what cannot be printed escaped, so that it cannot steer a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def is_runtime(function: str) -> bool:
    """Whether a function is the runtime's, also under the name that it has for another package."""
    return function.startswith(_TOP_OF_RUNTIME) or ".runtime_" in function


def where_it_is(stack: Iterable[FrameRow]) -> FrameRow | None:
    """Return the innermost call that is not the runtime's; if there is none, the innermost."""
    first = None
    for frame in stack:
        if not is_runtime(frame.function):
            return frame
        first = first or frame
    return first


def is_shown(function: str) -> bool:
    """Whether Go's own traces show a function: not the runtime's, but for what programs call of it."""
    name = function.removeprefix("runtime.")
    return name == function or name[:1].isupper() or name == "gopanic"


# -- text -----------------------------------------------------------------------------------------------------


def format_line(row: GoroutineRow) -> str:
    """Return a goroutine as one line."""
    state = row.reason or row.state
    if row.waited_ns is not None:
        state += f" {format_duration(row.waited_ns)}"
    line = f"{row.goid:>7}  {state:<26}  {_place(row.at) if row.at else '?'}"
    if row.created_by:
        line += f"  created by {row.created_by.function}:{row.created_by.line}"
    notes = [f"thread {row.tid}" if row.tid else "", "locked" if row.locked else ""]
    notes += ["system" if row.system else "", _pairs(row.labels)]
    shown = ", ".join(note for note in notes if note)
    return f"{line}  ({shown})\n" if shown else f"{line}\n"


def format_trace(row: GoroutineRow, *, runtime: bool = False) -> str:
    """Return a goroutine with its stack, as Go's own traces have it, so that tools for those can read it.

    runtime: with the runtime's own calls too.
    """
    state = row.reason or row.state
    if row.waited_ns is not None and row.waited_ns >= _MINUTE_NS:
        state += f", {row.waited_ns // _MINUTE_NS} minutes"
    if row.locked:
        state += ", locked to thread"
    lines = [f"goroutine {row.goid} [{state}]:"]
    shown = [frame for frame in row.stack if runtime or row.system or is_shown(frame.function)]
    for frame in shown or row.stack:
        offset = "" if frame.offset is None else f" +{frame.offset:#x}"
        lines += [f"{_called(frame.function)}(...)", f"\t{frame.file}:{frame.line}{offset}"]
    if row.problem:
        lines.append(f"...{row.problem}...")
    if row.created_by:
        site = row.created_by
        parent = f" in goroutine {row.parent}" if row.parent else ""
        offset = "" if site.offset is None else f" +{site.offset:#x}"
        lines += [f"created by {site.function}{parent}", f"\t{site.file}:{site.line}{offset}"]
    return "\n".join(lines) + "\n\n"


def format_details(row: GoroutineRow) -> str:
    """Return what a trace of Go's does not say of a goroutine, as comments; "" if there is nothing."""
    facts = {
        "waited": "" if row.waited_ns is None else format_duration(row.waited_ns),
        "thread": str(row.tid) if row.tid else "",
        "channels": " ".join(row.channels),
        "labels": _pairs(row.labels),
        "entry": row.entry,
    }
    return "".join(f"# {name}: {value}\n" for name, value in facts.items() if value)


def format_group(row: GroupRow) -> str:
    """Return a group as the text form of Go's goroutine profiles has it, which `go tool pprof` reads."""
    state = row.reason or row.state
    if row.longest_ns is not None and row.shortest_ns is not None:
        shortest, longest = format_duration(row.shortest_ns), format_duration(row.longest_ns)
        state += f" {longest}" if shortest == longest else f" {shortest} to {longest}"
    goids = " ".join(map(str, row.goids)) + (" ..." if row.count > len(row.goids) else "")
    if not row.stack:
        return f"{row.count:>8}  {state:<30}  goroutine{'s' * (row.count > 1)} {goids}\n"
    lines = [
        f"{row.count} @ {' '.join(_physical_pcs(row.stack))}",
        f"# {state}; goroutine{'s' * (row.count > 1)} {goids}",
    ]
    for frame in row.stack:
        offset = "" if frame.offset is None else f"+{frame.offset:#x}"
        lines.append(f"#\t{frame.pc}\t{frame.function}{offset}\t{frame.file}:{frame.line}")
    return "\n".join(lines) + "\n\n"


def format_summary(row: SummaryRow, *, all_wanted: bool) -> str:
    """Return the last line for people. all_wanted: whether no filter was given."""
    text = f"{row.goroutines} goroutine{'s' * (row.goroutines != 1)}"
    notes = []
    if not all_wanted:
        notes.append(f"{row.filtered} others do not match")
    if row.system_hidden:
        notes.append(f"{row.system_hidden} of the runtime's own not shown (--system)")
    if row.skipped:
        notes.append(f"{row.skipped} records made no sense")
    if row.stopped_ns:
        notes.append(f"stopped for {row.stopped_ns / 1e6:.1f} ms")
    return f"{'; '.join([text, *notes])}\n"


def format_duration(ns: int) -> str:
    """Return a time in the largest unit that says it in a few digits."""
    if ns < 10**6:
        return f"{ns / 1e3:.0f}us"
    if ns < 10**9:
        return f"{ns / 1e6:.0f}ms"
    seconds = ns // 10**9
    if seconds < 60:
        return f"{ns / 1e9:.1f}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


def _physical_pcs(stack: tuple[FrameRow, ...]) -> Iterator[str]:
    """Yield the pcs of the frames, each of which may stand for several calls: inlined ones and their holder."""
    for frame, caller in zip(stack, (*stack[1:], None), strict=True):
        if frame.offset is not None or caller is None or caller.pc != frame.pc:
            yield frame.pc


def _place(frame: FrameRow) -> str:
    return f"{frame.function} {frame.file}:{frame.line}"


def _called(function: str) -> str:
    return "panic" if function == "runtime.gopanic" else function


def _pairs(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


# -- JSON -----------------------------------------------------------------------------------------------------


def encoder() -> Callable[[Row], bytes]:
    """Return a function that makes a line of JSON of a row."""
    encode = msgspec.json.Encoder().encode
    return lambda row: encode(row) + b"\n"


def read_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield the rows of a list in JSON.

    Raises:
        msgspec.DecodeError: a line is none.
    """
    decode = msgspec.json.Decoder(Row).decode
    return (decode(line) for line in lines)


def schema_text() -> str:
    """Return the JSON Schema of a line, as it is published in `docs/goroutines.schema.json`."""
    described = msgspec.json.schema(Row)
    for definition in described["$defs"].values():
        definition["description"] = cleandoc(definition["description"])
    return json.dumps(described, indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
