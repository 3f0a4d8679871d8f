"""The processes of a program whose resources are a server's: their ids, births, signals, and ends.

Each process of the program here has its shadow at the server, and the program knows its processes by the shadows'
ids. What it asks about them goes to the shadows. What stays here:

    fork        the server makes a shadow first; then the thread makes its copy (`stepping.fork_call`)
    exec        the shadow becomes the new program; the process here is killed, its status is the server's business
    exit        the server is told, and the shadow ends in the same way
    own id      known here: nobody is asked
    signals     to the own process or its threads are sent here; those that reach a shadow come from the server

A process that stops here by a signal stops its shadow (`ProcessStopped`).

Not trusted: the server; it names processes by ids, and reaches those of this program alone.
Thread rules: the host's thread.
"""

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ptserver.hosts.endings import exit_of
from ptserver.hosts.forks import prepare_fork, write_new_ids
from ptserver.hosts.masked_calls import MaskedCalls
from ptserver.hosts.own_files import CONTENT, OPENING, host_content
from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.policy import BY_NUMBER, EXECS, FORKS, OPTIONS_OF_PROCESSES
from ptserver.hosts.process_signals import (
    SI_QUEUE,
    has_default_action,
    is_caught,
    kill_process,
    mask_of,
    queue_signal,
)
from ptserver.hosts.thread_calls import is_of_caller, make_here
from ptserver.machine import native_arch
from ptserver.messages import Cancel, Message, ProcessExited, ProcessStopped, Signal, SignalState
from ptserver.net.poll_loop import PollLoop
from stepping.errors import SteppingError, TraceeGoneError
from stepping.listener import Listener
from stepping.signal_sets import has_one_thread, read_signal_sets
from stepping.syscalls import Syscall, Sysno

if TYPE_CHECKING:
    from stepping.fork_call import ForkCall
    from stepping.sent_as import SentAs
    from stepping.signal_stop import SignalStop

#: Calls before which the server must know how the process treats signals.
_DEPEND_ON_SIGNALS = FORKS | EXECS | {"wait4", "waitid"}

#: Nothing must hold these up.
_AT_ONCE = frozenset({signal.SIGKILL, signal.SIGCONT, signal.SIGPIPE})
#: By which glibc reaches all threads (SIGCANCEL, SIGSETXID); musl has one more.
_OF_LIBRARY = frozenset({32, 33, 34})
_TERMINAL_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_NR_TGKILL = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
_MASK32 = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)


class _Deferred(NamedTuple):
    """A signal that is delivered when these calls have been answered."""

    process: Process
    message: Signal
    quick: set[int]


class _Stop(NamedTuple):
    """A process that is being stopped, and the signals that it is to get then."""

    stop: "SignalStop"
    messages: list[Signal]


class RemoteProcesses:
    """See the module's text. main: the first process. by_pid: every process by its number here, and by its threads'.
    pending: the calls that wait for their answers, by thread. rows: of the table, by number.

    answer, proceed, forget: of the host, for calls; gone: hears of a process's end. send: to the server.
    is_at_server: whether the server is making a call.
    born: to be set to what hears of a new process and of the one that has forked it.
    first_can_stop: whether a terminal's signals stop the first process as they would natively.
    """

    def __init__(
        self,
        main: Process,
        by_pid: dict[int, Process],
        pending: dict[int, PendingCall],
        rows: Mapping[Sysno, Syscall],
        loop: PollLoop,
        listener: Listener,
        answer: Callable[[PendingCall, int, int, dict[int, bytes]], None],
        proceed: Callable[[PendingCall], None],
        forget: Callable[[PendingCall], None],
        gone: Callable[[Process], None],
        send: Callable[[Message], None],
        is_at_server: Callable[[PendingCall], bool],
        *,
        first_can_stop: bool,
    ) -> None:
        self._first_can_stop = first_can_stop
        self.born: Callable[[Process, Process], None] = lambda process, parent: None
        self._main = main
        self._by_pid = by_pid
        self._pending = pending
        self._rows = rows
        self._by_id = {main.id: main}
        self._loop = loop
        self._listener = listener
        self._answer = answer
        self._proceed = proceed
        self._forget = forget
        self._gone = gone
        self._send = send
        self._is_at_server = is_at_server
        self._forks: dict[int, tuple[ForkCall, PendingCall, int]] = {}
        self._unborn: dict[int, int] = {}  # ids of shadows whose process does not exist yet, by call
        self._told: dict[int, SignalState] = {}
        self._stopping: dict[int, int] = {}
        self._deferred: list[_Deferred] = []
        self._stops: dict[int, _Stop] = {}
        self._sent: dict[int, SentAs] = {}
        self._cancelled: set[int] = set()
        self._masked = MaskedCalls(self._settle_call, self._forget)

    @property
    def is_alone(self) -> bool:
        """Whether the first process is the only one, and no other is being made."""
        return len(self._by_id) == 1 and not self._forks and not self._unborn

    # Calls.

    def serve(self, call: PendingCall) -> bool:
        """Answer *call* here if it is one of those that are; else prepare it for the server and return False."""
        row = call.row
        assert row is not None
        process = call.process
        args = call.args
        match row.name:
            case "getpid":
                self._answer(call, process.id, 0, {})
            case "gettid":
                self._answer(call, process.exchanged(call.tid), 0, {})
            case "tgkill":
                self._signal_thread(call, args[0] & _MASK32, args[1] & _MASK32, args[2] & _MASK32)
            case "tkill":
                self._signal_thread(call, process.id, args[0] & _MASK32, args[1] & _MASK32)
            case "kill" if args[0] & _MASK32 == process.id:
                self._signal_own(call, args[1] & _MASK32, lambda: kill_process(process, args[1] & _MASK32))
            case "prctl" if args[0] & _MASK32 not in OPTIONS_OF_PROCESSES or self.is_seized(call.tid):
                self._proceed(call)
            case name if name in BY_NUMBER:
                return self._serve_by_number(call)
            case "unshare" if not has_one_thread(process.pid):  # a thread's own namespace
                self._answer(call, 0, errno.EPERM, {})
            case name:
                if name in FORKS and (refusal := prepare_fork(call)):
                    self._answer(call, 0, refusal, {})
                    return True
                if name in _DEPEND_ON_SIGNALS:
                    self._tell_signals(call)
                elif name in OPENING and (path := call.gathered.ins.get(OPENING[name], b"")).startswith(
                    b"/proc/"
                ):
                    content = host_content(path, process, self._by_id)
                    if content is not None:
                        call.gathered.ins[CONTENT] = content
                return False
        return True

    def _serve_by_number(self, call: PendingCall) -> bool:
        """Answer a call about a process or thread by its number, unless that is at the server."""
        if is_of_caller(call):
            self._proceed(call)
            return True
        executed = make_here(call, self._by_id.values())
        if executed is not None:
            self._answer(call, *executed)
        return executed is not None

    def _tell_signals(self, call: PendingCall) -> None:
        try:
            sets = read_signal_sets(call.process.pid, call.tid)
        except TraceeGoneError:
            return
        process_id = call.process.id
        is_exec = call.row is not None and call.row.name in EXECS
        state = SignalState(process_id, sets.ignored, sets.blocked if is_exec else 0)
        if self._told.get(process_id, SignalState(process_id, 0, 0)) != state:
            self._told[process_id] = state
            self._send(state)

    def _signal_thread(self, call: PendingCall, group: int, thread: int, signo: int) -> None:
        """Answer a signal to a thread of the own process; others have none that this one could know."""
        process = call.process
        if group != process.id:
            self._answer(call, 0, errno.ESRCH, {})
            return
        tid = process.exchanged(thread)
        if thread == process.pid and not os.path.exists(f"/proc/{process.pid}/task/{tid}"):
            tid = thread  # a C library knows the first thread by what the kernel has told it

        def send() -> int:
            if signo in _OF_LIBRARY:
                self._send_as_itself(process, tid, signo)
            failed = _libc.syscall(_NR_TGKILL, process.pid, ctypes.c_int(tid), ctypes.c_int(signo))
            return ctypes.get_errno() if failed else 0

        self._signal_own(call, signo, send)

    def _send_as_itself(self, process: Process, tid: int, signo: int) -> None:
        """Have thread *tid* find that the signal comes from its own process, by the id that this is known by."""
        from stepping.sent_as import SentAs

        if tid in self._masked:
            self._masked.send_as(tid, signo, process.id)
        elif tid not in self._sent and not self.is_seized(tid):
            with contextlib.suppress(SteppingError):
                self._sent[tid] = SentAs(process.pid, tid, signo, process.id)

    def _signal_own(self, call: PendingCall, signo: int, send: Callable[[], int]) -> None:
        """Answer a call by which a process signals itself; it is to have its signal before the call returns.

        send: sends the signal and returns the errno.
        """
        process = call.process
        if signo and has_one_thread(process.pid) and is_caught(process, signo):
            call.answer = lambda: self._answer(
                call, 0, 0, {}
            )  # when the handler has run, and the call begins anew
            self._deliver_stopped(process, Signal(signo, process.id))
        else:
            self._answer(call, 0, send(), {})

    # Births.

    def fork(self, call: PendingCall, shadow: int, outs: dict[int, bytes]) -> None:
        """Let the thread of *call* make its copy of the process that the server has made and calls *shadow*.

        outs: what the server filled: the descriptor of CLONE_PIDFD.
        """
        from stepping.fork_call import ForkCall, clone_arguments

        self._unborn[call.id] = shadow
        is_stopped = call.tid in self._stops  # and will make its call again
        if is_stopped or not self._listener.is_waiting(call.notification_id):
            call.answer = lambda: self.fork(call, shadow, outs)
            return
        row = call.row
        assert row is not None
        arguments = clone_arguments(row.name, call.args, call.gathered.ins, native_arch())
        try:
            write_new_ids(call, arguments, shadow, outs)
            fork = ForkCall(call.process.pid, call.tid, call.ip, arguments, shadow)
        except (SteppingError, OSError):
            self._answer(call, 0, errno.EAGAIN, {})
            self.abandon(call)
            return
        call.answer = lambda: self.fork(call, shadow, outs)
        self._forks[call.id] = fork, call, shadow

    def is_seized(self, tid: int) -> bool:
        """Whether thread *tid* is in a fork, or new and not yet free, or waits in a call of ours."""
        return tid in self._masked or any(tid in fork.tids for fork, _, _ in self._forks.values())

    def advance(self) -> None:
        """Go on with all forks; see which processes have stopped."""
        for call_id, (fork, call, shadow) in list(self._forks.items()):
            fork.advance()
            if fork.child and call.id in self._unborn:
                del self._unborn[call.id]
                self._add(fork.child, shadow, call.process)
            if fork.has_returned:  # its thread may fork again before the new process is free
                self._forget(call)
                self.abandon(call)
            if fork.is_over:
                del self._forks[call_id]
        for tid, sent in list(self._sent.items()):
            try:
                sent.advance()
            except TraceeGoneError:
                del self._sent[tid]
            else:
                if sent.is_over:
                    del self._sent[tid]
        self._advance_stops()
        self._masked.advance()
        for process in self._by_id.values():
            if process is not self._main and not self.is_held(process.pid):
                self._look_for_stop(process)
        self.deliver_deferred()

    def _advance_stops(self) -> None:
        for pid, (stop, _) in list(self._stops.items()):
            try:
                stop.advance()
            except TraceeGoneError:
                del self._stops[pid]
            else:
                if stop.is_over:
                    del self._stops[pid]

    def _add(self, pid: int, shadow: int, parent: Process) -> None:
        process = Process(pid, shadow)
        self.born(process, parent)
        self._by_pid[pid] = self._by_id[shadow] = process
        self._loop.watch(process.pidfd, lambda: self._ended(process))

    def abandon(self, call: PendingCall) -> None:
        """Tell the server that the process it made for *call* does not come, if it does not exist."""
        shadow = self._unborn.pop(call.id, 0)
        if shadow:
            self._send(ProcessExited(shadow, None, signal.SIGKILL))

    # Ends.

    def executed(self, process_id: int) -> None:
        """End the process whose shadow has become another program."""
        process = self._by_id.get(process_id)
        if process is not None:
            process.left = True
            kill_process(process, signal.SIGKILL)

    def first_ended(self) -> None:
        """Take notice that the first process, which is the host's to wait for, is gone."""
        for fork, _, _ in self._forks.values():
            fork.forget(self._main.pid)

    def _ended(self, process: Process) -> None:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if not pid:
            return
        self._loop.unwatch(process.pidfd)
        for fork, _, _ in self._forks.values():
            fork.forget(pid)
        self.advance()
        self._stops.pop(pid, None)
        self._masked.ended(process)
        del self._by_id[process.id]
        self._told.pop(process.id, None)
        self._gone(process)
        if not process.left:
            self._send(ProcessExited(process.id, *exit_of(status)))
        process.close()

    def kill(self) -> None:
        """Kill all processes but the first."""
        for process in self._by_id.values():
            if process is not self._main:
                kill_process(process, signal.SIGKILL)

    # Signals.

    def deliver(self, message: Signal) -> None:
        """Give a signal that has reached a shadow to its process, when no call is made that it must not interrupt.

        A handler without SA_RESTART makes a call fail that waits for its answer, even one that natively never does. A
        process of one thread is therefore stopped first (`stepping.signal_stop`); in another, where handlers do not
        do that, as Go's, a signal waits for the calls that do not wait.
        """
        process = self._by_id.get(message.pid or self._main.id)
        if process is None or process.left:
            return
        if message.signo in _AT_ONCE or has_default_action(process, message.signo):
            self._deliver(process, message)
        elif has_one_thread(process.pid) and not self.is_seized(process.pid):
            self._deliver_stopped(process, message)
        else:
            quick = {c.id for c in self._pending.values() if c.process is process and not _may_wait(c)}
            if quick:
                self._deferred.append(_Deferred(process, message, quick))
            else:
                self._deliver(process, message)

    def wait_with_mask(self, call: PendingCall) -> None:
        """Apply the signal mask that *call*, which waits, has, if it has one."""
        mask = mask_of(call)
        if mask is None or call.answer is not None or self._pending.get(call.tid) is not call:
            return
        if call.tid not in self._stops and not self.is_seized(call.tid):
            self._masked.begin(call, mask)

    def _settle(self, pid: int, number: int) -> tuple[int, int] | bool:
        """Return what the call of that number, in which *pid* waits, has come to; see `SignalStop`."""
        call = self._pending.get(pid)
        if call is None or call.nr != number or call.row is None:
            return False
        return self._settle_call(call)

    def _settle_call(self, call: PendingCall) -> tuple[int, int] | bool:
        if call.result is None:
            if not self._is_at_server(call):
                return False
            if call.id not in self._cancelled:
                self._cancelled.add(call.id)
                self._send(Cancel(call.id))
            return True
        self._cancelled.discard(call.id)
        self._forget(call)
        return call.result

    def _deliver_stopped(self, process: Process, *message: Signal) -> None:
        from stepping.signal_stop import SignalStop

        stop = self._stops.get(process.pid)
        if stop is not None:
            stop.messages.extend(message)
            return
        messages = [*message]

        def deliver() -> None:
            for one in messages:
                self._deliver(process, one)

        try:
            started = SignalStop(
                process.pid,
                self._begins_anew,
                deliver,
                lambda number: self._settle(process.pid, number),
            )
        except SteppingError:
            deliver()
            return
        self._stops[process.pid] = _Stop(started, messages)

    def _begins_anew(self, number: int) -> bool:
        row = self._rows.get(Sysno(number))
        return row is not None and (not row.may_wait or row.name in FORKS)

    def is_held(self, pid: int) -> bool:
        """Whether the first thread of process *pid* is stopped, or to be stopped, by this host."""
        return pid in self._stops or pid in self._sent or self.is_seized(pid)

    def deliver_deferred(self) -> None:
        """Deliver the signals whose calls have been answered."""
        if self._stops:
            self._advance_stops()
        self._masked.advance()
        if not self._deferred:
            return
        pending = {call.id for call in self._pending.values()}
        deferred, self._deferred = self._deferred, []
        for one in deferred:
            if pending & one.quick:
                self._deferred.append(one)
            elif not one.process.left and self._by_id.get(one.process.id) is one.process:
                self._deliver(one.process, one.message)

    def _deliver(self, process: Process, message: Signal) -> None:
        signo = message.signo
        is_stop = signo in _TERMINAL_STOPS and not (self._first_can_stop and process is self._main)
        if is_stop and has_default_action(process, signo):
            # The kernel here would not stop it, far from its terminal and its shell.
            if process is not self._main:
                self._stopping[process.pid] = signo
                kill_process(process, signal.SIGSTOP)
        elif message.code == SI_QUEUE:
            queue_signal(process, message)
        else:
            kill_process(process, signo)

    def _look_for_stop(self, process: Process) -> None:
        try:
            found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return
        if found is not None:
            signo = self._stopping.pop(process.pid, found.si_status)
            self._send(ProcessStopped(process.id, signo))


def _may_wait(call: PendingCall) -> bool:
    """Whether a signal may interrupt *call*: one that natively may wait, or a hypercall, which the stub repeats."""
    return call.row is None or (call.row.may_wait and call.row.name not in FORKS)
