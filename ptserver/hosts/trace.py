"""Logs the calls that a stub host takes, as the trace's events.

Calls that nobody takes are not seen here: `ptserver.tracelog.tracing` traces whole programs.
Thread rules: those of the host.
"""

import contextlib
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from goabi.errors import GoAbiError
from goabi.sched import GoRuntime
from ptserver.hosts.endings import exit_of
from ptserver.hosts.go_events import HostGoEvents, NoEventsError, of_kinds
from ptserver.hosts.pending_call import PendingCall
from ptserver.inspection.call_stacks import CallStacks
from ptserver.net.poll_loop import PollLoop
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import ExitEvent, SyscallEvent, ThreadEvent, TraceSink
from ptserver.tracelog.frame_names import FrameNames, exe_identity
from stepping.syscalls.table import SYSCALLS
from stepping.tracee_memory import TraceeMemory

#: How long an event may lie in the sink's buffer while the program is quiet.
_FLUSH_SECONDS = 0.1


class _Listener(NamedTuple):
    """Who is told what: calls of these names, with *stacks* or not; events of goroutines, of these kinds.

    runtime: the calls that are wanted that the program's runtime makes by itself.
    """

    sink: TraceSink
    names: Collection[str]
    stacks: bool
    kinds: Collection[str]
    runtime: Collection[str]


class HostTrace:
    """Gives several sinks events: each of the answered calls whose names it wants, and of all threads.

    takes: whether the host answers the calls of a name, so that they are logged when it does.
    """

    def __init__(self, loop: PollLoop, takes: Callable[[str], bool]) -> None:
        self._takes = takes
        self._listeners: list[_Listener] = []
        self._with_stack: frozenset[str] = frozenset()
        self._pid = 0
        self._exe: tuple[int, int] | None = None
        self._stacks: CallStacks | None = None
        self._frames: FrameNames | None = None
        self._loop = loop
        self._flushes = False
        self._events: HostGoEvents | None = None

    def name_stacks(self, pid: int, runtime: GoRuntime, memory: TraceeMemory) -> None:
        """Be able to tell where process *pid* makes calls. memory: its."""
        if self._stacks is None:
            with contextlib.suppress(OSError, GoAbiError):
                self._frames = FrameNames(f"/proc/{pid}/exe")
                self._frames.load_bias = runtime.bias
                self._stacks = CallStacks(runtime, memory)
                self._pid, self._exe = pid, exe_identity(pid)

    def add(
        self,
        sink: TraceSink,
        names: Collection[str],
        *,
        stacks: bool = False,
        kinds: Collection[str] = (),
        runtime: Collection[str] = (),
    ) -> None:
        """Log calls of *names* to *sink*, too. stacks: with where they were made, if that can be told.

        kinds: which events of goroutines are logged; runtime: which calls that the runtime makes by itself. For both
        `start_events` comes first.
        """
        self._listeners.append(_Listener(sink, names, stacks, kinds, runtime))
        self._note_wishes()

    def start_events(self, pid: int, own_id: int, runtime: Collection[str] = ()) -> int:
        """Be able to log what becomes of the goroutines of process *pid*; return since when that is known.

        own_id: what the program takes its number for. runtime: the runtime's calls that are to be logged as well.

        Raises:
            NoEventsError: it cannot be known.
        """
        if self._events is None:
            self._events = HostGoEvents(pid, own_id, self._loop, self._take_events, calls=runtime)
        if not self._events.calls >= set(runtime):
            raise NoEventsError("the program has a ring already, for others, without the runtime's own calls")
        return self._events.since_ns

    def remove(self, sink: TraceSink) -> bool:
        """Log no more to *sink*; return whether there are others."""
        self._listeners = [listener for listener in self._listeners if listener.sink is not sink]
        self._note_wishes()
        return bool(self._listeners) or self._events is not None

    def close(self) -> None:
        """Read what is left, and give up the program's file."""
        if self._events is not None:
            self._events.close()
        if self._frames is not None:
            self._frames.close()
            self._frames = self._stacks = None

    def taken(self, call: PendingCall) -> None:
        """Note when *call* was made, and where."""
        call.started_ns = time.monotonic_ns()
        row = call.row
        if row is None or row.name not in self._with_stack or call.process.pid != self._pid:
            return
        assert self._stacks is not None
        if exe_identity(self._pid) == self._exe:  # otherwise it has executed another program meanwhile
            call.stack = self._stacks.of(call.tid, call.ip)

    def answered(self, call: PendingCall, value: int, error: int, outs: dict[int, bytes]) -> None:
        """Log *call*, which has returned."""
        self._log(call, -1 if error else value, error, outs)

    def proceeded(self, call: PendingCall) -> None:
        """Log *call*, which its thread makes itself: nobody will see the result."""
        self._log(call, None, 0, {})

    def thread(self, pid: int, tid: int, change: str) -> None:
        """Log that a thread was created or exits."""
        self._give(ThreadEvent(time.monotonic_ns(), pid, tid, change))

    def exited(self, pid: int, wait_status: int) -> None:
        """Log the end of the program, after what its goroutines did last."""
        if self._events is not None:
            self._events.finish()
        self._give(ExitEvent(time.monotonic_ns(), pid, pid, *exit_of(wait_status)))
        for listener in self._listeners:
            listener.sink.flush()

    def _take_events(self, batch: CallBatch) -> None:
        for listener in self._listeners:
            given = self._calls_for(listener, batch)
            others = of_kinds(given.others, listener.kinds) if listener.kinds or listener.runtime else ()
            if others or batch.waits or given.records.size:
                listener.sink.calls(given._replace(others=others))
        self._flush_soon()

    def _calls_for(self, listener: _Listener, batch: CallBatch) -> CallBatch:
        """Return *batch* with those of the runtime's calls that *listener* wants, and does not hear of otherwise."""
        if not batch.records.size:
            return batch
        wanted = {
            name
            for name in listener.runtime
            if name not in listener.names or not self._takes(name) or SYSCALLS[name].only_if is not None
        }
        groups = (group for group in batch.records.groups() if group.row.name in wanted)
        chosen = batch.select(sorted(index for group in groups for index in group.indexes))
        return chosen._replace(name_stack=self._frames if listener.stacks else None)

    def _note_wishes(self) -> None:
        if self._events is not None:
            kinds = {kind for listener in self._listeners for kind in listener.kinds}
            self._events.want(kinds, calls=any(listener.runtime for listener in self._listeners))
        wanted = (listener.names for listener in self._listeners if listener.stacks)
        self._with_stack = (
            frozenset(name for names in wanted for name in names) if self._stacks else frozenset()
        )

    def _log(self, call: PendingCall, value: int | None, error: int, outs: dict[int, bytes]) -> None:
        row = call.row
        if row is None or not call.started_ns:  # it began before anybody wanted to know
            return
        wanting = [listener for listener in self._listeners if row.name in listener.names]
        if not wanting:
            return
        args, ins, *_ = call.gathered
        event = SyscallEvent(
            call.started_ns,
            time.monotonic_ns() - call.started_ns if value is not None else None,
            call.process.pid,
            call.tid,
            row.name,
            args,
            ins,
            outs,
            value,
            error,
            goid=call.goid or None,
        )
        with_stack = event
        if call.stack and self._frames is not None:
            with_stack = event._replace(stack=self._frames(call.stack))
        for listener in wanting:
            listener.sink.event(with_stack if listener.stacks else event)
        self._flush_soon()

    def _give(self, event: ThreadEvent | ExitEvent) -> None:
        for listener in self._listeners:
            listener.sink.event(event)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushes:
            self._flushes = True
            self._loop.later(_FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushes = False
        for listener in self._listeners:
            listener.sink.flush()
