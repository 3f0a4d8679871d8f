"""Which of the traced calls are shown: by goroutine, function, path, duration and error.

    --goid N          made by one of these goroutines; 0: by none
    --func REGEXP     with a function on the goroutine's stack whose name the regular expression is found in
    --path PATTERN    that name such a file, or use a descriptor that a call in the trace has opened by such a name,
                      or that was open to such a file before; a pattern is a whole path as the program gives
                      it, with `*`, `?` and `[...]` as in a shell
    --duration TEST   that took so long: `>1ms`, `>=20us`, `<500ns`; a plain `1ms` means `>1ms`
    --errors          that failed

Several kinds must all hold; of several values of one kind, any. Of goroutines'
events, `--goid` shows only those of these; other events that are no calls are always shown.
"""

import contextlib
import fnmatch
import operator
import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ptserver.tracelog.batch import CallBatch, Remembered
from ptserver.tracelog.errors import FilterError
from ptserver.tracelog.events import Event, Frame, GoEvent, SyscallEvent, TraceSink, row_of
from stepping.syscalls import ArgKind, ResultKind

_MAX_ERRNO = 4095
_UNITS_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_DURATION = re.compile(r"(>=|<=|>|<|)\s*(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s)")
_DESCRIPTORS = frozenset({ArgKind.FD, ArgKind.DIRFD})


class DurationTest(NamedTuple):
    """A comparison with a duration in nanoseconds. comparison: `>`, `>=`, `<` or `<=`."""

    comparison: str
    limit_ns: int

    @classmethod
    def parse(cls, text: str) -> "DurationTest":
        """Return the test that *text* means.

        Raises:
            FilterError: it means none.
        """
        match = _DURATION.fullmatch(text.strip())
        if match is None:
            raise FilterError(f"--duration {text}: write for example '>1ms', '>=20us' or '<500ns'")
        comparison, number, unit = match.groups()
        return cls(comparison or ">", round(float(number) * _UNITS_NS[unit]))

    def holds(self, duration_ns: int) -> bool:
        """Whether a call of this duration is wanted."""
        return _COMPARISONS[self.comparison](duration_ns, self.limit_ns)


class Selection(NamedTuple):
    """What calls must be like to be shown; the module says what the fields mean. Empty ones ask for nothing."""

    goids: frozenset[int] = frozenset()
    function: re.Pattern[str] | None = None
    paths: tuple[str, ...] = ()
    duration: DurationTest | None = None
    errors: bool = False

    @classmethod
    def parse(
        cls,
        goids: Iterable[int] = (),
        function: str | None = None,
        paths: Iterable[str] = (),
        duration: str | None = None,
        errors: bool = False,
    ) -> "Selection":
        """Return the selection that a command's options ask for.

        Raises:
            FilterError: one of them means nothing.
        """
        try:
            pattern = re.compile(function) if function is not None else None
        except re.error as error:
            raise FilterError(f"--func {function}: no regular expression: {error}") from error
        test = DurationTest.parse(duration) if duration is not None else None
        return cls(frozenset(goids), pattern, tuple(paths), test, errors)

    @property
    def needs_goroutines(self) -> bool:
        """Whether the source must know goroutines and their stacks."""
        return bool(self.goids) or self.function is not None


class SelectingSink:
    """A `TraceSink` that gives another one what *selection* lets through. pid: a process that runs already, or 0."""

    def __init__(self, sink: TraceSink, selection: Selection, pid: int = 0) -> None:
        self._sink = sink
        self._selection = selection
        self._paths = _Paths(selection.paths)
        if pid and selection.paths:
            self._paths.take_open(pid)
        self._name_stack: Callable[[bytes], tuple[Frame, ...]] | None = None
        self._stacks: Remembered[bytes, bool] = Remembered(
            lambda stack: self._has_function(self._named(stack))
        )

    def event(self, event: Event) -> None:
        """Give an event on, if it is wanted."""
        if type(event) is SyscallEvent:
            if self._is_wanted(event):
                self._sink.event(event)
        elif self._is_shown(event):
            self._sink.event(event)

    def calls(self, batch: CallBatch) -> None:
        """Give those calls on that are wanted."""
        wanted = self._select(batch)
        if self._selection.goids:
            others = [(index, event) for index, event in wanted.others if self._is_shown(event)]
            wanted = wanted._replace(others=others)
        if wanted.records.size or wanted.others or wanted.waits:
            self._sink.calls(wanted)

    def flush(self) -> None:
        """Write what was kept back."""
        self._sink.flush()

    def close(self) -> None:
        """Write all that is left."""
        self._sink.close()

    def _is_shown(self, event: Event) -> bool:
        """Whether an event that is no call is shown."""
        return type(event) is not GoEvent or not self._selection.goids or event.goid in self._selection.goids

    def _is_wanted(self, event: SyscallEvent) -> bool:
        goids, function, paths, duration, errors = self._selection
        on_path = not paths or self._paths.concern(event)  # looks at every call, to know the descriptors
        return (
            on_path
            and (not errors or event.errno != 0)
            and (not goids or (event.goid or 0) in goids)
            and (duration is None or (event.duration_ns is not None and duration.holds(event.duration_ns)))
            and (function is None or self._has_function(event.stack))
        )

    def _select(self, batch: CallBatch) -> CallBatch:
        """Return what is wanted of a batch: by columns, but for paths, where each call may concern later ones."""
        goids, function, paths, duration, errors = self._selection
        if paths:
            wanted = [index for index, event in enumerate(batch.events()) if self._is_wanted(event)]
            return batch.select(wanted)
        if errors:
            values = enumerate(batch.records.values)
            batch = batch.select([index for index, value in values if -_MAX_ERRNO <= value < 0])
        if goids:
            batch = batch.select([index for index, goid in enumerate(batch.records.goids) if goid in goids])
        if duration is not None:
            durations = enumerate(batch.records.duration_ns)
            batch = batch.select([index for index, took in durations if duration.holds(took)])
        if function is not None:
            self._name_stack = batch.name_stack
            found = enumerate(self._stacks.of(batch.records.stacks))
            batch = batch.select([index for index, has in found if has])
        return batch

    def _named(self, stack: bytes) -> tuple[Frame, ...]:
        return self._name_stack(stack) if self._name_stack is not None else ()

    def _has_function(self, stack: tuple[Frame, ...]) -> bool:
        function = self._selection.function
        return function is not None and any(function.search(frame.function) for frame in stack)


class _Paths:
    """Knows which calls concern files of some names.

    Of descriptors it knows that from the calls that made and closed them, and from what was open before.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
        self._known: dict[int, set[int]] = {}

    def take_open(self, pid: int) -> None:
        """Note which descriptors of process *pid* are open to such files now."""
        folder = f"/proc/{pid}/fd"
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for number in os.listdir(folder):
                with contextlib.suppress(OSError):
                    if self._matches(os.readlink(f"{folder}/{number}")):
                        self._known.setdefault(pid, set()).add(int(number))

    def concern(self, event: SyscallEvent) -> bool:
        """Whether the call names such a file or uses such a descriptor."""
        row = row_of(event.name)
        opened = self._known.setdefault(event.pid, set())
        used = [
            event.args[index] & 0xFFFFFFFF for index, arg in enumerate(row.args) if arg.kind in _DESCRIPTORS
        ]
        named = any(
            self._matches(os.fsdecode(event.ins[index]))
            for index, arg in enumerate(row.args)
            if arg.kind is ArgKind.PATH and index in event.ins
        )
        found = named or any(descriptor in opened for descriptor in used)
        if event.name == "close" and not event.errno:
            opened.difference_update(used)
        elif row.result is ResultKind.FD and event.value is not None and event.value >= 0:
            (opened.add if found else opened.discard)(event.value)
        return found

    def _matches(self, path: str) -> bool:
        return any(pattern.match(path) for pattern in self._patterns)
