"""Lets a Go program make some of its reads and writes itself, though a filter sends all others to a listener.

A filter sees a call's registers and nothing else, so it cannot know which descriptors are this process's own at the
moment. The program says so: a routine at the entry of Go's Syscall6, through which nearly all its calls go, looks
the descriptor of a read or a write up in a table that the stub host keeps, and puts a *pass*, a random number that
the filter knows, into the register of the sixth argument, which those calls do not have.

    entry of Syscall6    jump to the routine                          instead of mov %rsi,%r10; mov %rdi,%rdx
    the routine          the four moves of Syscall6; back to its syscall instruction
                         if it is a read or write of a descriptor in the table, or an lseek of a regular file there:
                         the call with the pass, and behind it
                         if it has epoll watch a regular file: EPERM, as the kernel says, and behind it

    memory               code page | count, table: two bits per descriptor, the second for regular files

*count* says how many threads are between looking into the table and the end of their call. So whoever takes a
descriptor out of the table can wait until no thread uses what it saw there.

Why that is safe: nothing is pushed, so the routine needs no stack; what it changes (r9, rcx, flags) is dead there, or
the call's to change. In the routine a thread is in no Go function, which preempts nothing and moves no stack; a
profile counts a sample as external code. A program that makes up a pass gains nothing: of this machine its process
has only the descriptors that the host has given it.

Who wants the place for itself, as the ring does, takes the routine out (`remove`): then all calls are taken again.

The place is found by its bytes, which are the same in Go 1.19 to 1.27: whatever stands around them, they mean what
the routine does. It is written before the program's first instruction.

Source: internal/runtime/syscall/linux/asm_linux_amd64.s (Go 1.27), runtime/internal/syscall (Go 1.19).
"""

import mmap
import os
import secrets
import struct
import time

from goabi.elf_header import PF_X, PT_LOAD, ElfHeader
from stepping.errors import MemoryFaultError, SteppingError
from stepping.maps import PAGE_BYTES, read_maps
from stepping.remote_syscall import RemoteSyscallError, remote_syscall
from stepping.syscall6 import AFTER_OFFSET, CALL_OFFSET, SIGNATURE
from stepping.tracee import Tracee
from stepping.tracee_memory import TraceeMemory

#: Descriptors from here on are in no table.
TABLE_DESCRIPTORS = 16384

_TABLE_OFFSET = 64
_DATA_BYTES = 2 * PAGE_BYTES
_DISTANCE, _REACH = 64 << 20, 1 << 30
_RW = mmap.PROT_READ | mmap.PROT_WRITE
_RX = mmap.PROT_READ | mmap.PROT_EXEC
_MAP_FIXED_NOREPLACE = 0x100000
_I32 = struct.Struct("<i")
#: Long enough for a thread that a busy machine keeps from its processor, and short of what a peer takes for silence.
_PATIENCE_SECONDS = 10.0
_MOVES = SIGNATURE[:CALL_OFFSET]
_PATCHED_BYTES = 5
_JUMP = b"\xe9"
_FIRST = bytes.fromhex("4883f801")  # cmp $1,%rax: read is 0, write is 1


def make_pass() -> int:
    """Return a pass: 64 random bits."""
    return secrets.randbits(63) | 1 << 63


def find_site(path: str, header: ElfHeader) -> int | None:
    """Return the link-time address in the program *path* where the routine goes; None if there is no such place.

    Raises: OSError, if it cannot be read.
    """
    if header.arch != "amd64":
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as code:
        for segment in header.program_headers:
            if segment.type != PT_LOAD or not segment.flags & PF_X:
                continue
            stop = segment.offset + segment.filesz
            found = code.find(SIGNATURE, segment.offset, stop)
            if found >= 0:
                return found - segment.offset + segment.vaddr
    return None


class DirectTable:
    """The table of a running program, by its *memory*."""

    def __init__(self, memory: TraceeMemory, address: int) -> None:
        self._memory = memory
        self._address = address
        self._bits = bytearray(TABLE_DESCRIPTORS // 4)

    def set(self, fd: int, *, is_file: bool = False) -> None:
        """Let the program read and write *fd* itself, 0 to `TABLE_DESCRIPTORS` - 1.

        is_file: it is a regular file, of which the program may move the offset, and which epoll does not watch.

        Raises: MemoryFaultError.
        """
        self._put(fd, 3 if is_file else 1)

    def clear(self, fd: int) -> None:
        """Let it no more; a thread may still be doing it, see `await_unused`. Raises: MemoryFaultError."""
        self._put(fd, 0)

    def await_unused(self) -> None:
        """Wait until no thread is in a call for which it looked into the table before. Raises: MemoryFaultError.

        Such a thread waits for nothing but a processor; one that is stopped is not waited for longer than
        `_PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while any(self._memory.read(self._address, 4)) and time.monotonic() < deadline:
            os.sched_yield()

    def _put(self, fd: int, bits: int) -> None:
        at, shift = fd >> 2, 2 * (fd & 3)
        self._bits[at] = self._bits[at] & ~(3 << shift) | bits << shift
        self._memory.write(self._address + _TABLE_OFFSET + at, bytes(self._bits[at : at + 1]))


def install(tracee: Tracee, entry: int, given_pass: int) -> int | None:
    """Put the routine into a program that is about to begin; return where its table is, None if it cannot be.

    tracee: its only thread, stopped before its first instruction; entry: where `find_site` is in memory.
    """
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
            memory.write(page, routine(page, page + PAGE_BYTES, entry, given_pass))
            sys.call("mprotect", page, PAGE_BYTES, _RX)
            memory.write(entry, _JUMP + _I32.pack(page - entry - _PATCHED_BYTES))
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
    page = entry + _PATCHED_BYTES + _I32.unpack(jump[1:])[0]
    if memory.read(page, len(_MOVES) + len(_FIRST)) == _MOVES + _FIRST:
        memory.write(entry, SIGNATURE[:_PATCHED_BYTES])


def load_bias(pid: int, header: ElfHeader) -> int:
    """Return what was added to link-time addresses when *pid* began, or is about to: the kernel tells the entry."""
    with open(f"/proc/{pid}/auxv", "rb") as file:
        words = memoryview(file.read()).cast("Q")
    for kind, value in zip(words[::2], words[1::2], strict=False):
        if kind == 9:
            return value - header.entry
    raise SteppingError("the kernel does not say where the program was loaded")


def routine(page: int, data: int, entry: int, given_pass: int) -> bytes:
    """Return the code at *page* for a table at *data* and Syscall6 at *entry*."""
    code = _Code(page, _MOVES)
    count, table = data, data + _TABLE_OFFSET
    code.add(_FIRST)
    code.jump("0f87", "not read or write")  # ja
    code.add("4881ff", _I32.pack(TABLE_DESCRIPTORS))  # cmp $N,%rdi
    code.jump("0f83", "stop")  # jae
    code.add("488d0c3f")  # lea (%rdi,%rdi),%rcx
    code.refer("480fa30d", table)  # bt %rcx,table(%rip)
    code.jump("0f83", "stop")  # jnc
    code.label("make")
    code.refer("f0ff05", count)  # lock incl count(%rip)
    code.refer("480fa30d", table)  # once more: whoever cleared it has not seen us yet
    code.jump("0f83", "undo")  # jnc
    code.add("49b9", struct.pack("<Q", given_pass))  # movabs $pass,%r9
    code.add("0f05")  # syscall
    code.refer("f0ff0d", count)  # lock decl count(%rip)
    code.jump("e9", entry + AFTER_OFFSET)
    code.label("undo")
    code.refer("f0ff0d", count)
    code.label("stop")
    code.jump("e9", entry + CALL_OFFSET)
    code.label("not read or write")
    code.add("4883f808")  # cmp $8,%rax: lseek
    code.jump("0f85", "not lseek")  # jne
    code.add("4881ff", _I32.pack(TABLE_DESCRIPTORS))
    code.jump("0f83", "stop")
    code.add("488d4c3f01")  # lea 1(%rdi,%rdi),%rcx
    code.refer("480fa30d", table)
    code.jump("0f82", "make")  # jc
    code.jump("e9", "stop")
    code.label("not lseek")
    code.add("483de9000000")  # cmp $233,%rax: epoll_ctl
    code.jump("0f85", "stop")
    code.add("4883fe01")  # cmp $1,%rsi: EPOLL_CTL_ADD
    code.jump("0f85", "stop")
    code.add("4881fa", _I32.pack(TABLE_DESCRIPTORS))  # cmp $N,%rdx
    code.jump("0f83", "stop")
    code.add("488d4c1201")  # lea 1(%rdx,%rdx),%rcx
    code.refer("480fa30d", table)
    code.jump("0f83", "stop")
    code.add("48c7c0ffffffff")  # mov $-EPERM,%rax
    code.jump("e9", entry + AFTER_OFFSET)
    return code.finish()


class _Code:
    """Code that is put together at *address*, with jumps to labels and addresses."""

    def __init__(self, address: int, begin: bytes) -> None:
        self._address = address
        self._code = bytearray(begin)
        self._labels: dict[str, int] = {}
        self._distances: list[tuple[int, str]] = []

    def add(self, *parts: bytes | str) -> None:
        """Add instructions, as bytes or in hexadecimal."""
        for part in parts:
            self._code += bytes.fromhex(part) if isinstance(part, str) else part

    def refer(self, opcode: str, target: int) -> None:
        """Add an instruction that ends with the distance to *target*."""
        self.add(opcode)
        self.add(_I32.pack(target - (self._address + len(self._code) + 4)))

    def jump(self, opcode: str, target: int | str) -> None:
        """Add a jump to an address, or to a label."""
        if isinstance(target, int):
            self.refer(opcode, target)
            return
        self.add(opcode, bytes(4))
        self._distances.append((len(self._code), target))

    def label(self, name: str) -> None:
        """Call the place that comes next so."""
        self._labels[name] = len(self._code)

    def finish(self) -> bytes:
        """Return the code."""
        for after, name in self._distances:
            self._code[after - 4 : after] = _I32.pack(self._labels[name] - after)
        return bytes(self._code)
