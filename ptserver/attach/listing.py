"""Lists a program's goroutines with their stacks, again and again, a step at a time.

`STOP_RECORDS` of them are copied in a stop, which takes some milliseconds. After a list there is a pause, so that the
program is stopped for `STOPPED_SHARE` of the time at most, and this process has time for other things.
"""

import time
from collections.abc import Callable, Iterator

from goabi.errors import GoAbiError
from ptserver.errors import PtServerError
from ptserver.inspection.goroutine_list import FrameRow, GoroutineRow, GroupRow, Groups, Selection
from ptserver.inspection.goroutine_rows import RowMaker
from ptserver.inspection.goroutine_stats import Listed, format_site
from ptserver.inspection.process import InspectedProcess
from stepping.errors import SteppingError

#: How many goroutines are copied in one stop.
STOP_RECORDS = 512
#: The part of the time that the program may be stopped for lists.
STOPPED_SHARE = 0.02
#: How long it is between the beginnings of two lists, at least.
LISTING_SECONDS = 1.0
#: How long one step may take, and what part of this process's time all of them.
_STEP_SECONDS = 0.02
_WORKING_SHARE = 0.4
_AGAIN_SECONDS = 2.0
#: Of how many goroutines the rows are kept, and of how many it is known where they were created.
_MOST_ROWS, _MOST_LISTED = 20_000, 1 << 16


class Listing:
    """The goroutines of *inspected* that *selection* wants. is_known: whether there is an account of one.

    complete_ns: when the last list was complete, 0 if none is yet. states: how many goroutines it had in each state,
    groups: the same by stack; rows: those that it had first, by number. notes: what went wrong with the one after it.
    """

    def __init__(
        self, inspected: InspectedProcess, selection: Selection, is_known: Callable[[int], bool]
    ) -> None:
        self._inspected = inspected
        self._selection = selection
        self._is_known = is_known
        self.complete_ns = 0
        self.states: dict[str, int] = {}
        self.groups: list[GroupRow] = []
        self.rows: dict[int, GoroutineRow] = {}
        self.notes: tuple[str, ...] = ()
        self._hidden: frozenset[int] = frozenset()
        self._fresh: list[Listed] | None = None
        self._making: _Making | None = None
        self._next = 0.0

    def step(self) -> bool:
        """Go on with a list, or begin one if it is time; return whether there is more to do at once."""
        began = time.monotonic()
        if self._making is None:
            if began < self._next:
                return False
            self._making = _Making(self._inspected, self._selection, self._is_known)
        try:
            complete = self._making.go_on(began + _STEP_SECONDS)
        except (GoAbiError, SteppingError, PtServerError) as error:
            self._making = None
            self.notes = (f"goroutines cannot be listed now: {error}",)
            self._next = began + _AGAIN_SECONDS
            return False
        if complete:
            self._publish(self._making)
            self._making = None
        return not complete

    def take_fresh(self) -> list[Listed] | None:
        """Return what the last list has for the accounts, once; None if that was taken already."""
        fresh, self._fresh = self._fresh, None
        return fresh

    def shows(self, goid: int) -> bool:
        """Whether a goroutine is to be shown: it was in the last list, or began since, and all are wanted."""
        return goid in self.rows or (
            goid not in self._hidden and not (self._selection.states or self._selection.function)
        )

    def _publish(self, made: "_Making") -> None:
        now = time.monotonic()
        self.complete_ns = time.monotonic_ns()
        self.states, self.groups, self.rows = made.states, made.groups.rows(), made.rows
        self._fresh = made.listed
        self._hidden = frozenset(listed.goid for listed in made.listed) - made.rows.keys()
        self.notes = ()
        if made.count > len(made.rows):
            self.notes = (f"{made.count - len(made.rows)} goroutines are shown in their groups only",)
        stopped_s = self._inspected.stopped_s - made.stopped_before_s
        self._next = max(
            made.began + LISTING_SECONDS,
            now + made.worked_s * (1 / _WORKING_SHARE - 1),
            now + stopped_s / STOPPED_SHARE,
        )


class _Making:
    """A list that is being made."""

    def __init__(
        self, inspected: InspectedProcess, selection: Selection, is_known: Callable[[int], bool]
    ) -> None:
        self._selection = selection
        self._is_known = is_known
        # Accounts are kept of all.
        maker = RowMaker(inspected, Selection(system=True), stacks=True)
        self._rows: Iterator[GoroutineRow] = maker.iter_rows(inspected.iter_sightings())
        self.began = time.monotonic()
        self.stopped_before_s = inspected.stopped_s
        self.worked_s = 0.0
        self.count = 0
        self.states: dict[str, int] = {}
        self.groups = Groups()
        self.rows: dict[int, GoroutineRow] = {}
        self.listed: list[Listed] = []

    def go_on(self, until: float) -> bool:
        """Add goroutines until a time; return whether it is complete."""
        began = time.monotonic()
        states, add, rows = self.states, self.groups.add, self.rows
        listed, is_known = self.listed, self._is_known
        try:
            for row in self._rows:
                if len(listed) < _MOST_LISTED or is_known(row.goid):
                    listed.append(Listed(row.goid, row.state == "waiting", place(row.created_by)))
                if self._wants(row):
                    self.count += 1
                    state = row.reason or row.state
                    states[state] = states.get(state, 0) + 1
                    add(row)
                    if len(rows) < _MOST_ROWS:
                        rows[row.goid] = row
                if time.monotonic() > until:
                    return False
        finally:
            self.worked_s += time.monotonic() - began
        return True

    def _wants(self, row: GoroutineRow) -> bool:
        selection = self._selection
        return (
            (selection.system or not row.system)
            and selection.matches(row.state, row.reason)
            and selection.matches_stack(row.stack)
        )


def place(frame: FrameRow | None) -> str:
    """Return a call, or a go statement, in a word or two; the program's start for none."""
    return format_site(frame.function, frame.file, frame.line) if frame is not None else "the program's start"
