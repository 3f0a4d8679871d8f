"""Children of an emulated program, and the signals that its process gets from outside.

A process of the program is a process of this machine: fork(2) copies this one, emulator and all, and exec(2) puts the
new program in its place, natively if it can be and on another emulator if it is of another architecture. clone(2)
for a child that borrows its parent's memory (vfork) gives it a copy, which callers cannot rely on not to get.

Handlers of signals are the program's own and emulated; but whether a signal is ignored, kills, or is handled at all
this process's kernel must know, so each change is passed on to it.

Not trusted: the program.
Thread rules: the main thread, as Python allows no other to handle signals.
"""

import ctypes
import errno
import os
import signal
import struct
import threading
from collections.abc import Iterable

from ptserver.emulated.child_numbers import ChildNumbers
from ptserver.emulated.exec_command import emulator_command
from ptserver.machine import native_arch
from ptserver.shadow.execute import execute
from ptserver.shadow.raw_calls import raw_call
from ptserver.shadow.workers import WORKER_SIGNAL
from stepping.emulation.machine import Machine
from stepping.emulation.signals import SIG_DFL, SIG_IGN, make_info
from stepping.emulation.threads import Result, Thread, keep_descriptor
from stepping.syscalls import SYSCALLS
from stepping.syscalls.marshal import Gathered

_CLONE_PIDFD, _CLONE_PARENT_SETTID = 0x1000, 0x100000
_CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID, _CLONE_SETTLS = 0x200000, 0x1000000, 0x80000
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")

#: What a processor raises is emulated, and what nobody can handle needs no handler.
_NEVER_PASSED_ON = frozenset(
    {
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGURG,  # Go sends it to its own threads all the time, and ignores it from elsewhere
    }
)
_PASSED_ON = frozenset(map(int, signal.valid_signals())) - _NEVER_PASSED_ON - {WORKER_SIGNAL}
_CAN_BE_IGNORED = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
#: Python ignores these at its start, whatever they were.
_IGNORED_BY_PYTHON = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
#: Where a siginfo has a child's status.
_STATUS_AT = 24
_libc = ctypes.CDLL(None, use_errno=True)


class SignalRelay:
    """Keeps this process's dispositions of signals and its mask equal to the program's, and passes on what arrives.

    See `stepping.emulation.signals.Outside`. restarts: whether a call of this process's main thread that a signal
    interrupts is to be made again, because it does not wait for anything but an answer (a server's at an address).
    """

    def __init__(self, machine: Machine, *, restarts: bool = False) -> None:
        self._machine = machine
        self._restarts = restarts
        self._before: dict[int, signal._HANDLER] = {}
        if threading.current_thread() is not threading.main_thread():
            self._mask: set[int] | None = None
            return
        self._mask = self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        for thread in machine.threads.values():
            thread.mask = _to_bits(self._mask)
        for number in _PASSED_ON - _IGNORED_BY_PYTHON:
            if signal.getsignal(number) == signal.SIG_IGN:
                machine.signals.inherit(number)
        for number in _IGNORED_BY_PYTHON:
            self._set(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._set(signal.SIGINT, signal.SIG_DFL)
        machine.signals.outside = self

    def close(self) -> None:
        """Put everything back as it was."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)

    def mask_changed(self, mask: int) -> None:
        """See `Outside`."""
        blocked = {number for number in _PASSED_ON if mask >> number - 1 & 1}
        if blocked != self._mask:
            self._mask = blocked
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def stop(self, _number: int) -> None:
        """See `Outside`."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def hold(self, number: int) -> bool:
        """See `Outside`."""
        if self._mask is None or number not in self._mask:
            return False
        os.kill(os.getpid(), number)
        return True

    def pending(self) -> int:
        """See `Outside`."""
        return _to_bits(signal.sigpending())

    def take(self, wanted: int) -> tuple[int, bytes] | None:
        """See `Outside`."""
        held = {number for number in self._mask or () if wanted >> number - 1 & 1}
        if not held:
            return None
        info = signal.sigtimedwait(held, 0)
        if info is None:
            return None
        shown = make_info(info.si_signo, info.si_code, info.si_pid, info.si_uid)
        return info.si_signo, shown[:_STATUS_AT] + _I32.pack(info.si_status) + shown[_STATUS_AT + 4 :]

    def open_descriptor(self, wanted: int) -> int:
        """See `Outside`."""
        fd = _libc.signalfd(-1, struct.pack("<Q", wanted).ljust(128, b"\0"), os.O_CLOEXEC)
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return keep_descriptor(fd)

    def disposition_changed(self, number: int, handler: int) -> None:
        """See `Outside`."""
        if number not in _PASSED_ON:
            return
        if handler == SIG_DFL:
            self._set(number, signal.SIG_DFL)
        elif handler == SIG_IGN:
            self._set(number, signal.SIG_IGN)
        else:
            self._set(number, lambda caught, _frame: self._machine.raise_signal(caught))

    def _set(self, number: int, handler: "signal._HANDLER") -> None:
        before = signal.signal(number, handler)
        self._before.setdefault(number, before)
        if self._restarts and callable(handler):
            signal.siginterrupt(number, False)


def fork(machine: Machine, thread: Thread, args: list[int], numbers: ChildNumbers | None = None) -> Result:
    """Carry out clone(2) of a process for *thread*; return in both processes.

    numbers: what processes are called, if not as the kernel calls them.
    """
    flags, stack, parent_tid = args[:3]
    abi, space = machine.abi, machine.space
    wants_tid = flags & (_CLONE_PARENT_SETTID | _CLONE_PIDFD)
    if wants_tid and not space.allows(parent_tid, 4, 2):
        return -errno.EFAULT
    if machine.observer is not None:
        machine.observer.flush()  # what it has is the parent's
    number = numbers.next() if numbers is not None else 0
    try:
        pid = os.fork()  # with a server at an address, what the parent sees is the id of the child's shadow
    except OSError as error:
        return -(error.errno or errno.EAGAIN)
    child_tid = args[abi.child_tid_argument]
    if pid:
        if flags & _CLONE_PARENT_SETTID:
            _U32.pack_into(space.view, parent_tid, number or pid)
        if flags & _CLONE_PIDFD:
            descriptor, failure, _ = execute(SYSCALLS["pidfd_open"], (pid, 0), {}, {})
            _I32.pack_into(space.view, parent_tid, -1 if failure else descriptor)
        if numbers is not None:
            numbers.add(number, pid)
        return number or pid
    own = own_pid()
    if numbers is not None:
        numbers.become(number, own)
    machine.become_child(thread, number or own)
    if flags & _CLONE_CHILD_SETTID and space.allows(child_tid, 4, 2):
        _U32.pack_into(space.view, child_tid, machine.pid)
    if flags & _CLONE_CHILD_CLEARTID:
        thread.clear_child_tid = child_tid
    return machine.continue_with(
        thread, 0, sp=stack or None, tls=args[abi.tls_argument] if flags & _CLONE_SETTLS else None
    )


def own_pid() -> int:
    """Return this process's id, as whoever makes the program's calls knows it."""
    return execute(SYSCALLS["getpid"], (), {}, {})[0]


def exec_away(call: Gathered) -> int:
    """Carry out execve(2) where the program's resources are; return a negative errno if it fails."""
    path = call.ins.get(0)
    if path is None:
        return -errno.EFAULT
    both = (_strings(call.ins.get(1, b"")), _strings(call.ins.get(2, b"")))
    tables = [(ctypes.c_char_p * (len(strings) + 1))(*strings) for strings in both]
    number = SYSCALLS["execve"].numbers[native_arch()]
    return raw_call(number, path, *map(ctypes.addressof, tables))


def exec_program(machine: Machine, thread: Thread, call: Gathered) -> int:
    """Carry out execve(2) for *thread*; return a negative errno if it fails, and not at all otherwise."""
    path = call.ins.get(0)
    if path is None:
        return -errno.EFAULT
    argv = _strings(call.ins.get(1, b""))
    env = dict(entry.partition(b"=")[::2] for entry in _strings(call.ins.get(2, b"")))
    program, arguments = emulator_command(path, argv) or (path, argv)
    if machine.observer is not None:
        machine.observer.flush()
    blocked = {number for number in signal.valid_signals() if thread.mask >> number - 1 & 1}
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    ignored = [number for number in machine.signals.ignored() if number in _CAN_BE_IGNORED]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        os.execve(program, arguments or [b""], env)
    except OSError as error:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return -(error.errno or errno.ENOEXEC)


def _to_bits(numbers: Iterable[int]) -> int:
    return sum(1 << number - 1 for number in numbers)


def _strings(joined: bytes) -> list[bytes]:
    return joined.split(b"\0") if joined else []
