"""Serves the threads of a traced program that touch remote variables, on the host's thread and in its loop.

All of the program's threads are traced, so that the SIGSEGV of an inaccessible page is a stop here and not a signal
there. Nothing else of ptrace is asked for: no syscall stops, so the program runs natively between two accesses; every
other stop is just resumed, with its signal.

A fault while SIGSEGV is blocked costs the program its handler: the kernel resets what it must force. Go blocks all
signals in its signal handlers and while it creates threads. It happens only where a variable was not moved, and Go's
runtime touches a neighbour of it there; then the handler and the mask are put back.

Source: ptrace(2); kernel/signal.c (force_sig_info_to_task).
"""

import contextlib
import os
import signal
from collections.abc import Callable

from ptserver.code_place import place_in
from ptserver.errors import UnsupportedInstructionError
from ptserver.inspection.goids import GoroutineIds
from ptserver.inspection.process_memory import read_entry
from ptserver.net.poll_loop import Awake
from ptserver.remote_memory.stores import StoreLostError, VariableStore
from ptserver.remote_memory.variables import Plan
from stepping import ptrace_api
from stepping.errors import MemoryFaultError, SteppingError, TraceeGoneError
from stepping.remote_access import RemoteAccess, UnsupportedAccessError
from stepping.remote_calls import RemoteCalls
from stepping.remote_memory import RemoteMap, SplitAtomicError
from stepping.remote_quick import QuickAccess
from stepping.remote_setup import prepare
from stepping.remote_syscall import can_call, remote_syscall
from stepping.tracee import Tracee
from stepping.tracee_group import TraceeGroup
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import Event, WaitKind, WaitStatus

_SEGV_STATUS = signal.SIGSEGV << 8 | 0x7F  # a signal-delivery-stop
#: Stops for signals that nobody here makes, or asks about.
_PASSED_ON = frozenset(
    signo << 8 | 0x7F for signo in set(signal.Signals) - {signal.SIGSEGV, signal.SIGTRAP, signal.SIGBUS}
)
_SEGV_BIT = 1 << (signal.SIGSEGV - 1)
_SIGACTION_BYTES = 32
#: So many accesses one after another, before the host looks after all else.
_MOST_AT_ONCE = 64
_STOP_SECONDS = 2.0
#: After which time a thread that waits on a remote futex looks again.
_FUTEX_SECONDS = 0.001


class RemoteTracer:
    """Serves *tracees*, the one thread of a program that has run nothing yet, from *store*.

    exit: how the program ended; left_stopped: whether it was given up, stopped.
    on_group_stop: is called with the signal that has stopped the program; later: calls a function after so many
    seconds; gives_way: whether the host has something else to do than to wait for what the program does next.

    Raises:
        PtServerError, SteppingError: the variables cannot be made remote.
    """

    def __init__(
        self,
        tracees: TraceeGroup,
        plan: Plan,
        store: VariableStore,
    ) -> None:
        leader = tracees.leader
        assert leader is not None
        self.pid = tracees.pid
        self.exit: WaitStatus | None = None
        self._group = tracees
        self._store = store
        self.later: Callable[[float, Callable[[], None]], None] = lambda seconds, handler: handler()
        self.gives_way: Callable[[], bool] = lambda: True
        self._awake = Awake()
        self.on_group_stop: Callable[[int], None] = lambda signo: None
        self._goids: GoroutineIds | None = None
        self._memory = TraceeMemory(self.pid)
        self._has_neighbours = bool(plan.in_place)
        self._action: bytes | None = None
        self.left_stopped = False
        self._bias = read_entry(self.pid) - plan.entry
        plan = plan.biased(self._bias)
        prepared = prepare(leader, self._memory, plan.moved, plan.in_place, plan.entry)
        self.remote = RemoteMap(prepared.variables, self._memory, store)
        for variable in prepared.variables:
            store.declare(variable.name, self._memory.read(variable.address, variable.size))
        self._scratch = prepared.scratch
        self._calls = RemoteCalls(self.remote, prepared.buffers)
        self._access: RemoteAccess | None = RemoteAccess(self.pid, self.remote, prepared.scratch)
        #: Where neighbours are served, the program's handler has to be looked after at each access.
        self._quick = QuickAccess(self.remote, self._access.look_up) if not plan.in_place else None
        self._asker = (0, 0)
        self._report = (0, 0)

    def find_goroutines(self, goids: GoroutineIds | None) -> None:
        """Tell store and trace which goroutine makes an access, by *goids*."""
        self._goids = goids

    def start(self) -> None:
        """Let the program run its first instruction."""
        self._group.resume_all()

    def take_reports(self) -> None:
        """Deal with all threads that have stopped, and with those that do so soon.

        Raises:
            UnsupportedInstructionError: the program is left stopped.
            PtServerError: whatever the store raises; the program is stopped, and still traced.
        """
        served = 0
        while self.exit is None and served < _MOST_AT_ONCE:
            try:
                if not self._look() and not (served and self._stay_awake()):
                    break
                tid, raw = self._report
                if raw in _PASSED_ON and self._pass_on(tid, raw):
                    continue
                with contextlib.suppress(TraceeGoneError):
                    served += self.take_quickly(tid, raw) or self._take(*self._group.note(tid, raw))
            except TraceeGoneError:  # no thread is left
                break
            self.exit = self._group.exit

    def _stay_awake(self) -> bool:
        """Wait for the next report, which may come at once; return whether there is one."""
        awake, gives_way = self._awake, self.gives_way
        return awake.pays() and not gives_way() and awake.wait(self._look, gives_way)

    def _look(self) -> bool:
        """Have the next report of any thread in `_report`; return whether there is one."""
        tid, raw = ptrace_api.wait_any(block=False)
        if raw is None:
            return False
        self._report = tid, raw
        return True

    def _pass_on(self, tid: int, raw: int) -> bool:
        """Let thread *tid* have the signal that it reports by *raw*; return whether that is done.

        Go interrupts its threads by signals several times in each garbage collection, which waits for them.
        """
        tracee = self._group.tracees.get(tid)
        if tracee is None or tracee.holds_signal:
            return False
        with contextlib.suppress(TraceeGoneError):
            ptrace_api.cont(tid, raw >> 8)
        return True

    def take_quickly(self, tid: int, raw: int) -> bool:
        """Serve a plain access of thread *tid*, which reports *raw*, if it is one; return whether that is done.

        Raises: as `take_reports`.
        """
        tracee = self._group.tracees.get(tid)
        if raw != _SEGV_STATUS or tracee is None or self._quick is None:
            return False
        self._asker = tid, self._goids.of(tid) if self._goids is not None else 0
        try:
            return self._quick.serve(tracee, raw, self._tell)
        except StoreLostError:
            return True  # it waits at this instruction, to the program's end

    def _tell(self, pc: int) -> None:
        """Tell the store who makes the next access, and where."""
        self._store.asked_by(*self._asker, pc - self._bias)

    def close(self) -> None:
        """Give up emulator and memory."""
        if self._access is not None:
            self._access.close()
            self._access = self._quick = None
        self._memory.close()

    def _take(self, tracee: Tracee, status: WaitStatus) -> bool:
        """Serve, or just resume, a thread that reports *status*; return whether it was served."""
        if not status.is_stop:
            self._calls.forget(tracee.tid)
            return False
        served = False
        if status.event is Event.SECCOMP and self._access is not None:
            self._enter_call(tracee)
            return True
        if status.kind is WaitKind.SYSCALL:
            self._calls.leave(tracee)
        if status.kind is WaitKind.GROUP:
            tracee.resume()
            if tracee.tid == self.pid:
                self.on_group_stop(status.signo)
            return False
        if status.event is Event.EXEC and self._access is not None:
            self._access.close()  # another program, which has no remote variables
            self._access = self._quick = None
            self.remote.forget()
        if self._access is not None and self._access.fault_address(tracee) is not None:
            try:
                self._serve(tracee, self._access)
            except StoreLostError:
                return False  # it waits at this instruction, to the program's end
            served = True
        tracee.resume()
        return served

    def _enter_call(self, tracee: Tracee) -> None:
        """Carry over a call with a remote buffer; a thread that waits on a remote futex looks again in a moment."""
        self._asker = tracee.tid, self._goids.of(tracee.tid) if self._goids is not None else 0
        self._tell(tracee.read_registers().pc)
        with contextlib.suppress(StoreLostError):
            if not self._calls.enter(tracee):
                self.later(_FUTEX_SECONDS, lambda: self._go_on(tracee))

    def _go_on(self, tracee: Tracee) -> None:
        if self._group.tracees.get(tracee.tid) is tracee and tracee.is_stopped:
            with contextlib.suppress(TraceeGoneError):
                tracee.resume()

    def _serve(self, tracee: Tracee, access: RemoteAccess) -> None:
        self._asker = tracee.tid, self._goids.of(tracee.tid) if self._goids is not None else 0
        try:
            access.serve(tracee, tracee.read_registers(), self._tell)
        except (UnsupportedAccessError, SplitAtomicError) as error:
            raise self._leave_stopped(tracee, error) from error
        except MemoryFaultError:
            ptrace_api.getsigmask(
                tracee.tid
            )  # which raises TraceeGoneError if it was killed: then memory goes first
            raise
        if not self._has_neighbours:
            return
        mask = ptrace_api.getsigmask(tracee.tid)
        if mask:
            self._restore_handler(tracee, mask)
        elif self._action is None:
            self._remember_handler(tracee)

    # The program's own handler of SIGSEGV.

    def _remember_handler(self, tracee: Tracee) -> None:
        """Learn what the program does with SIGSEGV, once it has a handler."""
        if _catches_segv(tracee.tid) and can_call(tracee):
            buffer = self._scratch + 4096
            with remote_syscall(tracee) as sys:
                sys.call("rt_sigaction", signal.SIGSEGV, 0, buffer, 8)
            self._action = self._memory.read(buffer, _SIGACTION_BYTES)

    def _restore_handler(self, tracee: Tracee, mask: int) -> None:
        """Put back handler and mask if the fault has cost the program its handler."""
        if self._action is None or mask & _SEGV_BIT or _catches_segv(tracee.tid) or not can_call(tracee):
            return
        buffer = self._scratch + 4096
        self._memory.write(buffer, self._action)
        with remote_syscall(tracee) as sys:
            sys.call("rt_sigaction", signal.SIGSEGV, buffer, 0, 8)
        ptrace_api.setsigmask(tracee.tid, mask | _SEGV_BIT)

    # The end of what can be done.

    def _leave_stopped(self, tracee: Tracee, error: SteppingError) -> UnsupportedInstructionError:
        """Leave the program untraced and stopped as by SIGSTOP; return the error that says so."""
        registers = tracee.read_registers()
        where = place_in(f"/proc/{self.pid}/exe", registers.pc - self._bias)
        tracee.drop_signal()
        with contextlib.suppress(SteppingError):
            self._group.stop_all(_STOP_SECONDS)
            os.kill(self.pid, signal.SIGSTOP)
            self._group.detach_all()
            self.left_stopped = True
        return UnsupportedInstructionError(
            self.pid,
            f"{error}{where}; process {self.pid} is left stopped before it: inspect it (`ptserver goroutines "
            f"{self.pid}`), then kill it",
        )


def _catches_segv(tid: int) -> bool:
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line[7:], 16) & _SEGV_BIT)
    return False
