"""The details of a stop, decoded from what the kernel copies out: syscall information and signal information.

    syscall info = op:u8 pad[3] arch:u32 pc:u64 sp:u64 body
    body         = nr:u64 args:u64[6]               op 1, entry
                 | result:s64 is_error:u8           op 2, exit
                 | nr:u64 args:u64[6] data:u32      op 3, seccomp
    siginfo      = signo:s32 errno:s32 code:s32 pad:s32 (pid:u32 uid:u32 status:s32 | address:u64)

Pure functions over bytes that the kernel wrote. Source: linux/ptrace.h, sigaction(2).
"""

import struct
from enum import IntEnum
from typing import NamedTuple

Args = tuple[int, int, int, int, int, int]

_ENTRY = struct.Struct("=B3xIQQ7Q")
_EXIT = struct.Struct("=B3xIQQqB")
_SIGINFO = struct.Struct("=iii4xIIi")
_FAULT = struct.Struct("=16xQ")
#: The kernel's numbers of the ABIs that the syscall table knows (linux/audit.h).
AUDIT_ARCHES = {"amd64": 0xC000003E, "arm64": 0xC00000B7}
_ARCH_NAMES = {number: name for name, number in AUDIT_ARCHES.items()}

#: SEGV_MAPERR, SEGV_ACCERR: the codes of a SIGSEGV for an address that cannot be accessed.
FAULT_CODES = frozenset({1, 2})


class SyscallOp(IntEnum):
    """PTRACE_SYSCALL_INFO_*: where in a call a thread stands. NONE: in none."""

    NONE = 0
    ENTRY = 1
    EXIT = 2
    SECCOMP = 3


class SyscallEntry(NamedTuple):
    """A call about to be made. arch: the table's name of the ABI, or empty for another (32-bit code)."""

    arch: str
    pc: int
    sp: int
    nr: int
    args: Args


class SyscallExit(NamedTuple):
    """A call that returned. value: what the register holds, signed; is_error: whether it is a negated errno."""

    value: int
    is_error: bool


class SignalInfo(NamedTuple):
    """Who sent a signal and why.

    code: SI_*; pid, uid: the sender, if code <= 0 or for SIGCHLD; address: of a fault.
    """

    signo: int
    code: int
    pid: int
    uid: int
    address: int


def decode_syscall_info(raw: bytes) -> SyscallEntry | SyscallExit | None:
    """Return what `ptrace_api.get_syscall_info` gave; None where the thread is in no call."""
    op = raw[0]
    if op == SyscallOp.EXIT:
        *_, value, is_error = _EXIT.unpack_from(raw)
        return SyscallExit(value, bool(is_error))
    if op in (SyscallOp.ENTRY, SyscallOp.SECCOMP):
        _, arch, pc, sp, nr, a0, a1, a2, a3, a4, a5 = _ENTRY.unpack_from(raw)
        return SyscallEntry(_ARCH_NAMES.get(arch, ""), pc, sp, nr, (a0, a1, a2, a3, a4, a5))
    return None


def decode_siginfo(raw: bytes) -> SignalInfo:
    """Return what `ptrace_api.getsiginfo` gave (128 bytes)."""
    signo, _, code, pid, uid, _ = _SIGINFO.unpack_from(raw)
    return SignalInfo(signo, code, pid, uid, _FAULT.unpack_from(raw)[0])
