"""Signals of an emulated program: handlers, masks, frames, default actions.

A signal is pending for one thread, or for the process until some thread does not block it. It is delivered just
before a thread runs again, on a frame as the kernel makes it, so that a handler (Go's sigpanic, Go's preemption)
can change where the thread goes on.

Source: signal(7), sigaction(2), kernel/signal.c.
"""

import signal
import struct
from collections.abc import Callable, Iterable
from typing import Protocol

from stepping.emulation.abi import Abi
from stepping.emulation.address_space import AddressSpace
from stepping.emulation.threads import Scheduler, Thread
from stepping.errors import MemoryFaultError

SIG_DFL, SIG_IGN = 0, 1
SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_RESTART, SA_NODEFER, SA_RESETHAND = (
    0x4,
    0x04000000,
    0x08000000,
    0x10000000,
    0x40000000,
    0x80000000,
)
SI_USER, SI_KERNEL, SI_TKILL = 0, 0x80, -6
SS_ONSTACK, SS_DISABLE = 1, 2

_ACTION = struct.Struct("<QQQQ")  # handler, flags, restorer, mask
_LAST = 64
UNBLOCKABLE = 1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1
_IGNORED_BY_DEFAULT = frozenset({signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT})
_STOPS_BY_DEFAULT = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
#: What a fault raises: a handler that blocks or ignores it does not keep the program from dying.
_FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP})

_DEFAULT = _ACTION.pack(SIG_DFL, 0, 0, 0)


def make_info(number: int, code: int, pid: int = 0, uid: int = 0, address: int = 0) -> bytes:
    """Return a siginfo: *pid* and *uid* of a sender, or the *address* of a fault."""
    if address or (code > 0 and number in _FAULTS):
        return struct.pack("<iiiiQ", number, 0, code, 0, address).ljust(128, b"\0")
    return struct.pack("<iiiiii", number, 0, code, 0, pid, uid).ljust(128, b"\0")


class Outside(Protocol):
    """The kernel's side of the program's signals: those that come from other processes, or that descriptors read."""

    def disposition_changed(self, number: int, handler: int) -> None:
        """Take note of how signal *number* is handled now: `SIG_DFL`, `SIG_IGN`, or other."""

    def mask_changed(self, mask: int) -> None:
        """Take note of the signals that all threads of the program block now."""

    def stop(self, number: int) -> None:
        """Stop the process as signal *number* does, until it is continued."""

    def hold(self, number: int) -> bool:
        """Make signal *number* pending for the process in the kernel; False if that does not hold it back."""

    def pending(self) -> int:
        """Return the signals that are held."""

    def take(self, wanted: int) -> tuple[int, bytes] | None:
        """Take one of the signals *wanted* that are held, and return its number and siginfo."""

    def open_descriptor(self, wanted: int) -> int:
        """Return a descriptor that is readable when one of the signals *wanted* is held."""


class Signals:
    """The signal state that all threads share, and delivery.

    die: called with a signal's number when its default action ends the program. outside: see `Outside`; without it
    no signals come and go.
    """

    def __init__(
        self,
        space: AddressSpace,
        abi: Abi,
        scheduler: Scheduler,
        die: Callable[[int], None],
        sigreturn: int,
    ) -> None:
        self._space = space
        self._abi = abi
        self._scheduler = scheduler
        self._die = die
        self.outside: Outside | None = None
        self._sigreturn = sigreturn
        self._actions: dict[int, bytes] = {}
        self._process_pending: dict[int, bytes] = {}

    def action(self, number: int) -> bytes:
        """Return the struct sigaction of signal *number*, 32 bytes."""
        return self._actions.get(number, _DEFAULT)

    def set_action(self, number: int, action: bytes) -> None:
        """Set the struct sigaction of signal *number*."""
        self._actions[number] = action
        if self.outside is not None:
            self.outside.disposition_changed(number, _ACTION.unpack(action)[0])

    def inherit(self, number: int) -> None:
        """Ignore signal *number*, as whoever started the program did."""
        self._actions[number] = _ACTION.pack(SIG_IGN, 0, 0, 0)

    def ignored(self) -> list[int]:
        """Return the signals that a program inherits as ignored from this one."""
        return [number for number, action in self._actions.items() if _ACTION.unpack(action)[0] == SIG_IGN]

    def forget_pending(self) -> None:
        """Be those of a new process, which has none pending."""
        self._process_pending.clear()

    def send(self, thread: Thread, number: int, info: bytes) -> None:
        """Make signal *number* pending for *thread*."""
        if self._is_ignored(number) and not thread.mask >> number - 1 & 1:
            return
        thread.pending.setdefault(number, info)
        wait = thread.wait
        if wait is not None and wait.signals >> number - 1 & 1:
            assert wait.interrupt is not None
            wait.interrupt()
        elif self._deliverable(thread):
            self._scheduler.interrupt(thread)

    def send_to_process(self, threads: Iterable[Thread], number: int, info: bytes) -> None:
        """Make signal *number* pending for whichever of *threads* does not block it."""
        threads = list(threads)
        for thread in threads:
            if not thread.mask >> number - 1 & 1:
                self.send(thread, number, info)
                return
        for thread in threads:
            if thread.wait is not None and thread.wait.signals >> number - 1 & 1:
                self.send(thread, number, info)
                return
        if self.outside is None or not self.outside.hold(number):
            self._process_pending.setdefault(number, info)

    def has_deliverable(self, thread: Thread) -> bool:
        """Whether `deliver` would do anything."""
        return bool(
            (thread.pending and self._deliverable(thread))
            or (self._process_pending and self._deliverable_of_process(thread))
        )

    def pending_mask(self, thread: Thread) -> int:
        """Return the set of signals that wait for *thread* to unblock them."""
        mask = 0
        for number in (*thread.pending, *self._process_pending):
            mask |= 1 << number - 1
        return mask | (self.outside.pending() if self.outside is not None else 0)

    def take(self, thread: Thread, wanted: int) -> tuple[int, bytes] | None:
        """Take a pending signal of the set *wanted* away without a handler (sigtimedwait)."""
        for pending in (thread.pending, self._process_pending):
            for number in sorted(pending):
                if wanted >> number - 1 & 1:
                    return number, pending.pop(number)
        return self.outside.take(wanted) if self.outside is not None else None

    def deliver(self, thread: Thread) -> None:
        """Let *thread*, which is about to run, first handle what is pending and not blocked."""
        while True:
            number = self._deliverable(thread)
            if number:
                info = thread.pending.pop(number)
            else:
                number = self._deliverable_of_process(thread)
                if not number:
                    break
                info = self._process_pending.pop(number)
            if not self._deliver_one(thread, number, info, 0):
                return
        if thread.interrupted is not None:
            # Nothing handled the signal after all: the call goes on, which is to say it is made again.
            self._restart(thread)
        thread.interrupted = None
        if thread.saved_mask is not None:
            thread.mask, thread.saved_mask = thread.saved_mask, None

    def fault(self, thread: Thread, number: int, code: int, address: int) -> None:
        """Let *thread* handle a fault of its own instruction; the program dies if it cannot."""
        blocked = thread.mask >> number - 1 & 1
        handler = _ACTION.unpack(self.action(number))[0]
        if blocked or handler in (SIG_DFL, SIG_IGN):
            self._die(number)
            return
        self._deliver_one(thread, number, make_info(number, code, address=address), address)

    def return_from_handler(self, thread: Thread) -> None:
        """Carry out rt_sigreturn(2) for *thread*, whose context is saved."""
        try:
            mask = self._abi.frame.pop(thread.context, self._space)
        except MemoryFaultError:
            self._die(signal.SIGSEGV)
            return
        thread.mask = mask & ~UNBLOCKABLE

    def on_altstack(self, thread: Thread, sp: int) -> bool:
        """Whether *sp* lies in the alternate stack of *thread*."""
        address, flags, size = thread.altstack
        return not flags & SS_DISABLE and address < sp <= address + size

    def _is_ignored(self, number: int) -> bool:
        handler = _ACTION.unpack(self.action(number))[0]
        return handler == SIG_IGN or (handler == SIG_DFL and number in _IGNORED_BY_DEFAULT)

    def _deliverable(self, thread: Thread) -> int:
        for number in thread.pending:
            if not thread.mask >> number - 1 & 1 or 1 << number - 1 & UNBLOCKABLE:
                return number
        return 0

    def _deliverable_of_process(self, thread: Thread) -> int:
        for number in self._process_pending:
            if not thread.mask >> number - 1 & 1:
                return number
        return 0

    def _deliver_one(self, thread: Thread, number: int, info: bytes, fault_address: int) -> bool:
        """Act upon one signal; return whether the thread still runs."""
        handler, flags, restorer, blocked = _ACTION.unpack(self.action(number))
        if handler == SIG_IGN or (handler == SIG_DFL and number in _IGNORED_BY_DEFAULT):
            return True
        if handler == SIG_DFL:
            if number in _STOPS_BY_DEFAULT:
                if self.outside is not None:
                    self.outside.stop(number)
                return True
            self._die(number)
            return False
        interrupted, thread.interrupted = thread.interrupted, None
        if interrupted is not None and interrupted.restarts and flags & SA_RESTART:
            self._rewind(thread)
        context = thread.context
        sp = context.sp
        address, stack_flags, size = thread.altstack
        on_stack = self.on_altstack(thread, sp)
        top = sp
        if flags & SA_ONSTACK and not on_stack and not stack_flags & SS_DISABLE:
            top = address + size
        mask = thread.mask if thread.saved_mask is None else thread.saved_mask
        thread.saved_mask = None
        stack = (address, SS_ONSTACK if on_stack else stack_flags, size)
        if not flags & SA_RESTORER or not restorer:
            restorer = self._sigreturn
        try:
            self._abi.frame.push(context, self._space, top, info, mask, stack, restorer, fault_address)
        except MemoryFaultError:
            self._die(signal.SIGSEGV)
            return False
        context.pc = handler
        thread.mask |= blocked | (0 if flags & SA_NODEFER else 1 << number - 1)
        thread.mask &= ~UNBLOCKABLE
        if flags & SA_RESETHAND:
            self.set_action(number, _DEFAULT)
        return True

    def _restart(self, thread: Thread) -> None:
        """Let an interrupted call be made again, if it may."""
        if thread.interrupted is not None and thread.interrupted.restarts:
            self._rewind(thread)

    def _rewind(self, thread: Thread) -> None:
        """Put *thread* back before its syscall, with the registers that it had there."""
        call = thread.call
        if call is not None:
            thread.context.pc -= self._abi.syscall_bytes
            thread.context.set_result(call)
