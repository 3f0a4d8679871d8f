"""Stops a thread where a signal can be delivered without making a call fail that natively never does.

A call that waits for a listener's answer is interrupted by a signal. A handler without SA_RESTART then makes it fail
with EINTR, even one that does not wait natively. So the thread is stopped first (seized, just for this); if it stands
in such a call, it is made to begin that anew when the handler has run.

Thread rules: one thread, the one that launched the program.
Source: ptrace(2); arch/x86/kernel/signal.c.
"""

from collections.abc import Callable

from stepping.fork_call import ERESTARTSYS, next_stop
from stepping.ptrace_api import Option
from stepping.tracee import Tracee
from stepping.wait_status import Event

_PENDING_NONE = (1 << 64) - 1


class SignalStop:
    """One stop of a process with one thread. is_over: whether the thread goes on, or is gone."""

    def __init__(self, pid: int, begins_anew: Callable[[int], bool], deliver: Callable[[], None]) -> None:
        """Seize the thread.

        begins_anew: whether the interrupted call of that number is to; deliver: called while the thread is stopped.

        Raises:
            PtraceRefusedError: the kernel does not allow it.
            TraceeGoneError: it is dead.
        """
        self.pid = pid
        self.is_over = False
        self._begins_anew = begins_anew
        self._deliver = deliver
        self._thread = Tracee.seize(pid, pid, Option.SYSGOOD | Option.EXITKILL)
        self._thread.interrupt()

    def advance(self) -> None:
        """Go on if the thread has stopped.

        Raises:
            TraceeGoneError: it is dead.
        """
        thread = self._thread
        status = None if self.is_over else next_stop(thread)
        if status is None:
            return
        self.is_over = True
        if status.event is Event.STOP:
            registers = thread.read_registers()
            layout = thread.layout
            if layout.pending is not None and registers.result == ERESTARTSYS:
                number = registers[layout.pending]
                if number != _PENDING_NONE and self._begins_anew(number):
                    registers.pc -= len(layout.syscall_instruction)
                    registers[layout.sysno] = number
                    registers[layout.pending] = _PENDING_NONE
                    thread.write_registers(registers)
        self._deliver()
        thread.detach()
