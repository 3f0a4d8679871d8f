"""Logs the calls of a session that runs elsewhere, as `ptserver.tracelog.tracing` does those of a process here.

The host of the session tells of the calls that it takes, which are those that reach outside the program.
"""

import select
import signal
import time
from collections.abc import Sequence

from ptserver.hosts.signals import HostSignals
from ptserver.messages import Watch, WatchedCall, WatchedCalls, WatchedFrame, WatchedRows, WatchEnded
from ptserver.tracelog.events import ExitEvent, Frame, LossEvent, SyscallEvent, TraceSink
from ptserver.tracelog.jsonl import decode_event
from ptserver.watching.watcher import NoSessionError, Watcher

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_QUIET_MS = 50
#: How long the last calls may take to arrive when the user has seen enough.
_LAST_SECONDS = 3.0


def trace_session(
    watcher: Watcher,
    session: str,
    names: frozenset[str],
    sink: TraceSink,
    *,
    stacks: bool = False,
    events: frozenset[str] = frozenset(),
    runtime: bool = False,
) -> None:
    """Give *sink* the calls *names* of a session until its program ends, or a signal says that it is enough.

    stacks: with where they were made, if the host can tell. events: kinds of what becomes of goroutines. runtime:
    also the calls that Go's runtime makes by itself.

    Raises:
        NoSessionError: the host cannot tell.
        TraceFormatError: it is of another version.
        ConnectionLostError, ProtocolError: the server is gone, or sent nonsense.
    """
    signals = HostSignals()
    poll = select.poll()
    poll.register(signals.fileno(), select.POLLIN)
    poll.register(watcher.fileno(), select.POLLIN)
    deadline: float | None = None
    pid = 0
    try:
        watch = Watch(
            1,
            "trace",
            session,
            tuple(sorted(names)),
            stacks=stacks,
            events=tuple(sorted(events)),  # type: ignore[arg-type]
            runtime=runtime,
        )
        number = watcher.begin(watch)
        while deadline is None or time.monotonic() < deadline:
            ready = {fd for fd, _ in poll.poll(_QUIET_MS)}
            if not ready:
                sink.flush()
            enough = signals.fileno() in ready and any(signo in _ENDING for signo, _ in signals.receive())
            if enough and deadline is None:
                watcher.end(number)
                deadline = time.monotonic() + _LAST_SECONDS
            for told in watcher.receive():
                if isinstance(told, WatchedCalls):
                    if told.lost:
                        sink.event(LossEvent(told.monotonic_ns, told.lost))
                    named = [tuple(map(_frame, stack)) for stack in told.stacks]
                    for call in told.calls:
                        pid = call.pid
                        sink.event(_event(call, named))
                elif isinstance(told, WatchedRows):
                    if told.lost:
                        sink.event(LossEvent(time.monotonic_ns(), told.lost))
                    for row in told.rows:
                        sink.event(decode_event(row))
                elif isinstance(told, WatchEnded):
                    if told.problem:
                        raise NoSessionError(told.problem)
                    if told.gone:
                        sink.event(ExitEvent(time.monotonic_ns(), pid, pid, told.status, told.signo))
                    return
    finally:
        sink.flush()
        signals.close()


def _frame(frame: WatchedFrame) -> Frame:
    return Frame(frame.function, frame.file, frame.line, frame.pc)


def _event(call: WatchedCall, stacks: Sequence[tuple[Frame, ...]]) -> SyscallEvent:
    return SyscallEvent(
        call.start_ns,
        call.duration_ns,
        call.pid,
        call.tid,
        call.name,
        call.args,
        call.ins,
        call.outs,
        call.value,
        call.errno,
        goid=call.goid or None,
        stack=stacks[call.stack] if 0 <= call.stack < len(stacks) else (),
    )
