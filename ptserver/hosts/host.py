"""The stub host: takes the calls of a running program from its listener and sees that each is answered.

`Host` is the part that every kind of server shares: one poll loop on one thread over the listener, the program's
pidfd, signals, timers, and what a subclass adds. `LocalHost` answers in this process, `RemoteHost` over a
connection.

Interrupted calls. A signal may interrupt a thread that waits for an answer; its notification is void then, and the
kernel makes the thread repeat the call (SA_RESTART, which Go always sets) or fail with EINTR. The call may have
been carried out meanwhile, and must not be twice: it is kept under its thread until the repeated call, recognised by
thread, number, registers and place, takes it over, with its result if there is one already. A different call of
the thread instead means that the old one is given up: `_abandon` cancels it.

Not trusted: the program. Its memory is read once per call (`stepping.syscalls.marshal`).
"""

import contextlib
import errno
import itertools
import os
import signal
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Literal

from ptserver.hosts.pending_call import PendingCall, Process, thread_group
from ptserver.hosts.policy import THREAD_CALLS
from ptserver.hosts.signals import HostSignals, is_passed_on
from ptserver.hosts.stub_calls import StubCalls
from ptserver.messages import Interest
from ptserver.net.poll_loop import PollLoop
from ptserver.net.urgency import be_urgent
from stepping.errors import NotificationGoneError
from stepping.launch import Launched
from stepping.listener import Listener, Notification
from stepping.syscalls import SYSCALLS, Arch, Syscall, Sysno, by_number
from stepping.syscalls.marshal import BadArgumentError, gather, scatter
from stepping.tracee_memory import TraceeMemory

if TYPE_CHECKING:
    from ptserver.hosts.statistics import HostStatistics
    from ptserver.hosts.trace import HostTrace
    from ptserver.inspection.goids import GoroutineIds
    from ptserver.messages import GoroutineStatistics
    from ptserver.remote_memory.tracer import RemoteTracer
    from ptserver.tracelog.events import TraceSink

ThreadChange = Literal["created", "exited"]


class Host:
    """Runs the session of one launched program; see the module's text. Subclasses answer.

    stub: answers the hypercalls of a program with the stub. trace: hears of every call, if set. tracees: of a program
    that is traced, its one thread, which has not run yet.
    """

    def __init__(
        self,
        launched: Launched,
        signals: HostSignals,
        arch: Arch,
        interest: Mapping[str, Interest],
    ) -> None:
        assert launched.listener is not None
        self.stub = StubCalls()
        self.trace: HostTrace | None = None
        self._goids: GoroutineIds | None = None
        self.tracees = launched.tracees
        self._tracer: RemoteTracer | None = None
        self._statistics: HostStatistics | None = None
        self.pid = launched.pid
        self._pidfd = launched.pidfd
        self._listener: Listener = launched.listener
        self._signals = signals
        self._rows = by_number(arch)
        self._seen_rows: dict[int, Syscall] = {}  # those of _rows that were used, at the speed of a dict
        self._served = interest.keys()
        self._main = Process(launched.pid)
        self._processes: dict[int, Process] = {launched.pid: self._main}
        self._pending: dict[int, PendingCall] = {}
        self._ids = itertools.count(1)
        # Answers a call by its arguments alone, with its value and errno; None if it cannot.
        self._quick: Callable[[Notification, TraceeMemory], tuple[int, int] | None] | None = None
        self._loop = PollLoop()
        self._wait_status: int | None = None
        self._loop.watch(self._listener.fileno(), self._on_call)
        self._loop.watch(self._pidfd, self._on_exit)
        self._loop.watch(signals.fileno(), self._on_signal)

    def run(self) -> int:
        """Serve the program until it is gone; return its wait status, as waitpid(2) gives it."""
        if self._tracer is not None:
            self._tracer.start()
        while self._wait_status is None:
            self._round()
        if self.trace is not None:
            self.trace.exited(self.pid, self._wait_status)
        return self._wait_status

    def _round(self) -> None:
        self._loop.round(self._before_waiting)

    def find_goroutines(self, path: str) -> None:
        """Have `PendingCall.goid` set from now on, if *path*, which the program executes, is a Go program."""
        from ptserver.inspection.goids import GoroutineIds

        if self._goids is None:
            self._goids = GoroutineIds.find(path, self.pid, self._main.memory)

    def start_trace(
        self,
        sink: "TraceSink",
        names: Collection[str],
        *,
        stacks: bool = False,
        events: Collection[str] = (),
        runtime: Collection[str] = (),
    ) -> None:
        """Log the calls of *names* that are taken to *sink*, besides others.

        stacks: with where they were made, if `find_goroutines` found a Go program. events: the kinds of what becomes
        of goroutines that are logged, too; runtime: the calls that Go's runtime makes by itself that are.

        Raises:
            NoEventsError: there is none of that to be had.
        """
        from ptserver.hosts.go_events import NoEventsError
        from ptserver.hosts.trace import HostTrace

        if (events or runtime) and self.tracees is not None:
            raise NoEventsError(
                "events of goroutines cannot be had: the program's remote variables are traced"
            )
        if self.trace is None:
            self.trace = HostTrace(self._loop, self.takes)
        if stacks and self._goids is not None:
            self.trace.name_stacks(self.pid, self._goids.runtime, self._main.memory)
        if events or runtime:
            since_ns = self.trace.start_events(self.pid, self._main.id, runtime)
            if self._statistics is not None:
                self._statistics.measure_blocked(since_ns)
        self.trace.add(sink, names, stacks=stacks, kinds=events, runtime=runtime)
        self._on_trace()

    def stop_trace(self, sink: "TraceSink") -> None:
        """Log no more to *sink*."""
        if self.trace is not None and not self.trace.remove(sink):
            self.trace.close()
            self.trace = None

    def start_statistics(self, seconds: float, give: "Callable[[GoroutineStatistics], None]") -> None:
        """Have *give* told every so many seconds what the program's goroutines have used."""
        from ptserver.hosts.statistics import HostStatistics

        self.find_goroutines(f"/proc/{self.pid}/exe")
        self._statistics = HostStatistics(self.pid, self._loop, seconds, give)
        self.start_trace(self._statistics, SYSCALLS)

    def start_tracer(self, tracer: "RemoteTracer") -> None:
        """Serve the remote variables of the program, which is traced and stopped, by *tracer*; `run` lets it run."""
        be_urgent()
        self._tracer = tracer
        tracer.on_group_stop = self._program_stopped
        tracer.later = self._loop.later
        fd = self._signals.fileno()  # which has something at every stop of a thread
        tracer.gives_way = lambda: self._loop.has_other(fd)
        self._main.remote = tracer.remote
        tracer.find_goroutines(self._goids)

    def takes(self, name: str) -> bool:
        """Whether the server wants the syscall *name*, by name or by its class."""
        return name in self._served

    def has_processes(self) -> bool:
        """Whether a process of the program is left that could make a call."""
        return self._listener.is_used()

    def close(self) -> None:
        """Kill the program if it still runs, and give up every descriptor."""
        if self._statistics is not None:
            self._statistics.close()
        if self.trace is not None:
            self.trace.close()
        if self._wait_status is None and not (self._tracer is not None and self._tracer.left_stopped):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            if self.tracees is None:
                os.waitpid(self.pid, 0)
            else:
                self.tracees.wait_for_end()
        if self._tracer is not None:
            self._tracer.close()
        self._listener.close()
        os.close(self._pidfd)
        for process in {self._main, *self._processes.values()}:
            process.close()

    # What subclasses provide.

    def _serve(self, call: PendingCall) -> None:
        """Answer *call*, now or later, by `_answer`, `_proceed` or the listener."""
        raise NotImplementedError

    def _abandon(self, call: PendingCall) -> None:
        """Give up *call*, answered or not: its thread was interrupted and does something else now."""

    def _waits(self, call: PendingCall) -> None:
        """Hear that a thread waits for the answer to *call*, perhaps again: it was interrupted."""

    def _is_seized(self, tid: int) -> bool:
        """Whether the thread makes a call because this host makes it."""
        return False

    def _before_waiting(self) -> None:
        """Do what can wait until there is nothing else to do."""

    def _on_thread(self, tid: int, event: ThreadChange) -> None:
        """Hear that a thread was created, or is about to exit."""

    def _on_trace(self) -> None:
        """Hear that calls are logged from now on."""

    def _on_window_size(self) -> None:
        """Hear that the user's terminal changed its size."""

    # Calls.

    def _on_call(self) -> None:
        notification = self._listener.receive()
        if notification is None:
            if not self.has_processes():
                self._loop.unwatch(self._listener.fileno())
            return
        tid = notification.tid
        earlier = self._pending.get(tid)
        if earlier is not None:
            if earlier.is_repeated_by(notification):
                earlier.notification_id = notification.id
                if earlier.answer is not None:
                    earlier.answer()
                else:
                    self._waits(earlier)
                return
            if self._is_seized(tid):
                self._let_go(notification.id)
                return
            del self._pending[tid]
            self._abandon(earlier)
        process = self._processes.get(tid) or self._find_process(tid)
        if self._quick is not None and process is self._main and self._answer_quickly(notification):
            return
        number = notification.nr
        row = self._seen_rows.get(number)
        if row is None:
            row = self._rows.get(Sysno(number))
            if row is not None:
                self._seen_rows[number] = row
        call = PendingCall(next(self._ids), notification, process, row)
        self._pending[tid] = call
        if row is None:
            self._take_unknown(call)
            return
        if row.name in THREAD_CALLS and row.name not in self._served:
            if row.name == "exit":
                self._thread_ended(tid)
            self._proceed(call)
            return
        try:
            call.gathered = gather(row, call.args, process.view)
        except BadArgumentError as error:
            if not self._gather_again(row, call, error):
                return
        if self._goids is not None:
            call.goid = self._goids.of(tid)
        if self.trace is not None:
            self.trace.taken(call)
        self._serve(call)

    def _answer_quickly(self, notification: Notification) -> bool:
        """Answer a call of the first process if `_quick` can; nothing has happened if not."""
        if self.trace is not None or self._goids is not None or self._main.remote is not None:
            return False
        assert self._quick is not None
        answer = self._quick(notification, self._main.memory)
        if answer is None:
            return False
        value, error = answer
        try:
            self._listener.answer(notification.id, value, error)
        except NotificationGoneError:
            row = self._rows.get(Sysno(notification.nr))
            call = self._pending[notification.tid] = PendingCall(
                next(self._ids), notification, self._main, row
            )
            call.answer = lambda: self._answer(call, value, error, {})  # for the repeated call
        return True

    def _answer(self, call: PendingCall, value: int, error: int, outs: dict[int, bytes]) -> None:
        """Let *call* return: fill its out-buffers (by argument index), then wake its thread."""
        if outs:
            try:
                scatter(call.gathered, outs, call.process.view)
            except BadArgumentError as fault:
                value, error = 0, fault.errno
        try:
            self._listener.answer(call.notification_id, value, error)
        except NotificationGoneError:
            call.answer = lambda: self._answer(call, value, error, outs)  # for the repeated call
            call.result = value, error
            return
        pending = self._pending
        if pending.get(call.tid) is call:
            del pending[call.tid]
        if self.trace is not None:
            self.trace.answered(call, value, error, outs)

    def _proceed(self, call: PendingCall) -> None:
        """Let the thread make *call* itself."""
        self._let_go(call.notification_id)
        self._forget(call)
        if self.trace is not None and call.started_ns:
            self.trace.proceeded(call)

    def _let_go(self, notification_id: int) -> None:
        try:
            self._listener.proceed(notification_id)
        except NotificationGoneError:
            pass  # the thread begins anew

    def _forget(self, call: PendingCall) -> None:
        if self._pending.get(call.tid) is call:
            del self._pending[call.tid]

    def _returned(self, call: PendingCall) -> None:
        """Take notice that *call* has returned, if it is pending, by another way than by `_answer`."""
        if self._pending.get(call.tid) is call:
            del self._pending[call.tid]
            if self.trace is not None and call.result is not None:
                self.trace.answered(call, *call.result, {})

    def _gather_again(self, row: Syscall, call: PendingCall, error: BadArgumentError) -> bool:
        """Read the arguments once more if that can help, else answer with *error*; return whether they are read.

        A fault is the program's, unless it has other memory since an exec, or its id is another process now.
        """
        if error.errno == errno.EFAULT:
            pid = thread_group(call.tid) or self.pid
            if pid != call.process.pid:
                self._processes.pop(call.tid, None)
                call.process = self._find_process(call.tid)
            else:
                with contextlib.suppress(OSError):
                    call.process.reopen()
            try:
                call.gathered = gather(row, call.args, call.process.view)
                return True
            except BadArgumentError as second:
                error = second
        self._answer(call, 0, error.errno, {})
        return False

    def _take_unknown(self, call: PendingCall) -> None:
        """Answer a hypercall, or a call that no table knows."""
        answer = self.stub.answer(call)
        if answer is not None:
            self._answer(call, answer.value, answer.errno, {})

    def _find_process(self, tid: int) -> Process:
        """Return the process of thread *tid*; the main one if that is unknown because the thread just died."""
        pid = thread_group(tid) or self.pid
        process = self._processes.get(pid)
        if process is None:
            try:
                process = self._processes[pid] = Process(pid)
            except OSError:
                process = self._main
        self._processes[tid] = process
        self._thread_changed(process, tid, "created")
        return process

    def _process_ended(self, process: Process) -> None:
        """Forget a process that is gone, and what it waited for."""
        for tid in [tid for tid, other in self._processes.items() if other is process]:
            del self._processes[tid]
        for tid, call in list(self._pending.items()):
            if call.process is process:
                del self._pending[tid]
                self._abandon(call)

    def _thread_ended(self, tid: int) -> None:
        process = self._processes.pop(tid, self._main)
        self._thread_changed(process, tid, "exited")

    def _thread_changed(self, process: Process, tid: int, change: ThreadChange) -> None:
        if self.trace is not None:
            self.trace.thread(process.pid, tid, change)
        self._on_thread(tid, change)

    # Everything else that happens.

    def _on_exit(self) -> None:
        if self._tracer is not None:
            self._take_reports(self._tracer)
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._wait_status = status
            self._loop.unwatch(self._pidfd)

    def _take_reports(self, tracer: "RemoteTracer") -> None:
        """Serve the threads that have stopped, and stop again at once."""
        tracer.take_reports()
        if tracer.exit is not None and self._wait_status is None:
            self._wait_status = tracer.exit.raw_end
            self._loop.unwatch(self._pidfd)

    def _on_signal(self) -> None:
        if self._tracer is not None:
            self._take_reports(self._tracer)  # a thread waits for that, and not for which signals there are
        for signo, from_kernel in self._signals.receive():
            if signo == signal.SIGCHLD and self._tracer is not None:
                self._take_reports(self._tracer)
            elif signo == signal.SIGCHLD:
                self._follow_stop()
            elif signo == signal.SIGWINCH:
                self._on_window_size()
            elif is_passed_on(signo) and not (from_kernel and self._shares_terminal()):
                self._pass_on(signo)

    def _shares_terminal(self) -> bool:
        """Whether the program gets the signals of the user's terminal itself."""
        return True

    def _pass_on(self, signo: int) -> None:
        """Deal with a signal that the user has sent to this process, and that is meant for the program."""
        self._signal_program(signo)

    def _signal_program(self, signo: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signo)

    def _follow_stop(self) -> None:
        """Stop when the program was stopped, so that a shell sees its job stop, and continue it with us."""
        try:
            result = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return
        if result is not None:
            self._program_stopped(result.si_status)

    def _program_stopped(self, signo: int) -> None:
        """Stop as well: signal *signo* has stopped the program."""
        os.kill(os.getpid(), signal.SIGSTOP)
        self._signal_program(signal.SIGCONT)
