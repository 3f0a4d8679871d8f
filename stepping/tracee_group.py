"""All threads of one process under trace: attached together, stopped together, resumed together.

A thread that is created while its creator is traced is traced from its first instruction on (PTRACE_O_TRACECLONE)
and its first report may come before its creator's; so any report of an unknown thread makes it known.

`stop_all` stops the world: afterwards no thread of the process executes until `resume_all`, so memory and
registers are one consistent state. How long that lasts is the caller's duty; other programs wait for this one.

All methods are called on one OS thread, the one that attached (`tracer_thread`).

Source: ptrace(2); kernel/ptrace.c.
"""

import contextlib
import os
import time
from collections.abc import Iterator

from stepping import ptrace_api
from stepping.errors import PtraceRefusedError, SteppingError, TraceeGoneError
from stepping.ptrace_api import FOLLOW_THREADS, Option
from stepping.tracee import Resume, Tracee, read_pid, read_state, read_tids
from stepping.wait_status import Event, WaitKind, WaitStatus

#: How long `stop_all` waits for threads that the kernel cannot stop at once (in the middle of disk I/O or vfork).
STOP_TIMEOUT_S = 2.0
#: How long beyond that for one that would stop, had it a processor: a busy machine lets some wait for seconds.
_STARVED_S = 30.0
_STOPPING = ("R", "t")

#: After one of these events, `ptrace_api.geteventmsg` gives the id of a new tracee.
NEW_TASK_EVENTS = (Event.CLONE, Event.FORK, Event.VFORK)

_SPIN_S = 0.001
_POLL_S = 0.00005


class TraceeGroup:
    """The tracees of process *pid*, by tid. `exit`: the process's own last report, once it is gone."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.tracees: dict[int, Tracee] = {}
        self.exit: WaitStatus | None = None

    @classmethod
    def attach(cls, pid: int, options: Option = FOLLOW_THREADS) -> "TraceeGroup":
        """Trace all threads of a running process, without stopping it.

        Raises:
            PtraceRefusedError: the kernel does not allow it; nothing is traced then.
            TraceeGoneError: there is no such process, or it has exited.
        """
        group = cls(pid)
        try:
            while group._seize_new(options):
                pass
        except SteppingError:
            with contextlib.suppress(SteppingError):
                group.detach_all()
            raise
        if not group.tracees:
            raise TraceeGoneError(pid)
        return group

    def __iter__(self) -> Iterator[Tracee]:
        return iter(list(self.tracees.values()))

    def __len__(self) -> int:
        return len(self.tracees)

    @property
    def leader(self) -> Tracee | None:
        """The process's first thread, if it still lives."""
        return self.tracees.get(self.pid)

    def add(self, tracee: Tracee) -> None:
        """Take in a tracee that was seized elsewhere."""
        self.tracees[tracee.tid] = tracee

    def wait(self, *, block: bool = True) -> tuple[Tracee, WaitStatus] | None:
        """Wait for the next report of any thread; None if there is none now and *block* is false.

        A tracee that exited is already out of the group. After an exec, the thread that made it has become
        the leader (its report is `Event.EXEC`) and all others are gone.

        Raises:
            TraceeGoneError: no thread is left.
        """
        try:
            tid, raw = ptrace_api.wait_any(block=block)
        except TraceeGoneError as error:
            self.tracees.clear()
            raise TraceeGoneError(self.pid) from error
        return None if raw is None else self.note(tid, raw)

    def wait_for(self, tracee: Tracee) -> WaitStatus:
        """Wait until *tracee* reports; what others report meanwhile is kept as their `status`.

        If it executes another program, and was not the first thread, its report is the leader's `Event.EXEC`.

        Raises:
            TraceeGoneError: it was reaped unseen; no tracee of that number is left.
        """
        while True:
            report = self.wait()
            assert report is not None
            who, status = report
            if who is tracee:
                return status
            if status.event is Event.EXEC and tracee.tid not in self.tracees:
                return status

    def wait_for_end(self) -> None:
        """Wait until the process, which was killed, is gone; it cannot go before all its traced threads have."""
        with contextlib.suppress(TraceeGoneError):
            while self.exit is None:
                self.wait()

    def stop_all(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop every thread, those included that are created meanwhile.

        Raises:
            SteppingError: a thread does not stop within its *timeout_s*; those that did stay stopped.
            TraceeGoneError: no thread is left.
        """
        while True:
            for tracee in self:
                if not tracee.is_stopped:
                    with _forget_if_gone(self, tracee):
                        tracee.interrupt()
            for tracee in self:
                self._wait_stopped(tracee, timeout_s)
            if not self.tracees:
                raise TraceeGoneError(self.pid)
            if not self._seize_new(FOLLOW_THREADS) and all(tracee.is_stopped for tracee in self):
                return

    def resume_all(self, how: Resume = Resume.FREE) -> None:
        """Resume every stopped thread, with the signals that they are stopped for."""
        for tracee in self:
            with _forget_if_gone(self, tracee):
                tracee.resume(how)

    def detach_all(self) -> None:
        """Stop tracing: every thread goes on (or stays in the group-stop that it was in) untraced."""
        running = [tracee for tracee in self if not tracee.is_stopped]
        if running:
            self.stop_all()
        for tracee in self:
            with _forget_if_gone(self, tracee):
                tracee.detach()
        self.tracees.clear()

    def _seize_new(self, options: Option) -> bool:
        """Seize threads that are not known yet; return whether there were any."""
        found = False
        for tid in read_tids(self.pid):
            if tid in self.tracees:
                continue
            try:
                self.tracees[tid] = Tracee.seize(tid, self.pid, options)
            except TraceeGoneError:
                continue
            except PtraceRefusedError:
                # A first thread that called exit(2) stays as a zombie; a thread that a tracee just created
                # is traced by us already and will report.
                if read_state(tid) in ("Z", "X", "") or self.tracees:
                    continue
                raise
            found = True
        return found

    def _wait_stopped(self, tracee: Tracee, timeout_s: float) -> None:
        patient_until, deadline = time.monotonic() + _SPIN_S, time.monotonic() + timeout_s
        while not tracee.is_stopped and tracee.tid in self.tracees:
            try:
                raw = ptrace_api.wait(tracee.tid, block=False)
            except TraceeGoneError:
                self.tracees.pop(tracee.tid, None)
                return
            if raw is not None:
                self.note(tracee.tid, raw)
            elif (late_s := time.monotonic() - deadline) > 0 and (
                late_s > _STARVED_S or read_state(tracee.tid) not in _STOPPING
            ):
                raise SteppingError(
                    f"thread {tracee.tid} of process {self.pid} does not stop "
                    f"(state {read_state(tracee.tid)}); it waits in the kernel, or its cgroup is frozen; try again"
                )
            elif time.monotonic() < patient_until:
                os.sched_yield()  # most threads stop within microseconds; a sleep would be far longer
            else:
                time.sleep(_POLL_S)

    def note(self, tid: int, raw: int) -> tuple[Tracee, WaitStatus]:
        """Take in a report that somebody else waited for."""
        tracee = self.tracees.get(tid)
        if tracee is None:
            tracee = Tracee(tid, self._pid_of(tid))
            self.tracees[tid] = tracee
        status = tracee.note(raw)
        if not status.is_stop:
            del self.tracees[tid]
            if tid == self.pid:
                self.exit = status
        elif status.kind is WaitKind.EVENT:
            self._follow(tracee, status)
        return tracee, status

    def _follow(self, tracee: Tracee, status: WaitStatus) -> None:
        if status.event in NEW_TASK_EVENTS:
            with contextlib.suppress(TraceeGoneError):
                child = ptrace_api.geteventmsg(tracee.tid)
                if child not in self.tracees:
                    self.tracees[child] = Tracee(child, self._pid_of(child))
        elif status.event is Event.EXEC:
            for tid in [tid for tid, other in self.tracees.items() if other.pid == tracee.pid]:
                if tid != tracee.tid:
                    del self.tracees[tid]

    def _pid_of(self, tid: int) -> int:
        try:
            return read_pid(tid)
        except TraceeGoneError:
            return self.pid


@contextlib.contextmanager
def _forget_if_gone(group: TraceeGroup, tracee: Tracee) -> Iterator[None]:
    try:
        yield
    except TraceeGoneError:
        group.tracees.pop(tracee.tid, None)
