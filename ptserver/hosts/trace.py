"""Logs the calls that a stub host takes, as the trace's events.

Calls that nobody takes are not seen here: `ptserver.tracelog.tracing` traces whole programs.
Thread rules: those of the host.
"""

import time
from collections.abc import Collection

from ptserver.hosts.endings import exit_of
from ptserver.hosts.pending_call import PendingCall
from ptserver.net.poll_loop import PollLoop
from ptserver.tracelog.events import ExitEvent, SyscallEvent, ThreadEvent, TraceSink

#: How long an event may lie in the sink's buffer while the program is quiet.
_FLUSH_SECONDS = 0.1


class HostTrace:
    """Gives several sinks events: each of the answered calls whose names it wants, and of all threads."""

    def __init__(self, loop: PollLoop) -> None:
        self._sinks: list[tuple[TraceSink, Collection[str]]] = []
        self._loop = loop
        self._flushes = False

    def add(self, sink: TraceSink, names: Collection[str]) -> None:
        """Log calls of *names* to *sink*, too."""
        self._sinks.append((sink, names))

    def remove(self, sink: TraceSink) -> bool:
        """Log no more to *sink*; return whether there are others."""
        self._sinks = [entry for entry in self._sinks if entry[0] is not sink]
        return bool(self._sinks)

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
        """Log the end of the program."""
        self._give(ExitEvent(time.monotonic_ns(), pid, pid, *exit_of(wait_status)))
        for sink, _ in self._sinks:
            sink.flush()

    def _log(self, call: PendingCall, value: int | None, error: int, outs: dict[int, bytes]) -> None:
        row = call.row
        if row is None or not call.started_ns:  # it began before anybody wanted to know
            return
        wanting = [sink for sink, names in self._sinks if row.name in names]
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
        for sink in wanting:
            sink.event(event)
        self._flush_soon()

    def _give(self, event: ThreadEvent | ExitEvent) -> None:
        for sink, _ in self._sinks:
            sink.event(event)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushes:
            self._flushes = True
            self._loop.later(_FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushes = False
        for sink, _ in self._sinks:
            sink.flush()
