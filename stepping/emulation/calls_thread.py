"""Syscalls on threads of an emulated program: creation, exit, futex, identity, scheduling.

The program sees one processor, for that is what executes it.

Source: clone(2), futex(2), sched_getaffinity(2), set_tid_address(2), prctl(2).
"""

import errno
import struct
from collections.abc import Callable
from signal import SIGCHLD
from typing import TYPE_CHECKING

from stepping.emulation import futex as futexes
from stepping.emulation.address_space import PROT_READ, PROT_WRITE
from stepping.emulation.clock import CLOCK_MONOTONIC, CLOCK_REALTIME
from stepping.emulation.threads import AWAY, Result, Thread

if TYPE_CHECKING:
    from stepping.emulation.machine import Machine

_CLONE_VM, _CLONE_THREAD, _CLONE_SETTLS = 0x100, 0x10000, 0x80000
_CLONE_PARENT_SETTID, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x100000, 0x200000, 0x1000000
_FUTEX_PRIVATE, _FUTEX_CLOCK_REALTIME = 128, 256
_ARCH_SET_GS, _ARCH_SET_FS, _ARCH_GET_FS, _ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
_PR_SET_NAME, _PR_GET_NAME = 15, 16
#: The parent's death, dumpable or not, a reaper of orphans, no new privileges: to set each and to ask for it.
_PR_OF_THE_PROCESS = frozenset({1, 2, 3, 4, 36, 37, 38, 39})
_SECOND = 1_000_000_000
_TIMESPEC = struct.Struct("<qq")
_U32 = struct.Struct("<I")


class _Threads:
    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self._space = machine.space

    def gettid(self, thread: Thread, _args: list[int]) -> Result:
        return thread.tid

    def getpid(self, _thread: Thread, _args: list[int]) -> Result:
        return self._machine.pid

    def clone(self, thread: Thread, args: list[int]) -> Result:
        flags, stack, parent_tid = args[:3]
        if not flags & _CLONE_THREAD:
            return self._machine.resources.fork(self._machine, thread, args)
        if flags & _CLONE_PARENT_SETTID and not self._space.allows(parent_tid, 4, PROT_WRITE):
            return -errno.EFAULT
        machine, abi = self._machine, self._machine.abi
        thread.context.save()
        child = machine.new_thread()
        child.context.copy_from(thread.context)
        child.context.set_result(0)
        child.mask = thread.mask
        if stack:
            child.context.sp = stack
        if flags & _CLONE_SETTLS:
            child.context.set_tls(args[abi.tls_argument])
        child_tid = args[abi.child_tid_argument]
        if flags & _CLONE_CHILD_CLEARTID:
            child.clear_child_tid = child_tid
        if flags & _CLONE_CHILD_SETTID and self._space.allows(child_tid, 4, PROT_WRITE):
            _U32.pack_into(self._space.view, child_tid, child.tid)
        if flags & _CLONE_PARENT_SETTID:
            _U32.pack_into(self._space.view, parent_tid, child.tid)
        machine.scheduler.ready.append(child)
        return child.tid

    def fork(self, thread: Thread, _args: list[int]) -> Result:
        return self._machine.resources.fork(self._machine, thread, [SIGCHLD, 0, 0, 0, 0, 0])

    vfork = fork

    def exit(self, thread: Thread, args: list[int]) -> Result:
        self._machine.end_thread(thread)
        if not self._machine.threads:
            self._machine.exit((args[0] & 0xFF) << 8)
        return AWAY

    def exit_group(self, _thread: Thread, args: list[int]) -> Result:
        self._machine.exit((args[0] & 0xFF) << 8)
        return AWAY

    def set_tid_address(self, thread: Thread, args: list[int]) -> Result:
        thread.clear_child_tid = args[0]
        return thread.tid

    def set_robust_list(self, thread: Thread, args: list[int]) -> Result:
        thread.robust_list = (args[0], args[1])
        return 0

    def futex(self, thread: Thread, args: list[int]) -> Result:
        address, operation, value, timeout, address2, value3 = args
        operation &= 0xFFFFFFFF
        command = operation & ~(_FUTEX_PRIVATE | _FUTEX_CLOCK_REALTIME)
        waiting = self._machine.futexes
        if command in (futexes.FUTEX_WAIT, futexes.FUTEX_WAIT_BITSET):
            deadline = None
            if timeout:
                if not self._space.allows(timeout, 16, PROT_READ):
                    return -errno.EFAULT
                seconds, rest = _TIMESPEC.unpack_from(self._space.view, timeout)
                if seconds < 0 or not 0 <= rest < _SECOND:
                    return -errno.EINVAL
                deadline = self._deadline(
                    seconds * _SECOND + rest,
                    command == futexes.FUTEX_WAIT_BITSET,
                    bool(operation & _FUTEX_CLOCK_REALTIME),
                )
            bits = value3 & 0xFFFFFFFF if command == futexes.FUTEX_WAIT_BITSET else 0xFFFFFFFF
            return waiting.wait(thread, address, value, deadline, bits)
        count = _signed(value)
        match command:
            case futexes.FUTEX_WAKE:
                return waiting.wake(address, count)
            case futexes.FUTEX_WAKE_BITSET:
                return waiting.wake(address, count, value3 & 0xFFFFFFFF)
            case futexes.FUTEX_REQUEUE:
                return waiting.requeue(address, count, address2, _signed(timeout))
            case futexes.FUTEX_CMP_REQUEUE:
                if not self._space.allows(address, 4, PROT_READ):
                    return -errno.EFAULT
                if _U32.unpack_from(self._space.view, address)[0] != value3 & 0xFFFFFFFF:
                    return -errno.EAGAIN
                return waiting.requeue(address, count, address2, _signed(timeout))
        return -errno.ENOSYS

    def _deadline(self, time: int, absolute: bool, realtime: bool) -> int:
        clock = self._machine.clock
        if absolute:
            shown = clock.read(CLOCK_REALTIME if realtime else CLOCK_MONOTONIC) or 0
            time -= shown
        return clock.now() + max(time, 0)

    def sched_yield(self, thread: Thread, _args: list[int]) -> Result:
        machine = self._machine
        if not machine.scheduler.ready:
            return 0
        thread.context.save()
        thread.result = 0
        first = machine.scheduler.ready.popleft()
        machine.scheduler.ready.append(thread)
        machine.scheduler.ready.appendleft(first)
        return AWAY

    def sched_getaffinity(self, _thread: Thread, args: list[int]) -> Result:
        size, mask = args[1] & 0xFFFFFFFF, args[2]
        if size < 8 or size % 8:
            return -errno.EINVAL
        if not self._space.allows(mask, 8, PROT_WRITE):
            return -errno.EFAULT
        self._space.write(mask, (1).to_bytes(8, "little"))
        return 8

    def arch_prctl(self, thread: Thread, args: list[int]) -> Result:
        code, address = args[0] & 0xFFFFFFFF, args[1]
        if code == _ARCH_SET_FS:
            self._machine.processor.set_tls(address)
            return 0
        if code == _ARCH_GET_FS:
            thread.context.save()
            self._space.write(address, struct.pack("<Q", thread.context.get_tls()))
            return 0
        return -errno.EINVAL

    def prctl(self, thread: Thread, args: list[int]) -> Result:
        option, pointer = args[0] & 0xFFFFFFFF, args[1]
        if option == _PR_SET_NAME:
            thread.name = self._space.read(pointer, 16).partition(b"\0")[0][:15]
            return 0
        if option == _PR_GET_NAME:
            self._space.write(pointer, thread.name.ljust(16, b"\0"))
            return 0
        if option in _PR_OF_THE_PROCESS:
            return self._machine.resources.make_at_once(self._machine, thread, "prctl", args)
        return -errno.EINVAL


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def handlers(machine: "Machine") -> dict[str, Callable[[Thread, list[int]], Result]]:
    """Return what answers each call, by name."""
    threads = _Threads(machine)
    names = (
        "gettid getpid clone exit exit_group set_tid_address set_robust_list futex sched_yield sched_getaffinity "
        "arch_prctl prctl fork vfork"
    )
    table: dict[str, Callable[[Thread, list[int]], Result]] = {
        name: getattr(threads, name) for name in names.split()
    }
    unknown = ("clone3", "rseq", "membarrier", "futex_waitv", "seccomp")
    table |= dict.fromkeys(unknown, lambda _thread, _args: -errno.ENOSYS)
    table["sched_setaffinity"] = lambda _thread, _args: 0
    return table
