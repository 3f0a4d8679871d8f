"""Lets a Go program make some of its calls itself, though a filter sends all others to a listener.

A filter sees a call's registers and nothing else, so it cannot know which descriptors are this process's own at the
moment. The program says so: a routine at the entry of Go's Syscall6, through which nearly all its calls go, looks
the descriptor of a read or write up in a table that the stub host keeps, and puts a *pass*, a random number that
the filter knows, into the register of the sixth argument, which those calls do not have.

    entry of Syscall6    jump to the routine                          instead of mov %rsi,%r10; mov %rdi,%rdx
    the routine          the four moves of Syscall6; back to its syscall instruction
                         if it is a read or write of a descriptor in the table, or an lseek of a regular file there:
                         the call with the pass, and behind it
                         if it sends such a file, from its offset on, to a descriptor in the table: the same
                         if it has epoll watch a regular file: EPERM, as the kernel says, and behind it
                         if it opens, closes or looks at a file that the host has put there: see `direct_opens`

    memory               parameters, code | count, slots | table: a byte per descriptor | files

The runtime of Go before 1.21 makes epoll_ctl by itself; there is a second jump to the routine from there.

*count* says how many threads are between looking into the table and the end of their call. So whoever takes a
descriptor out of the table can wait until no thread uses what it saw there.

Why that is safe: nothing is pushed, so the routine needs no stack; what it changes (`direct_amd64.s`) is dead there,
or the call's to change. In the routine a thread is in no Go function, which preempts nothing and moves no stack; a
profile counts a sample as external code. A program that makes up a pass gains nothing: of this machine its process
has only the descriptors that the host has given it.

Who wants the place for itself, as the ring does, takes the routine out (`remove`): then all calls are taken again.

The places are found by their bytes, which are the same in Go 1.19 to 1.27: whatever stands around them, they mean
what the routine does. They are written before the program's first instruction.

Source: internal/runtime/syscall/linux/asm_linux_amd64.s (Go 1.27), runtime/internal/syscall (Go 1.19).
"""

import mmap
import os
import secrets
import struct
import time
from typing import NamedTuple

from goabi.elf_header import PF_X, PT_LOAD, ElfHeader
from stepping.direct_code_amd64 import CODE, CONTROL, ENTER
from stepping.errors import MemoryFaultError, SteppingError
from stepping.maps import PAGE_BYTES, read_maps
from stepping.remote_syscall import RemoteSyscallError, remote_syscall
from stepping.syscall6 import (
    AFTER_OFFSET,
    CALL_OFFSET,
    EPOLLCTL,
    EPOLLCTL_CALL_OFFSET,
    EPOLLCTL_NUMBER_OFFSET,
    SIGNATURE,
)
from stepping.tracee import Tracee
from stepping.tracee_memory import TraceeMemory

#: Descriptors from here on are in no table.
TABLE_DESCRIPTORS = 16384

#: A byte of the table: whether reads and writes are made, whether it is a regular file, and from bit 2 on the number
#: of its slot (`direct_opens`) + 1, or 0.
_PASSES, _IS_FILE = 1, 2

_TABLE_OFFSET = 0x1000
_DATA_BYTES = 13 * PAGE_BYTES
_DISTANCE, _REACH = 64 << 20, 1 << 30
_RW = mmap.PROT_READ | mmap.PROT_WRITE
_RX = mmap.PROT_READ | mmap.PROT_EXEC
_MAP_FIXED_NOREPLACE = 0x100000
_I32 = struct.Struct("<i")
#: Long enough for a thread that a busy machine keeps from its processor, and short of what a peer takes for silence.
_PATIENCE_SECONDS = 10.0
_PATCHED_BYTES = 5
_JUMP = b"\xe9"
#: pass; where Syscall6's call is, and what is behind it; the same of epollctl, or zeros.
_PARAMETERS = struct.Struct("<QQQQQ")
_CODE_OFFSET = 0x40
_RECOGNISED_BYTES = 48
_NUMBER = EPOLLCTL[EPOLLCTL_NUMBER_OFFSET : EPOLLCTL_NUMBER_OFFSET + _PATCHED_BYTES]


class Sites(NamedTuple):
    """Where jumps to the routine go: Syscall6, and the runtime's epollctl, 0 if it makes no call itself."""

    syscall6: int
    epollctl: int

    def moved(self, bias: int) -> "Sites":
        """Return where they are if *bias* was added to link-time addresses."""
        return Sites(self.syscall6 + bias, self.epollctl and self.epollctl + bias)


def make_pass() -> int:
    """Return a pass: 64 random bits."""
    return secrets.randbits(63) | 1 << 63


def find_sites(path: str, header: ElfHeader) -> Sites | None:
    """Return the link-time addresses in the program *path* where jumps go; None if there is no such place.

    Raises: OSError, if it cannot be read.
    """
    if header.arch != "amd64":
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as code:
        found = [_find(code, header, what) for what in (SIGNATURE, EPOLLCTL)]
    return Sites(*found) if found[0] else None


def _find(code: mmap.mmap, header: ElfHeader, what: bytes) -> int:
    for segment in header.program_headers:
        if segment.type == PT_LOAD and segment.flags & PF_X:
            at = code.find(what, segment.offset, segment.offset + segment.filesz)
            if at >= 0:
                return at - segment.offset + segment.vaddr
    return 0


class DirectTable:
    """The table of a running program, by its *memory*."""

    def __init__(self, memory: TraceeMemory, address: int) -> None:
        self._memory = memory
        self._address = address
        self._bytes = bytearray(TABLE_DESCRIPTORS)

    def set(self, fd: int, *, is_file: bool = False) -> None:
        """Let the program read and write *fd* itself, 0 to `TABLE_DESCRIPTORS` - 1.

        is_file: it is a regular file, of which the program may move the offset, and which epoll does not watch.

        Raises: MemoryFaultError.
        """
        self._put(fd, _PASSES | _IS_FILE if is_file else _PASSES)

    def clear(self, fd: int) -> None:
        """Let it no more; a thread may still be doing it, see `await_unused`. Raises: MemoryFaultError."""
        self._put(fd, 0)

    def set_slot(self, fd: int, slot: int, *, is_open: bool) -> None:
        """Let *fd* be a file that is open or not, and that the program closes and opens as *slot* says.

        Raises: MemoryFaultError.
        """
        self._put(fd, slot + 1 << 2 | (_PASSES | _IS_FILE if is_open else 0))

    def clear_slot(self, fd: int) -> None:
        """Let *fd* have no slot any more. Raises: MemoryFaultError."""
        self._put(fd, self._bytes[fd] & (_PASSES | _IS_FILE))

    def changed(self, fd: int, *, is_open: bool) -> None:
        """Hear that the program has opened or closed the file at *fd*, which has a slot."""
        self._bytes[fd] = self._bytes[fd] & ~3 | (_PASSES | _IS_FILE if is_open else 0)

    def await_unused(self) -> None:
        """Wait until no thread is in a call for which it looked into the table before. Raises: MemoryFaultError.

        Such a thread waits for nothing but a processor; one that is stopped is not waited for longer than
        `_PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while any(self._memory.read(self._address, 4)) and time.monotonic() < deadline:
            os.sched_yield()

    def _put(self, fd: int, value: int) -> None:
        if self._bytes[fd] != value:
            self._memory.write(self._address + _TABLE_OFFSET + fd, bytes((value,)))
            self._bytes[fd] = value


def install(tracee: Tracee, sites: Sites, given_pass: int) -> int | None:
    """Put the routine into a program that is about to begin; return where its table is, None if it cannot be.

    tracee: its only thread, stopped before its first instruction; sites: of `find_sites`, as they are in memory.
    """
    entry = sites.syscall6
    gap = read_maps(tracee.pid).find_gap(PAGE_BYTES + _DATA_BYTES, entry + _DISTANCE, _REACH - _DISTANCE)
    if gap is None:
        return None
    memory = TraceeMemory(tracee.pid)
    try:
        if memory.read(entry, len(SIGNATURE)) != SIGNATURE:
            return None
        with remote_syscall(tracee, entry + CALL_OFFSET) as sys:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
            page = sys.call("mmap", gap, PAGE_BYTES + _DATA_BYTES, _RW, flags, -1, 0)
            memory.write(page, routine(sites, given_pass))
            sys.call("mprotect", page, PAGE_BYTES, _RX)
            for at, jump in jumps(page, sites):
                memory.write(at, jump)
    except (MemoryFaultError, RemoteSyscallError):
        return None
    finally:
        memory.close()
    return page + PAGE_BYTES


def remove(memory: TraceeMemory, entry: int) -> None:
    """Take the routine out of the way at *entry*, if it is there; all threads are stopped.

    Threads that are in it go on there, and the table is looked into no more.

    Raises: MemoryFaultError.
    """
    jump = memory.read(entry, _PATCHED_BYTES)
    if jump[:1] != _JUMP:
        return
    start = entry + _PATCHED_BYTES + _I32.unpack(jump[1:])[0] - ENTER
    if memory.read(start, _RECOGNISED_BYTES) != CODE[:_RECOGNISED_BYTES]:
        return
    parameters = memory.read(start - _CODE_OFFSET, _PARAMETERS.size)
    control = _PARAMETERS.unpack(parameters)[3]
    if control:
        memory.write(control - len(_NUMBER), _NUMBER)
    memory.write(entry, SIGNATURE[:_PATCHED_BYTES])


def load_bias(pid: int, header: ElfHeader) -> int:
    """Return what was added to link-time addresses when *pid* began, or is about to: the kernel tells the entry."""
    with open(f"/proc/{pid}/auxv", "rb") as file:
        words = memoryview(file.read()).cast("Q")
    for kind, value in zip(words[::2], words[1::2], strict=False):
        if kind == 9:
            return value - header.entry
    raise SteppingError("the kernel does not say where the program was loaded")


def routine(sites: Sites, given_pass: int) -> bytes:
    """Return what is on the routine's page; its data lie on the pages behind it."""
    entry, control = sites.syscall6, sites.epollctl and sites.epollctl + EPOLLCTL_CALL_OFFSET
    parameters = _PARAMETERS.pack(
        given_pass, entry + CALL_OFFSET, entry + AFTER_OFFSET, control, control and control + 2
    )
    return parameters.ljust(_CODE_OFFSET, b"\0") + CODE


def jumps(page: int, sites: Sites) -> list[tuple[int, bytes]]:
    """Return what is to be written where, so that the routine on *page* is come to."""
    places = [(sites.syscall6, ENTER)]
    if sites.epollctl:
        places.append((sites.epollctl + EPOLLCTL_NUMBER_OFFSET, CONTROL))
    return [(at, _JUMP + _I32.pack(page + _CODE_OFFSET + to - at - _PATCHED_BYTES)) for at, to in places]
