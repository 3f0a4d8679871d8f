"""Stops a thread where a signal can be delivered as it would be if its call were made here.

A call that waits for a listener's answer is interrupted by a signal. A handler without SA_RESTART then makes it fail
with EINTR, even one that does not wait natively. So the thread is stopped first (seized, just for this); if it stands
in such a call, it is made to begin that anew when the handler has run. A call that may wait is ended first: what it
has done, and nobody knows of here, would be lost if the handler made another call or the program did not repeat it.

Thread rules: one thread, the one that launched the program.
Source: ptrace(2); arch/x86/kernel/signal.c.
"""

import errno
import struct
from collections.abc import Callable

from stepping.fork_call import ERESTARTSYS, next_stop
from stepping.ptrace_api import Option
from stepping.registers import Registers
from stepping.tracee import Tracee
from stepping.wait_status import Event

_PENDING_NONE = (1 << 64) - 1
_MASK = struct.Struct("=Q")
#: Where uc_sigmask is in a handler's frame, from the stack pointer on, on amd64: struct rt_sigframe, struct ucontext.
_MASK_OFFSET = 8 + 296


class SignalStop:
    """One stop of a process with one thread. is_over: whether the thread goes on, or is gone."""

    def __init__(
        self,
        pid: int,
        begins_anew: Callable[[int], bool],
        deliver: Callable[[], None],
        settle: Callable[[int], tuple[int, int] | bool] = lambda number: False,
    ) -> None:
        """Seize the thread.

        begins_anew: whether the interrupted call of that number is to; deliver: called while the thread is stopped.
        settle: ends the call of that number, and returns what it came to (its value and errno); false if nobody is
        making it, true if it is to be asked again, by `advance`, since it has not ended yet.

        Raises:
            PtraceRefusedError: the kernel does not allow it.
            TraceeGoneError: it is dead.
        """
        self.pid = pid
        self.is_over = False
        self._begins_anew = begins_anew
        self._deliver = deliver
        self._settle = settle
        self._is_settling = False
        self._thread = Tracee.seize(pid, pid, Option.SYSGOOD | Option.EXITKILL)
        self._thread.interrupt()

    def advance(self) -> None:
        """Go on if the thread has stopped.

        Raises:
            TraceeGoneError: it is dead.
        """
        thread = self._thread
        status = None if self.is_over else next_stop(thread)
        if status is None and self._is_settling:
            status = thread.status
        if status is None:
            return
        if status.event is Event.STOP and self._is_in_call():
            return
        self._deliver()
        self.is_over = True
        thread.detach()

    def _is_in_call(self) -> bool:
        """Deal with the call that was interrupted, if one was; return whether it is still to be settled."""
        thread = self._thread
        registers = thread.read_registers()
        layout = registers.layout
        if layout.pending is None or registers.result != ERESTARTSYS:
            return False
        number = registers[layout.pending]
        if number == _PENDING_NONE:
            return False
        if self._begins_anew(number):
            registers.pc -= len(layout.syscall_instruction)
            registers[layout.sysno] = number
            registers[layout.pending] = _PENDING_NONE
            thread.write_registers(registers)
            return False
        came_to = self._settle(number)
        self._is_settling = came_to is True
        if self._is_settling:
            return True
        if isinstance(came_to, tuple) and came_to[1] != errno.EINTR:
            value, failure = came_to
            self._return(registers, -failure if failure else value)
            return False
        return False

    def _return(self, registers: Registers, result: int) -> None:
        """Let the call that was interrupted return *result*."""
        layout = registers.layout
        registers[layout.result] = result & _PENDING_NONE
        if layout.pending is not None:
            registers[layout.pending] = _PENDING_NONE
        self._thread.write_registers(registers)
