"""Makes the rows of a list of goroutines of what `Inspected` sights. Named stacks are remembered, within bounds."""

from collections.abc import Iterator, Sequence

from goabi.errors import PclntabError
from goabi.goroutine import GoStatus
from goabi.pclntab import SourceFrame
from goabi.unwind import DEFAULT_MAX_FRAMES, Frame, Stack, Unwinder
from ptserver.inspection.goroutine_list import (
    FrameRow,
    GoroutineRow,
    Selection,
    is_runtime,
    printable,
    where_it_is,
)
from ptserver.inspection.inspector import Inspected, Sighting

_CACHED_STACKS = 4096
#: Most goroutines are in the program's own code within so many frames.
_FEW_FRAMES = 5
_FIRST_GOID = 1

_STATES = {status: status.name.lower() for status in GoStatus}

Stacks = tuple[FrameRow, ...]


class RowMaker:
    """Makes rows of the goroutines of one program. stacks: whether rows have stacks; else only where each is."""

    def __init__(self, inspected: Inspected, selection: Selection, *, stacks: bool) -> None:
        self._inspected = inspected
        self._runtime = inspected.runtime
        self._selection = selection
        self._stacks = stacks
        self._names = Unwinder(inspected.runtime)
        self._rows: dict[tuple[int, ...], Stacks] = {}
        self._sites: dict[int, FrameRow | None] = {}
        #: By where goroutines start: whether those are the runtime's own, and the function's name.
        self._starts: dict[int, tuple[bool, str]] = {}
        self.system_hidden = 0
        self.filtered = 0

    def iter_rows(self, sightings: Iterator[Sighting]) -> Iterator[GoroutineRow]:
        """Yield the rows of those that are wanted, and count the others."""
        for sighting in sightings:
            row = self.row(sighting)
            if row is not None:
                yield row

    def row(self, sighting: Sighting) -> GoroutineRow | None:
        """Return the row of a goroutine; None if it is not wanted."""
        g, runtime, selection = sighting.goroutine, self._runtime, self._selection
        start = self._starts.get(g.startpc)
        if start is None:
            start = self._starts[g.startpc] = (runtime.is_system(g), self._entry(g.startpc))
        system, entry = start
        if system and not selection.system:
            self.system_hidden += 1
            return None
        state, reason = _STATES[g.status], runtime.wait_reason(g)
        if not selection.matches(state, reason):
            self.filtered += 1
            return None
        stack, problem = self._stack(sighting, whole=self._stacks or selection.needs_stack)
        if not selection.matches_stack(stack):
            self.filtered += 1
            return None
        now = self._inspected.now_ns
        return GoroutineRow(
            goid=g.goid,
            state=state,
            reason=reason,
            waited_ns=None if now is None else runtime.wait_ns(g, now),
            at=where_it_is(stack),
            # Go's own start made the first one.
            created_by=self._site(g.gopc) if g.goid != _FIRST_GOID else None,
            parent=g.parent_goid,
            entry=entry,
            tid=sighting.tid,
            locked=bool(g.locked_m),
            system=system,
            labels=_printable_labels(sighting.labels) if sighting.labels else {},
            channels=tuple([f"{channel:#x}" for channel in sighting.channels]) if sighting.channels else (),
            stack=stack if self._stacks else (),
            problem=problem if self._stacks else "",
        )

    def _stack(self, sighting: Sighting, *, whole: bool) -> tuple[Stacks, str]:
        """Return its calls, as many as are needed, and why they are not all (of a whole stack)."""
        if not whole:
            stack = self._inspected.unwind(sighting, _FEW_FRAMES)
            rows = self._named(stack)
            if len(stack.frames) < _FEW_FRAMES or not all(is_runtime(row.function) for row in rows):
                return rows, ""
        stack = self._inspected.unwind(sighting, DEFAULT_MAX_FRAMES)
        return self._named(stack), printable(stack.problem)

    def _named(self, stack: Stack) -> Stacks:
        key = tuple([-frame.pc if frame.exact else frame.pc for frame in stack.frames])
        rows = self._rows.get(key)
        if rows is None:
            if len(self._rows) >= _CACHED_STACKS:
                self._rows.clear()
            rows = self._rows[key] = tuple(self._iter_named(stack))
        return rows

    def _iter_named(self, stack: Stack) -> Iterator[FrameRow]:
        """Yield calls with their pcs: of the frames that hold them, some of which show nothing."""
        bias = self._runtime.bias
        position = 0
        try:
            for source in self._names.iter_source_frames(stack, wrappers=False):
                position = _position_of(source, stack.frames, position)
                pc = stack.frames[position].pc
                offset = None if source.inlined or not source.line else pc - bias - source.entry
                yield _frame_row(source, pc, offset)
                if not source.inlined:
                    position += 1
        except PclntabError as error:
            yield FrameRow(printable(f"? ({error})"))

    def _site(self, gopc: int) -> FrameRow | None:
        """Return the go statement before a return address."""
        try:
            return self._sites[gopc]
        except KeyError:
            pass
        frames = self._runtime.frames_at(gopc, is_return_address=True) if gopc else ()
        offset = gopc - self._runtime.bias - frames[0].entry if frames and not frames[0].inlined else None
        site = _frame_row(frames[0], gopc, offset) if frames else None
        self._sites[gopc] = site
        return site

    def _entry(self, startpc: int) -> str:
        frames = self._runtime.frames_at(startpc)
        return printable(frames[-1].function) if frames else ""


def _printable_labels(labels: dict[str, str]) -> dict[str, str]:
    return {printable(key): printable(value) for key, value in labels.items()}


def _position_of(source: SourceFrame, frames: Sequence[Frame], start: int) -> int:
    """Return which frame holds a call: the next of the same function. Wrappers in between are skipped."""
    for position in range(start, len(frames)):
        function = frames[position].function
        if (frames[position].pc if function is None else function.entry) == source.entry:
            return position
    return min(start, len(frames) - 1)


def _frame_row(source: SourceFrame, pc: int, offset: int | None) -> FrameRow:
    return FrameRow(printable(source.function), printable(source.file), source.line, f"{pc:#x}", offset)
