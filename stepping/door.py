"""A place of this process from which it makes calls for a program: the filter takes those, and lets its own ones be.

An emulator is a process like any other, with libraries to load and memory to ask for, and makes its program's calls
besides. Where those are another machine's, a listener must see them and nothing else. So they are made by one syscall
instruction, on a page at a fixed address, and the filter looks where a call comes from. Births of processes are taken
wherever they come from: the C library makes them, who has to put its own things right around them.

    entry(number, a0, ..., a5)      as syscall(2) of the C library

Only on x86-64. Source: seccomp(2) (instruction_pointer); System V ABI for AMD64.
"""

import ctypes
import mmap
import os
import platform
import struct

from stepping.errors import SteppingError
from stepping.seccomp import Verdict
from stepping.syscalls import SYSCALLS
from stepping.tracee_memory import TraceeMemory

#: Where the page is: far from what the kernel and the C library choose.
_DOOR = 0x10_0000_0000
_BEFORE = bytes.fromhex(
    "4889f8 4889f7 4889d6 4889ca 4d89c2 4d89c8 4c8b4c2408"  # the number into rax, arguments where the kernel has them
)
_SYSCALL = b"\x0f\x05"
_AFTER = (
    bytes.fromhex("483d01f0ffff 7301 c3 f7d8 50")  # back, but with -4095 to -1: the errno pushed,
    + b"\x48\xb8--ERRNO-"  # mov rax, __errno_location
    + bytes.fromhex("ffd0 59 8908 48c7c0ffffffff c3")  # and put there; -1 returned
)
_AFTER_CALL = _DOOR + len(_BEFORE) + len(_SYSCALL)
_LOAD, _AND, _JEQ, _RETURN = 0x20, 0x54, 0x15, 0x06
_NR_AT, _IP_AT, _ARGS_AT = 0, 8, 16
_CLONE_THREAD = 0x10000
#: Where on the page the process may leave a note to those who look into it, and its size.
_NOTE = _DOOR + 1024
NOTE_MAX_BYTES = 2048
_FIXED_NOREPLACE = 0x100000
_FAILED = ctypes.c_void_p(-1).value


def check_has_door() -> None:
    """Raise SteppingError if there is no such place on this machine."""
    if platform.machine() != "x86_64":
        raise SteppingError("emulated programs can have a server at an address on x86-64 machines only")


def install_door() -> int:
    """Make the page; return the address of its function.

    Raises:
        SteppingError: the place is taken.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED_NOREPLACE
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    if libc.mmap(_DOOR, mmap.PAGESIZE, protection, flags, -1, 0) == _FAILED:
        raise SteppingError(f"no page can be had at {_DOOR:#x}: {os.strerror(ctypes.get_errno())}")
    errno_at = ctypes.cast(libc.__errno_location, ctypes.c_void_p).value or 0
    code = _BEFORE + _SYSCALL + _AFTER.replace(b"--ERRNO-", errno_at.to_bytes(8, "little"))
    ctypes.memmove(_DOOR, code, len(code))
    return _DOOR


def leave_note(note: bytes) -> None:
    """Put *note*, at most NOTE_MAX_BYTES, where `read_note` finds it. The page was made."""
    ctypes.memmove(_NOTE, note, len(note))


def read_note(memory: TraceeMemory) -> bytes:
    """Return the note in the process of *memory*, with zeros behind it.

    Raises:
        MemoryFaultError: it has no such page.
    """
    return memory.read(_NOTE, NOTE_MAX_BYTES)


def at_door(bpf: bytes) -> bytes:
    """Return the filter *bpf*, of `seccomp.assemble`, for calls that are made there, and births of processes."""
    head = (
        (_LOAD, 0, 0, _IP_AT + 4),
        (_JEQ, 0, 2, _AFTER_CALL >> 32),
        (_LOAD, 0, 0, _IP_AT),
        (_JEQ, 6, 0, _AFTER_CALL & 0xFFFFFFFF),
        (_LOAD, 0, 0, _NR_AT),
        (_JEQ, 0, 3, SYSCALLS["clone"].numbers["amd64"]),
        (_LOAD, 0, 0, _ARGS_AT),
        (_AND, 0, 0, _CLONE_THREAD),
        (_JEQ, 1, 0, 0),
        (_RETURN, 0, 0, Verdict.ALLOW.value),
    )
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in head) + bpf
