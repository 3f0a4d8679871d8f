"""Makes what a user wants of a recorded trace (`recording.py`), as if the program had run just now.

What was not recorded cannot be chosen; of what was, options choose as they do of a running program.
"""

import contextlib

from goabi.errors import GoAbiError
from ptserver.tracelog.errors import FilterError, TraceFormatError
from ptserver.tracelog.events import Event, GcEvent, GoEvent, SyscallEvent, TraceSink
from ptserver.tracelog.frame_names import FrameNames
from ptserver.tracelog.go_events import WAIT_KINDS, GoEvents
from ptserver.tracelog.options import TraceOptions
from ptserver.tracelog.output import Note
from ptserver.tracelog.recording import Recording
from ptserver.tracelog.ring_events import RingEvents, RingFacts
from stepping.ring_batch import CallPlan, RingBatch, plans_of
from stepping.syscalls.table import SYSCALLS


def replay(path: str, options: TraceOptions) -> None:
    """Write the recording in the file *path* as *options* want it.

    Raises:
        TraceFormatError: it is none, or it is damaged; what stood before that has been written.
        TraceOutputError, FilterError: as `TraceOptions.open` and `TraceOptions.names`; waits were not recorded.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise TraceFormatError(f"cannot read the recording {path}: {error.strerror}") from error
    with file:
        recording = Recording(file)
        sink = options.open([], here=False, waits_by_events=True, start=recording.start)
        try:
            with contextlib.closing(_Replay(sink, options)) as taker:
                for piece in recording.contents():
                    taker.take(piece)
        finally:
            sink.close()
    if recording.cut_short:
        options.note("the recording ends in the middle: whoever wrote it was killed")


class _Replay:
    """Gives *sink* what of a recording *options* want."""

    def __init__(self, sink: TraceSink, options: TraceOptions) -> None:
        self._sink = sink
        self._options = options
        self._names = options.names() if options.filters else None
        runtime = options.runtime()
        self._runtime, self._waits = runtime.calls, runtime.waits
        self._kinds = runtime.all_events
        self._events: RingEvents | None = None
        self._plans: dict[int, CallPlan] = {}

    def take(self, piece: RingFacts | RingBatch | Event) -> None:
        """Give on a piece of the recording's contents."""
        match piece:
            case RingFacts():
                self._begin(piece)
            case RingBatch():
                if self._events is None:
                    raise TraceFormatError("the recording holds records of which nothing is known")
                self._events.take(piece.planned(self._plans))
            case SyscallEvent():
                if self._names is None or piece.name in self._names | self._runtime:
                    self._sink.event(piece)
            case GoEvent() | GcEvent():
                what = piece.what if isinstance(piece, GoEvent) else "gc"
                if what in (self._kinds or {what}):
                    self._sink.event(piece)
            case _:
                self._sink.event(piece)

    def close(self) -> None:
        """Give on what was kept back."""
        if self._events is not None:
            self._events.finish()
            self._events = None

    def _begin(self, facts: RingFacts) -> None:
        self.close()
        options = self._options
        recorded = {*facts.names, *facts.runtime_calls}
        wanted = recorded if self._names is None else recorded & (self._names | self._runtime)
        self._plans = plans_of(SYSCALLS[name] for name in wanted if name in SYSCALLS)
        kinds = frozenset(facts.events)
        if self._waits and not kinds >= WAIT_KINDS:
            raise FilterError(f"waits were not recorded, which takes --events={','.join(sorted(WAIT_KINDS))}")
        if self._kinds:
            kinds &= self._kinds
        frames = _open_names(facts, options.note) if options.stacks or kinds else None
        go = GoEvents(kinds, facts.wait_reasons, frames) if kinds and frames is not None else None
        self._events = RingEvents(self._sink, lambda batch: batch, frames if options.stacks else None, go)


def _open_names(facts: RingFacts, note: Note) -> FrameNames:
    """Return the names of the program's functions; without any, and a remark, if its file is not what it was."""
    try:
        names = FrameNames(facts.exe)
        if names.build_id == facts.build_id:
            names.load_bias = facts.load_bias
            return names
        names.close()
        problem = "it is another build now"
    except OSError as error:
        problem = error.strerror or str(error)
    except GoAbiError as error:
        problem = str(error)
    note(f"functions cannot be named by {facts.exe or 'the program'}: {problem}")
    return FrameNames(None)
