"""ptrace(2) as functions of a thread id: the one module that makes ptrace requests and imports python-ptrace.

Each request must come from the OS thread that traces *tid* (see `tracer_thread`), and, `seize`, `interrupt`
and the waits aside, while *tid* is in a ptrace-stop. Whatever the caller got wrong in that respect looks to the
kernel like a dead thread, so every function raises `TraceeGoneError` for ESRCH.

Sizes are in bytes, register sets are in the kernel's own layout (`registers` decodes them).

Source: ptrace(2), waitpid(2), linux/ptrace.h, elf.h (NT_*).
"""

import ctypes
import errno
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable
from enum import IntEnum, IntFlag
from types import ModuleType

from stepping.errors import PtraceRefusedError, SteppingError, TraceeGoneError
from stepping.ptrace_refusal import explain_refusal
from stepping.wait_status import WAIT_ALL

_libc = ctypes.CDLL(None, use_errno=True)

# python-ptrace runs ldconfig to find the C library, which takes longer than all else of attaching to a program. The
# library is in this process already.
if "ptrace.ctypes_libc" not in sys.modules:
    sys.modules["ptrace.ctypes_libc"] = ModuleType("ptrace.ctypes_libc")
    vars(sys.modules["ptrace.ctypes_libc"])["libc"] = ctypes.CDLL(None, use_errno=True)

from ptrace.binding.func import ptrace as _request  # noqa: E402
from ptrace.error import PtraceError  # noqa: E402

_hot_ptrace = _libc.ptrace
_hot_ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
_hot_ptrace.restype = ctypes.c_long


#: Takes numbers of 32 bits, and addresses as `ctypes.c_void_p`, and no time for an error's number: half as long.
_quick_ptrace = ctypes.PyDLL(None).ptrace
_quick_ptrace.restype = ctypes.c_long


def _hot_request(request: int, tid: int, addr: int = 0, data: int = 0) -> int:
    """As `_request`, for those that are made again and again: what python-ptrace does besides takes longer."""
    result: int = _hot_ptrace(request, tid, addr, data)
    if result == -1 and (number := ctypes.get_errno()):
        raise PtraceError(os.strerror(number), errno=number, pid=tid)
    return result


class Option(IntFlag):
    """PTRACE_O_*: which events stop a tracee, and what happens to it when its tracer dies."""

    SYSGOOD = 1 << 0
    FORK = 1 << 1
    VFORK = 1 << 2
    CLONE = 1 << 3
    EXEC = 1 << 4
    VFORK_DONE = 1 << 5
    EXIT = 1 << 6
    SECCOMP = 1 << 7
    EXITKILL = 1 << 20
    SUSPEND_SECCOMP = 1 << 21


class RegisterSet(IntEnum):
    """NT_*: which registers `getregset` and `setregset` carry."""

    GENERAL = 1
    FLOAT = 2
    X86_XSTATE = 0x202
    ARM_SYSTEM_CALL = 0x404


#: What a new tracee's threads and children need so that none is missed.
FOLLOW_THREADS = Option.SYSGOOD | Option.CLONE | Option.EXEC
FOLLOW_ALL = FOLLOW_THREADS | Option.FORK | Option.VFORK

_PEEKDATA, _PEEKUSER, _POKEUSER, _CONT, _SINGLESTEP, _DETACH, _SYSCALL, _SINGLEBLOCK = (
    2,
    3,
    6,
    7,
    9,
    17,
    24,
    33,
)
#: offsetof(struct user, u_debugreg) on amd64.
_DEBUG_REGISTERS_AT = 848
_WORD = (1 << 64) - 1
_SETOPTIONS, _GETEVENTMSG, _GETSIGINFO, _SETSIGINFO = 0x4200, 0x4201, 0x4202, 0x4203
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _LISTEN = 0x4204, 0x4205, 0x4206, 0x4207, 0x4208
_GETSIGMASK, _SETSIGMASK, _GET_SYSCALL_INFO = 0x420A, 0x420B, 0x420E

_SIGINFO_BYTES = 128
_FAULT = struct.Struct("=8xi4xQ")
_SYSCALL_INFO_BYTES = 88
_SIGMASK_BYTES = 8
_BUFFER_BYTES = 512
_GENERAL = int(RegisterSet.GENERAL)
_WALL, _WNOTHREAD = WAIT_ALL, 0x20000000
#: A signal-delivery-stop for SIGTRAP: the end of a step.
STEP_STATUS = signal.SIGTRAP << 8 | 0x7F


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Buffers(threading.local):
    """What requests are answered in, one per tracer thread: making buffers takes longer than many a request."""

    def __init__(self) -> None:
        self.bytes = ctypes.create_string_buffer(_BUFFER_BYTES)
        self.address = ctypes.addressof(self.bytes)
        self.vector = _Iovec(self.address, 0)
        self.vector_address = ctypes.addressof(self.vector)


class StoppedThreads:
    """Requests for what traps again and again, as quick as they get: with one set of buffers, on one OS thread.

    general_bytes: how large a set of general registers is, each of which has 64 bits.
    """

    def __init__(self, general_bytes: int) -> None:
        registers = (ctypes.c_uint64 * (general_bytes // 8))()
        self._general_bytes = general_bytes
        self._raw = memoryview(registers).cast("B")
        self._registers = self._raw.cast("Q")
        self._vector = _Iovec(ctypes.addressof(registers), general_bytes)
        self._vector_address = ctypes.c_void_p(ctypes.addressof(self._vector))
        self._siginfo = ctypes.create_string_buffer(_SIGINFO_BYTES)
        self._siginfo_address = ctypes.c_void_p(ctypes.addressof(self._siginfo))

    def read_fault(self, tid: int) -> tuple[int, int]:
        """Return the code of the signal that *tid* is stopped for, and the address if that is a fault.

        Raises:
            SteppingError: it is not stopped for a signal.
        """
        _quick_request(_GETSIGINFO, tid, 0, self._siginfo_address)
        code, address = _FAULT.unpack_from(self._siginfo)
        return code, address

    def read_general(self, tid: int) -> memoryview:
        """Return the general registers, which are there, and can be changed, until the next call of this.

        Raises:
            SteppingError: the thread runs code of another architecture (32 bits).
        """
        vector = self._vector
        _quick_request(_GETREGSET, tid, _GENERAL, self._vector_address)
        if vector.size != self._general_bytes:
            vector.size = self._general_bytes
            raise SteppingError(f"thread {tid} is in 32-bit code, which is not supported")
        return self._registers

    def general(self, raw: bytes) -> memoryview:
        """As `read_general`, of a thread whose register set is known to be *raw*."""
        self._raw[:] = raw
        return self._registers

    def write_general(self, tid: int) -> None:
        """Have *tid* go on with the registers that have been returned last, and that may have been changed."""
        _quick_request(_SETREGSET, tid, _GENERAL, self._vector_address)


_buffers = _Buffers()


def seize(tid: int, options: Option) -> None:
    """Make *tid* a tracee of this thread, without stopping it.

    Raises:
        PtraceRefusedError: the kernel does not allow it.
        TraceeGoneError: there is no such thread.
    """
    try:
        _request(_SEIZE, tid, 0, int(options))
    except PtraceError as error:
        if error.errno in (errno.EPERM, errno.EIO):
            raise PtraceRefusedError(tid, explain_refusal(tid)) from error
        raise _translate(tid, error) from error


def interrupt(tid: int) -> None:
    """Ask *tid* to stop; it reports an event stop soon, or another stop first. Needs no stop."""
    _simple(_INTERRUPT, tid)


def listen(tid: int) -> None:
    """Let *tid*, in a group-stop, stay stopped as its user wants, but report what happens to it."""
    _simple(_LISTEN, tid)


def cont(tid: int, signo: int = 0) -> None:
    """Resume *tid*, delivering *signo* if it is in a signal-delivery-stop and that is not 0."""
    _quick_request(_CONT, tid, 0, signo)


def syscall(tid: int, signo: int = 0) -> None:
    """As `cont`, up to the next entry to or exit from a syscall."""
    _simple(_SYSCALL, tid, signo)


def singlestep(tid: int, signo: int = 0) -> None:
    """As `cont`, for one instruction."""
    _simple(_SINGLESTEP, tid, signo)


def singleblock(tid: int, signo: int = 0) -> None:
    """As `singlestep`, but up to the next jump that is taken, if the processor has that. Only on amd64."""
    _simple(_SINGLEBLOCK, tid, signo)


def read_debug_register(tid: int, number: int) -> int:
    """Return debug register *number* (0 to 3, 6, 7) of an amd64 thread."""
    return peek_user(tid, _DEBUG_REGISTERS_AT + 8 * number)


def write_debug_register(tid: int, number: int, value: int) -> None:
    """Replace debug register *number* (0 to 3, 6, 7) of an amd64 thread.

    Raises:
        SteppingError: the kernel does not take the value.
    """
    try:
        _hot_request(_POKEUSER, tid, _DEBUG_REGISTERS_AT + 8 * number, value)
    except PtraceError as error:
        raise _translate(tid, error) from error


def detach(tid: int, signo: int = 0) -> None:
    """Stop tracing *tid* and resume it, or leave it stopped if its process is in a group-stop."""
    _simple(_DETACH, tid, signo)


def setoptions(tid: int, options: Option) -> None:
    """Replace the options given to `seize`."""
    _simple(_SETOPTIONS, tid, int(options))


def geteventmsg(tid: int) -> int:
    """Return the number that goes with an event stop: a new thread's id, an exit's raw status..."""
    value = ctypes.c_ulong()
    _with_buffer(_GETEVENTMSG, tid, 0, value)
    return value.value


def getsiginfo(tid: int) -> bytes:
    """Return the siginfo_t of the signal that *tid* is stopped for (128 bytes).

    Raises:
        SteppingError: the stop is a group-stop, which has none.
    """
    buffers = _buffers
    try:
        _hot_request(_GETSIGINFO, tid, 0, buffers.address)
    except PtraceError as error:
        raise _translate(tid, error) from error
    return ctypes.string_at(buffers.address, _SIGINFO_BYTES)


def setsiginfo(tid: int, siginfo: bytes) -> None:
    """Replace the siginfo_t of the signal that *tid* is stopped for."""
    _with_buffer(_SETSIGINFO, tid, 0, ctypes.create_string_buffer(siginfo, _SIGINFO_BYTES))


def getsigmask(tid: int) -> int:
    """Return the set of blocked signals; bit *n* stands for signal *n* + 1."""
    value = ctypes.c_uint64()
    _with_buffer(_GETSIGMASK, tid, _SIGMASK_BYTES, value)
    return value.value


def setsigmask(tid: int, mask: int) -> None:
    """Replace the set of blocked signals."""
    _with_buffer(_SETSIGMASK, tid, _SIGMASK_BYTES, ctypes.c_uint64(mask))


def get_syscall_info(tid: int) -> bytes:
    """Return struct ptrace_syscall_info (88 bytes, unused ones 0) for a syscall or seccomp stop."""
    buffer = ctypes.create_string_buffer(_SYSCALL_INFO_BYTES)
    _with_buffer(_GET_SYSCALL_INFO, tid, _SYSCALL_INFO_BYTES, buffer)
    return buffer.raw


def getregset(tid: int, kind: RegisterSet = RegisterSet.GENERAL, size: int = 512) -> bytes:
    """Return a register set, at most *size* bytes of it."""
    if size > _BUFFER_BYTES:
        buffer = ctypes.create_string_buffer(size)
        own = _Iovec(ctypes.addressof(buffer), size)
        _with_buffer(_GETREGSET, tid, kind, own)
        return ctypes.string_at(buffer, own.size)
    buffers = _buffers
    vector = buffers.vector
    vector.base, vector.size = buffers.address, size
    try:
        _hot_request(_GETREGSET, tid, kind, buffers.vector_address)
    except PtraceError as error:
        raise _translate(tid, error) from error
    return ctypes.string_at(buffers.address, vector.size)


def setregset(tid: int, data: bytes, kind: RegisterSet = RegisterSet.GENERAL) -> None:
    """Replace a register set."""
    if len(data) > _BUFFER_BYTES:
        buffer = ctypes.create_string_buffer(data, len(data))
        _with_buffer(_SETREGSET, tid, kind, _Iovec(ctypes.addressof(buffer), len(data)))
        return
    buffers = _buffers
    buffers.bytes.raw = data
    buffers.vector.base, buffers.vector.size = buffers.address, len(data)
    try:
        _hot_request(_SETREGSET, tid, kind, buffers.vector_address)
    except PtraceError as error:
        raise _translate(tid, error) from error


def wait(tid: int, *, block: bool = True) -> int | None:
    """Wait for *tid* to report; return the raw wait status, or None if it has nothing to report yet.

    Raises:
        TraceeGoneError: it is no tracee or child of this thread.
    """
    return wait_any(tid, block=block)[1]


def wait_any(tid: int = -1, *, block: bool = True) -> tuple[int, int | None]:
    """Wait for any tracee or child of this thread; return its id and raw wait status.

    Without *block*, (0, None) says that none has anything to report. Other threads' children are not seen.

    Raises:
        TraceeGoneError: this thread has neither tracees nor children.
    """
    try:
        who, status = os.waitpid(tid, _WALL | _WNOTHREAD | (0 if block else os.WNOHANG))
    except ChildProcessError as error:
        raise TraceeGoneError(tid) from error
    return (who, status) if who else (0, None)


def step_through(
    tid: int,
    pc: int,
    pc_offset: int,
    may_go_on: Callable[[int], bool],
    count: int,
    wait_for: Callable[[int], int],
) -> tuple[int, int, int]:
    """Let *tid*, at *pc*, execute up to *count* instructions, one by one, while *may_go_on* of where it is then.

    Return how many it has executed, its last raw wait status, and where it is then (-1: its stop is no step's). It
    also ends where the program counter stays what it was. pc_offset: where that is in struct user. wait_for: waits
    for a thread's report, and returns its raw wait status.
    """
    done = 0
    while True:
        _simple(_SINGLESTEP, tid)
        status = wait_for(tid)
        if status != STEP_STATUS:
            return done, status, -1
        done += 1
        before, pc = pc, peek_user(tid, pc_offset)
        if pc == before or done == count or not may_go_on(pc):
            return done, status, pc


def peek_user(tid: int, offset: int) -> int:
    """Return the word at *offset* in struct user, where an amd64 thread's registers are.

    Raises:
        TraceeGoneError: the thread is dead.
    """
    try:
        return _hot_request(_PEEKUSER, tid, offset) & _WORD
    except PtraceError as error:
        raise _translate(tid, error) from error


def peek_data(tid: int, address: int) -> int | None:
    """Return the word in the program's memory at *address*; None if there is none.

    Raises:
        TraceeGoneError: the thread is dead.
    """
    try:
        return _hot_request(_PEEKDATA, tid, address) & _WORD
    except PtraceError as error:
        if error.errno in (errno.EIO, errno.EFAULT):
            return None
        raise _translate(tid, error) from error


def wait_any_interruptibly() -> tuple[int, int] | None:
    """As `wait_any`, but a signal to this thread makes it return None, instead of being waited through."""
    status = ctypes.c_int()
    who = _libc.waitpid(-1, ctypes.byref(status), _WALL | _WNOTHREAD)
    if who > 0:
        return int(who), status.value
    if ctypes.get_errno() == errno.EINTR:
        return None
    raise TraceeGoneError(-1)


def _simple(request: int, tid: int, data: int = 0, addr: int = 0) -> None:
    try:
        _hot_request(request, tid, addr, data)
    except PtraceError as error:
        raise _translate(tid, error) from error


def _with_buffer(
    request: int,
    tid: int,
    addr: int,
    buffer: "ctypes.Structure | ctypes._SimpleCData[int] | ctypes.Array[ctypes.c_char]",
) -> None:
    try:
        _hot_request(request, tid, addr, ctypes.addressof(buffer))
    except PtraceError as error:
        raise _translate(tid, error) from error


def _quick_request(request: int, tid: int, addr: int, data: int | ctypes.c_void_p) -> None:
    if _quick_ptrace(request, tid, addr, data) == -1:  # which the same request is again, and then says why
        _simple(request, tid, (data if isinstance(data, int) else data.value) or 0, addr)


def _translate(tid: int, error: PtraceError) -> SteppingError:
    if error.errno == errno.ESRCH:
        return TraceeGoneError(tid)
    if error.errno == errno.EPERM:
        return PtraceRefusedError(tid, explain_refusal(tid))
    return SteppingError(f"ptrace of thread {tid} failed: {os.strerror(error.errno)}")
