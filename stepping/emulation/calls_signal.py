"""Syscalls on signals of an emulated program.

Source: sigaction(2), sigprocmask(2), sigaltstack(2), tgkill(2), signal-safety of kernel/signal.c.
"""

import errno
import os
import select
import struct
from collections.abc import Callable
from signal import SIGKILL, SIGSTOP
from typing import TYPE_CHECKING

from stepping.emulation.address_space import PROT_READ, PROT_WRITE
from stepping.emulation.signals import SI_TKILL, SI_USER, SS_DISABLE, SS_ONSTACK, UNBLOCKABLE, make_info
from stepping.emulation.threads import BLOCKED, RELOAD, Result, Thread, Wait

if TYPE_CHECKING:
    from stepping.emulation.machine import Machine

_BLOCK, _UNBLOCK, _SETMASK = 0, 1, 2
_LAST_SIGNAL = 64
_ALL = (1 << 64) - 1
_MIN_STACK_BYTES = 2048
_STACK = struct.Struct("<QIIQ")
_U64 = struct.Struct("<Q")
_SECOND = 1_000_000_000
_INFO_BYTES = 128


class _Signal:
    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self._space = machine.space
        self._signals = machine.signals

    def rt_sigaction(self, _thread: Thread, args: list[int]) -> Result:
        number, new, old, size = args[0] & 0xFFFFFFFF, *args[1:4]
        if size != 8 or not 1 <= number <= _LAST_SIGNAL or (new and number in (SIGKILL, SIGSTOP)):
            return -errno.EINVAL
        if (new and not self._space.allows(new, 32, PROT_READ)) or (
            old and not self._space.allows(old, 32, PROT_WRITE)
        ):
            return -errno.EFAULT
        previous = self._signals.action(number)
        if new:
            self._signals.set_action(number, self._space.read(new, 32))
        if old:
            self._space.write(old, previous)
        return 0

    def rt_sigprocmask(self, thread: Thread, args: list[int]) -> Result:
        how, new, old, size = args[0] & 0xFFFFFFFF, *args[1:4]
        if size != 8:
            return -errno.EINVAL
        if (new and not self._space.allows(new, 8, PROT_READ)) or (
            old and not self._space.allows(old, 8, PROT_WRITE)
        ):
            return -errno.EFAULT
        previous = thread.mask
        if new:
            (mask,) = _U64.unpack_from(self._space.view, new)
            if how == _BLOCK:
                mask |= previous
            elif how == _UNBLOCK:
                mask = previous & ~mask
            elif how != _SETMASK:
                return -errno.EINVAL
            thread.mask = mask & ~UNBLOCKABLE
            self._machine.masks_changed()
        if old:
            _U64.pack_into(self._space.view, old, previous)
        return 0

    def rt_sigpending(self, thread: Thread, args: list[int]) -> Result:
        if not self._space.allows(args[0], 8, PROT_WRITE):
            return -errno.EFAULT
        _U64.pack_into(self._space.view, args[0], self._signals.pending_mask(thread) & thread.mask)
        return 0

    def rt_sigsuspend(self, thread: Thread, args: list[int]) -> Result:
        if not self._space.allows(args[0], 8, PROT_READ):
            return -errno.EFAULT
        self._machine.wait_with_mask(thread, _U64.unpack_from(self._space.view, args[0])[0])
        return self.pause(thread, args)

    def pause(self, thread: Thread, _args: list[int]) -> Result:
        if self._signals.has_deliverable(thread):
            return -errno.EINTR
        return self._machine.scheduler.block(thread, Wait())

    def rt_sigtimedwait(self, thread: Thread, args: list[int]) -> Result:
        if not self._space.allows(args[0], 8, PROT_READ):
            return -errno.EFAULT
        (wanted,) = _U64.unpack_from(self._space.view, args[0])
        if args[1] and not self._space.allows(args[1], _INFO_BYTES, PROT_WRITE):
            return -errno.EFAULT

        def attempt() -> Result:
            found = self._signals.take(thread, wanted)
            if found is None:
                return BLOCKED
            number, info = found
            if args[1]:
                self._space.write(args[1], info)
            return number

        result = attempt()
        if result is not BLOCKED:
            return result
        scheduler = self._machine.scheduler
        deadline = None
        if args[2]:
            seconds, rest = struct.unpack("<qq", self._space.read(args[2], 16))
            deadline = self._machine.clock.now() + seconds * _SECOND + rest

        def came() -> None:
            number = attempt()
            assert isinstance(number, int)
            scheduler.wake(thread, number)

        wait = Wait(timeout_result=-errno.EAGAIN, signals=wanted, interrupt=came)
        outside = self._signals.outside
        if outside is None:
            return scheduler.block(thread, wait, deadline)
        held = outside.open_descriptor(wanted)
        wait.cancel = lambda: os.close(held)
        return scheduler.watch(thread, [(held, select.POLLIN)], attempt, wait, deadline)

    def rt_sigreturn(self, thread: Thread, _args: list[int]) -> Result:
        thread.context.save()
        before = thread.mask
        self._signals.return_from_handler(thread)
        if thread.mask != before:
            self._machine.masks_changed()
        return RELOAD

    def sigaltstack(self, thread: Thread, args: list[int]) -> Result:
        new, old = args[:2]
        address, flags, size = thread.altstack
        thread.context.save()
        on_stack = self._signals.on_altstack(thread, thread.context.sp)
        if old:
            if not self._space.allows(old, 24, PROT_WRITE):
                return -errno.EFAULT
            shown = SS_ONSTACK if on_stack else flags
            _STACK.pack_into(self._space.view, old, address, shown, 0, size)
        if new:
            if not self._space.allows(new, 24, PROT_READ):
                return -errno.EFAULT
            if on_stack:
                return -errno.EPERM
            address, flags, _, size = _STACK.unpack_from(self._space.view, new)
            if flags & SS_DISABLE:
                address = size = 0
            elif size < _MIN_STACK_BYTES:
                return -errno.ENOMEM
            thread.altstack = (address, flags & SS_DISABLE, size)
        return 0

    def kill(self, thread: Thread, args: list[int]) -> Result:
        pid, number = _signed(args[0]), args[1] & 0xFFFFFFFF
        if pid == self._machine.pid:
            if number > _LAST_SIGNAL:
                return -errno.EINVAL
            if number:
                info = make_info(number, SI_USER, self._machine.pid, os.getuid())
                threads = [thread, *self._machine.threads.values()]
                self._signals.send_to_process(threads, number, info)
            return 0
        return self._machine.resources.make_at_once(self._machine, thread, "kill", args)

    def tkill(self, _thread: Thread, args: list[int]) -> Result:
        return self._to_thread(args[0], args[1])

    def tgkill(self, _thread: Thread, args: list[int]) -> Result:
        if _signed(args[0]) != self._machine.pid:
            return -errno.ESRCH
        return self._to_thread(args[1], args[2])

    def _to_thread(self, tid: int, number: int) -> Result:
        target = self._machine.threads.get(tid & 0xFFFFFFFF)
        number &= 0xFFFFFFFF
        if target is None:
            return -errno.ESRCH
        if number > _LAST_SIGNAL:
            return -errno.EINVAL
        if number:
            info = make_info(number, SI_TKILL, self._machine.pid, os.getuid())
            self._signals.send(target, number, info)
        return 0


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def handlers(machine: "Machine") -> dict[str, Callable[[Thread, list[int]], Result]]:
    """Return what answers each call, by name."""
    calls = _Signal(machine)
    names = (
        "rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigreturn sigaltstack "
        "pause kill tkill tgkill"
    )
    return {name: getattr(calls, name) for name in names.split()}
