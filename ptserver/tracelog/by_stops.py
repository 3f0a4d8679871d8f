"""Traces a program by ptrace's stops: the source for programs that are not for the ring. See `tracelog.tracing`."""

import os
import select
import signal
from dataclasses import replace

from ptserver.hosts.signals import HostSignals, is_ending, is_passed_on, send_signal
from ptserver.tracelog.events import Event, ExitEvent, SignalEvent, SyscallEvent, ThreadEvent, TraceSink
from ptserver.tracelog.output import Note
from ptserver.tracelog.wanted import Wanted
from stepping.errors import SeccompRefusedError, TraceeGoneError
from stepping.launch import Program
from stepping.syscall_stops import (
    SyscallTracer,
    Traced,
    TracedCall,
    TracedExit,
    TracedSignal,
    TracedStart,
    TracedStop,
)
from stepping.tracee_launch import tracing_filter
from stepping.wait_status import WaitKind, WaitStatus

_MAX_ERRNO = 4095


def run_by_stops(program: Program, sink: TraceSink, signals: HostSignals, wanted: Wanted, note: Note) -> int:
    """Run a program and trace it until it has ended; return its raw wait status. See `tracing.run_traced`."""
    adapter = _StopsAdapter(sink, wanted)
    try:
        filtered = replace(program, bpf=tracing_filter(wanted.by_stops(), wanted.conditions, wanted.arch))
        tracer = SyscallTracer.launch(filtered, wanted.by_stops(), adapter.take, arch=wanted.arch)
    except SeccompRefusedError as error:
        note(f"every call of the program is stopped, which is slow: {error}")
        tracer = SyscallTracer.launch(program, wanted.by_stops(), adapter.take, arch=wanted.arch)
    return _StopsTrace(tracer, adapter, sink, signals).run_launched()


def trace_by_stops(pid: int, sink: TraceSink, signals: HostSignals, wanted: Wanted) -> None:
    """Trace a running process until it ends or a signal says that it is enough. See `tracing.trace_process`."""
    adapter = _StopsAdapter(sink, wanted)
    tracer = SyscallTracer.attach(pid, wanted.by_stops(), adapter.take, arch=wanted.arch)
    _StopsTrace(tracer, adapter, sink, signals).run_attached()


class _StopsAdapter:
    """Takes a tracer's reports and gives the sink events; remembers what concerns the first process."""

    def __init__(self, sink: TraceSink, wanted: Wanted) -> None:
        self._sink = sink
        self._wanted = wanted
        self.stopped: set[int] = set()

    def take(self, traced: Traced) -> None:
        """Take one report."""
        if isinstance(traced, TracedCall) and not self._wanted.includes(traced.row.name, traced.args):
            return
        if isinstance(traced, TracedStop):
            if traced.tid == traced.pid:
                self.stopped.add(traced.pid)
            return
        if isinstance(traced, TracedExit):
            self.stopped.discard(traced.pid)
        event = event_of_traced(traced)
        if event is not None:
            self._sink.event(event)


class _StopsTrace:
    """The loop of a trace by stops: reports, signals, and a flush when neither comes."""

    def __init__(
        self, tracer: SyscallTracer, adapter: _StopsAdapter, sink: TraceSink, signals: HostSignals
    ) -> None:
        self._tracer = tracer
        self._adapter = adapter
        self._sink = sink
        self._signals = signals
        self._poll = select.poll()
        self._poll.register(signals.fileno(), select.POLLIN)

    def run_launched(self) -> int:
        """Trace to the end; return the raw wait status."""
        while self._drain():
            if self._pid in self._adapter.stopped:
                # The shell is to see its job stopped; it continues us, and we the program.
                self._adapter.stopped.discard(self._pid)
                self._sink.flush()
                os.kill(os.getpid(), signal.SIGSTOP)
                send_signal(self._pid, signal.SIGCONT)
            for signo, from_kernel in self._wait_for_signals():
                if is_passed_on(signo) and not from_kernel:
                    send_signal(self._pid, signo)
        return self._end().raw_end

    def run_attached(self) -> None:
        """Trace until it ends or a signal says that it is enough."""
        while self._drain():
            if any(is_ending(signo) for signo, _ in self._wait_for_signals()):
                self._tracer.detach()
                return
        self._tracer.close()

    @property
    def _pid(self) -> int:
        return self._tracer.group.pid

    def _drain(self) -> bool:
        """Act on all reports that wait; false when no tracee is left."""
        try:
            while self._tracer.step(block=False):
                pass
        except TraceeGoneError:
            return False
        return len(self._tracer.group) > 0

    def _wait_for_signals(self) -> list[tuple[int, bool]]:
        self._sink.flush()
        self._poll.poll()  # SIGCHLD comes with every report
        return self._signals.receive()

    def _end(self) -> WaitStatus:
        self._tracer.close()
        if self._tracer.group.exit is None:
            raise TraceeGoneError(self._pid)
        return self._tracer.group.exit


def event_of_traced(traced: Traced) -> Event | None:
    """Return the event for a report of a trace by stops; None for one that the log does not show."""
    match traced:
        case TracedCall():
            return _call_event(traced)
        case TracedSignal(tid, pid, time_ns, signo, siginfo):
            return SignalEvent(time_ns, pid, tid, signo, siginfo)
        case TracedStart(tid, pid, time_ns):
            return ThreadEvent(time_ns, pid, tid, "created")
        case TracedExit(tid, pid, time_ns, status):
            if tid != pid:
                return ThreadEvent(time_ns, pid, tid, "exited")
            killed = status.kind is WaitKind.KILLED
            return ExitEvent(
                time_ns, pid, tid, None if killed else status.exit_status, status.signo, status.core_dumped
            )
    return None


def _call_event(call: TracedCall) -> SyscallEvent:
    value, errno = call.value, 0
    if value is not None and -_MAX_ERRNO <= value < 0:
        value, errno = -1, -value
    return SyscallEvent(
        call.started_ns,
        None if value is None else call.duration_ns,
        call.pid,
        call.tid,
        call.row.name,
        call.args,
        call.ins,
        call.outs,
        value,
        errno,
        value is None,
    )
