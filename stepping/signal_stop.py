"""Stops a thread where a signal can be delivered as it would be if its call were made here.

A call that waits for a listener's answer is interrupted by a signal. A handler without SA_RESTART then makes it fail
with EINTR, even one that does not wait natively. So the thread is stopped first (seized, just for this); if it stands
in such a call, it is made to begin that anew when the handler has run. A call that may wait is ended first: what it
has done, and nobody knows of here, would be lost if the handler made another call or the program did not repeat it.

Some calls have a signal mask for as long as they wait (ppoll, pselect6, epoll_pwait), which the kernel here knows
nothing of. If a handler is to run that this mask lets through, the thread is given the mask, and is followed to its
handler's first instruction, where the mask that the handler returns to is put right:

    stopping -> delivering -> entering -> over

Thread rules: one thread, the one that launched the program.
Source: ptrace(2); arch/x86/kernel/signal.c, arch/arm64/kernel/signal.c; kernel/signal.c (set_user_sigmask).
"""

import contextlib
import errno
import signal
import struct
from collections.abc import Callable

from stepping import ptrace_api
from stepping.errors import MemoryFaultError
from stepping.fork_call import ERESTARTSYS, next_stop
from stepping.ptrace_api import Option
from stepping.registers import Registers
from stepping.signal_sets import read_signal_sets
from stepping.tracee import Resume, Tracee
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import Event, WaitKind

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
        mask_of: Callable[[int], int | None] = lambda number: None,
        settle: Callable[[int], tuple[int, int] | bool] = lambda number: False,
    ) -> None:
        """Seize the thread.

        begins_anew: whether the interrupted call of that number is to; deliver: called while the thread is stopped.
        mask_of: the signal mask that the call of that number has while it waits, None if it has none. settle: ends
        that call, and returns what it came to (its value and errno); false if nobody is making it, true if it is to
        be asked again, by `advance`, since it has not ended yet.

        Raises:
            PtraceRefusedError: the kernel does not allow it.
            TraceeGoneError: it is dead.
        """
        self.pid = pid
        self.is_over = False
        self._begins_anew = begins_anew
        self._deliver = deliver
        self._mask_of = mask_of
        self._settle = settle
        self._is_settling = False
        self._returns_to: int | None = None  # the mask, once the thread has another
        self._is_entering = False
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
        if self._is_entering:
            self._put_right()
            if status.kind is WaitKind.SIGNAL_DELIVERY and status.signo == signal.SIGTRAP:
                thread.drop_signal()
        elif self._returns_to is not None:
            self._is_entering = status.kind is WaitKind.SIGNAL_DELIVERY
            thread.resume(Resume.STEP if self._is_entering else Resume.FREE)
            return
        elif status.event is Event.STOP and self._stands_in_call():
            if not self._is_settling:
                thread.resume()
            return
        else:
            self._deliver_once()
        self.is_over = True
        thread.detach()

    def _deliver_once(self) -> None:
        deliver, self._deliver = self._deliver, lambda: None
        deliver()

    def _stands_in_call(self) -> bool:
        """Deal with the call that was interrupted, if one was; return whether a handler is to be followed."""
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
        mask = self._mask_of(number)
        came_to = self._settle(number)
        self._is_settling = came_to is True
        if self._is_settling:
            return True
        if isinstance(came_to, tuple) and came_to[1] != errno.EINTR:
            value, failure = came_to
            self._return(registers, -failure if failure else value)
            return False
        return mask is not None and self._let_through(mask, registers)

    def _let_through(self, mask: int, registers: Registers) -> bool:
        """Give the thread the call's mask, and let the call fail, if that lets a signal through to its handler."""
        self._deliver_once()
        thread = self._thread
        sets = read_signal_sets(self.pid, thread.tid)
        let_through = sets.pending & sets.blocked & ~mask & ~sets.ignored
        if let_through & ~sets.caught:  # the kernel's action: it ends, or nothing happens
            ptrace_api.setsigmask(thread.tid, mask)
            return False
        if not let_through:
            return False
        self._returns_to = ptrace_api.getsigmask(thread.tid)
        ptrace_api.setsigmask(thread.tid, mask)
        self._return(registers, -errno.EINTR)
        return True

    def _return(self, registers: Registers, result: int) -> None:
        """Let the call that was interrupted return *result*."""
        layout = registers.layout
        registers[layout.result] = result & _PENDING_NONE
        if layout.pending is not None:
            registers[layout.pending] = _PENDING_NONE
        self._thread.write_registers(registers)

    def _put_right(self) -> None:
        """Have the handler, whose frame is there, return to the mask that the thread had before its call."""
        thread = self._thread
        assert self._returns_to is not None
        registers = thread.read_registers()
        memory = TraceeMemory(thread.pid)
        with contextlib.closing(memory), contextlib.suppress(MemoryFaultError):
            memory.write(registers.sp + _MASK_OFFSET, _MASK.pack(self._returns_to))
