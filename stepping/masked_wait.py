"""Lets a thread wait for a listener's answer under the signal mask of its call (ppoll, pselect6, epoll_pwait).

The kernel here knows nothing of a mask that somebody else waits with. So the thread is seized, and made to wait in
its own kernel instead, for no descriptor, without end, with the mask that its call names: what may interrupt it,
which thread of the process a signal goes to, and the mask that a handler returns to are the kernel's affair then.
The thread stays seized until it goes on, by its call's result or by a signal that a handler is for.

    stopping -> waiting -> finishing -> over           the result is known
                        -> settling  -> over           a handler is to run: the call is ended first, for its result

Whatever else comes (a stop of the process, a signal before the wait has begun) ends this, and the call begins anew.

Thread rules: one thread, the one that launched the program. The wait comes to the listener like any call; its user
lets it go on.
Source: ptrace(2), ppoll(2); kernel/signal.c (set_user_sigmask), arch/x86/kernel/signal.c, arch/arm64/kernel/signal.c.
"""

import errno
import signal
from collections.abc import Callable

from stepping.errors import TraceeGoneError
from stepping.fork_call import next_stop
from stepping.ptrace_api import Option
from stepping.registers import Registers
from stepping.sent_as import set_sender
from stepping.signal_sets import read_signal_sets
from stepping.syscalls.marshal import Args
from stepping.syscalls.table import SYSCALLS
from stepping.tracee import Tracee
from stepping.wait_status import Event, WaitKind, WaitStatus

_ALL = (1 << 64) - 1
_ERESTARTSYS, _ERESTARTNOHAND = -512, -514
_SIGSET_BYTES = 8
#: The address of no descriptors; no program has it, so that its call is never taken for the program's own.
_NOBODYS = 1

#: A call's value and errno.
Result = tuple[int, int]


class MaskedWait:
    """One call of one thread. is_over: the thread goes on; has_returned: from its call, which does not begin anew."""

    def __init__(
        self,
        pid: int,
        tid: int,
        number: int,
        ip: int,
        args: Args,
        wait: tuple[str, Args],
        settle: Callable[[], Result | bool],
    ) -> None:
        """Seize thread *tid* of process *pid*, which waits in a call.

        number, args: the call's; ip: the address after its syscall instruction; wait: as of `wait_as`.
        settle: ends the call, and returns what it came to; false if nobody is making it, true if it is to be asked
        again, by `advance`.

        Raises:
            PtraceRefusedError: the kernel does not allow it.
            TraceeGoneError: there is no such thread.
        """
        self.is_over = False
        self.has_returned = False
        self._result: Result | None = None
        self._number, self._ip, self._args, self._wait = number, ip, args, wait
        self._settle = settle
        self._senders: dict[int, int] = {}
        self._saved: Registers | None = None
        self._is_settling = self._goes_on = False
        self._thread = Tracee.seize(tid, pid, Option.SYSGOOD | Option.EXITKILL)
        self._thread.interrupt()

    def finish(self, result: Result) -> None:
        """Have the call return *result*, soon."""
        if self._result is None:
            self._result = result
            if self._saved is not None and not self._goes_on and not self._thread.is_stopped:
                self._thread.interrupt()

    def send_as(self, signo: int, sender: int) -> None:
        """Have the next signal of that number, which must be sent now, be from process *sender*."""
        self._senders[signo] = sender

    def advance(self) -> None:
        """Take the reports that have come, and go on as far as possible without waiting.

        Raises:
            TraceeGoneError: the thread is dead.
        """
        thread = self._thread
        if self._is_settling:
            self._try_to_settle()
        while not self.is_over and not self._is_settling and (status := next_stop(thread)) is not None:
            if not status.is_stop:
                raise TraceeGoneError(thread.tid)
            self._look_at_sender(status)
            if self._goes_on:
                self._let_go()
            elif self._saved is None:
                self._begin(status)
            else:
                self._hear(status)

    def _begin(self, status: WaitStatus) -> None:
        """Wait with the mask, if the thread still waits for the listener."""
        thread = self._thread
        registers = thread.read_registers()
        layout = registers.layout
        instruction = self._ip - len(layout.syscall_instruction)
        is_rewound = layout.pending is None and registers.pc == instruction
        if not is_rewound and not (registers.pc == self._ip and registers.result == _ERESTARTSYS):
            self._let_go()  # it has its answer
            return
        self._saved = registers.copy()
        if status.event is not Event.STOP:
            self._begin_anew()
            return
        name, args = self._wait
        registers.prepare_syscall(instruction, SYSCALLS[name].numbers[layout.arch], args)
        thread.write_registers(registers)
        thread.resume()
        if self._result is not None:
            thread.interrupt()

    def _hear(self, status: WaitStatus) -> None:
        thread = self._thread
        if self._result is not None and status.kind is not WaitKind.GROUP:
            self._return(self._result)
        elif status.kind is WaitKind.SIGNAL_DELIVERY:
            sets = read_signal_sets(thread.pid, thread.tid)
            if not sets.caught >> (status.signo - 1) & 1:
                thread.resume()
            elif self._is_waiting():
                self._try_to_settle()
            else:
                self._begin_anew()
        elif status.event is Event.STOP:  # of an interruption whose reason has gone
            thread.resume()
        else:
            self._begin_anew()

    def _is_waiting(self) -> bool:
        registers = self._thread.read_registers()
        return registers.layout.pending is None or (
            registers.pc == self._ip and registers.result == _ERESTARTNOHAND
        )

    def _try_to_settle(self) -> None:
        """Let the call return what it has come to, and then the handler run."""
        came_to = self._result or self._settle()
        self._is_settling = came_to is True
        if not self._is_settling:
            self._return(came_to if isinstance(came_to, tuple) else (0, errno.EINTR))

    def _look_at_sender(self, status: WaitStatus) -> None:
        if status.kind is WaitKind.SIGNAL_DELIVERY and status.signo in self._senders:
            set_sender(self._thread.tid, self._senders.pop(status.signo))

    def _return(self, result: Result) -> None:
        assert self._saved is not None
        value, failure = result
        registers = self._saved
        layout = registers.layout
        registers.pc = self._ip
        registers[layout.result] = (-failure if failure else value) & _ALL
        if layout.pending is not None:
            registers[layout.pending] = _ALL
        self._thread.write_registers(registers)
        self.has_returned = True
        self._let_go()

    def _begin_anew(self) -> None:
        """Have the thread make its own call again, after what has come."""
        assert self._saved is not None
        registers = self._saved
        instruction = self._ip - len(registers.layout.syscall_instruction)
        registers.prepare_syscall(instruction, self._number, self._args)
        self._thread.write_registers(registers)
        self._let_go()

    def _let_go(self) -> None:
        """Let the thread go on; it stays seized while a signal is to come whose sender is to be another."""
        self._goes_on = True
        if self._senders:
            self._thread.resume()
        else:
            self.is_over = True
            self._thread.detach()


def wait_as(name: str, args: Args, mask_argument: int) -> tuple[str, Args]:
    """Return the call, and its arguments, that waits for nothing with the mask of call *name*."""
    if name == "pselect6":  # which has a pointer to the pointer
        return name, (0, _NOBODYS, 0, 0, 0, args[mask_argument])
    return "ppoll", (_NOBODYS, 0, 0, args[mask_argument], _SIGSET_BYTES, 0)


def differs(mask: int, pid: int, tid: int) -> bool:
    """Whether a wait with *mask* is another than with the mask that the thread has. Raises: TraceeGoneError."""
    unmaskable = 1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1)
    return bool((mask ^ read_signal_sets(pid, tid).blocked) & ~unmaskable)
