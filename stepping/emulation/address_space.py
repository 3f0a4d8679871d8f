"""The memory of an emulated program.

Where a page of the program lies in this process is fixed: at `AddressSpace.base` plus its address. All of that range
is reserved once, without any memory behind it; the kernel provides a page when it is first touched and takes it
back when the program gives it up. So a reservation of terabytes, as Go makes them, costs nothing, and this
process reaches the program's memory without Unicorn.

The list of mappings (`Vma`) says what the program may touch. It is kept sorted, without overlaps; the processor is
told of those that allow anything.

Not trusted: the program; every address and size is checked.
"""

import ctypes
import errno
import mmap as mmap_module
import os
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple, Protocol

from stepping.emulator import ADDRESS_LIMIT
from stepping.errors import MemoryFaultError, SteppingError

PAGE_BYTES = 4096

#: The lowest address that may be mapped (vm.mmap_min_addr).
LOWEST = 0x10000

#: Mappings without a wish go below this, downwards; the stack is above.
MMAP_TOP = ADDRESS_LIMIT - (1 << 32)

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x2, 0x10, 0x20, 0x4000
_MADV_DONTNEED = 4
_MADV_NOHUGEPAGE = 15
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class AddressSpaceError(SteppingError):
    """There is no room here for a program's address space; the text says why."""


class Translator(Protocol):
    """Whoever executes code in the address space: told what the program may touch. See `emulator.Processor`."""

    def attach(self, host_address: int) -> None:
        """Learn where the address space lies in this process."""

    def allow(self, start: int, size: int, protection: int) -> None:
        """Let code touch *size* bytes at *start*, which it must not touch now."""

    def forbid(self, start: int, size: int) -> None:
        """Do not let code touch them any more."""


class Vma(NamedTuple):
    """One mapping: [start, end), multiples of the page size; protection: PROT_*, or'ed.

    backed: a file is behind it, so giving a page up does not make it zero. hollow: the file ends before it, so there
    is nothing to be touched. limit: the most that `protection` can become.
    """

    start: int
    end: int
    protection: int
    backed: bool = False
    hollow: bool = False
    limit: int = PROT_READ | PROT_WRITE | PROT_EXEC


class ElsewhereMemory(Protocol):
    """Whoever has a part of the program's memory; see `stepping.emulation.elsewhere`."""

    def touches(self, address: int, size: int) -> bool:
        """Whether any of *size* bytes at *address* may be its."""

    def read(self, address: int, size: int) -> bytes:
        """Return *size* bytes that may be read."""

    def write(self, address: int, data: bytes) -> None:
        """Put *data* where that may be written."""


#: Called to map a file: (address in this process, size) -> errno or 0, and `Vma.limit`.
FileMapper = Callable[[int, int], tuple[int, int]]


class AddressSpace:
    """The mappings of one program, and access to what is in them."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        self._starts: list[int] = []
        self._vmas: list[Vma] = []
        self._last = Vma(0, 0, 0)
        #: Whoever has a part of what is read and written.
        self.elsewhere: ElsewhereMemory | None = None
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
        base = _mmap(None, ADDRESS_LIMIT, PROT_READ | PROT_WRITE, flags, -1, 0)
        if base == _FAILED:
            raise AddressSpaceError(
                f"cannot reserve {ADDRESS_LIMIT >> 40} TB of address space for the program: "
                f"{os.strerror(ctypes.get_errno())}; vm.overcommit_memory must not be 2, nor ulimit -v set"
            )
        self.base: int = base
        _madvise(base, ADDRESS_LIMIT, _MADV_NOHUGEPAGE)
        translator.attach(base)
        self._bytes = memoryview((ctypes.c_char * ADDRESS_LIMIT).from_address(base)).cast("B")

    def close(self) -> None:
        """Give everything up; nothing may execute in it any more."""
        self._bytes.release()
        _munmap(self.base, ADDRESS_LIMIT)

    # The program's bytes.

    @property
    def view(self) -> memoryview:
        """All memory, by address. Unchecked: ask `allows` first; what is not mapped reads as zeros."""
        return self._bytes

    def allows(self, address: int, size: int, protection: int) -> bool:
        """Whether all of *size* bytes at *address* may be touched in that way."""
        end = address + size
        vma = self._last
        while not (vma.start <= address and end <= vma.end and vma.protection & protection == protection):
            found = self.find(address)
            if found is None or found.protection & protection != protection:
                return False
            if found.hollow:
                if not self.fill(address):
                    return False
                continue
            if end <= found.end:
                self._last = found
                return True
            address = found.end
            vma = found
        return True

    def read(self, address: int, size: int) -> bytes:
        """Return exactly *size* bytes; MemoryFaultError if they are not all there."""
        if not self.allows(address, size, PROT_READ):
            raise MemoryFaultError(address)
        if self.elsewhere is not None and self.elsewhere.touches(address, size):
            return self.elsewhere.read(address, size)
        return self._bytes[address : address + size].tobytes()

    def read_string(self, address: int, limit: int) -> bytes:
        """Return the bytes before the first NUL; ValueError if it is not within *limit*."""
        found = b""
        while len(found) < limit:
            size = min(PAGE_BYTES - address % PAGE_BYTES, limit - len(found))
            piece = self.read(address, size)
            before, end, _ = piece.partition(b"\0")
            found += before
            if end:
                return found
            address += size
        raise ValueError("no NUL")

    def write(self, address: int, data: bytes) -> None:
        """Put *data* there; MemoryFaultError if not all of it fits."""
        size = len(data)
        if not self.allows(address, size, PROT_WRITE):
            raise MemoryFaultError(address)
        if self.elsewhere is not None and self.elsewhere.touches(address, size):
            self.elsewhere.write(address, data)
            return
        self._bytes[address : address + size] = data

    # The mappings.

    def vmas(self) -> list[Vma]:
        """Return the mappings, by address."""
        return list(self._vmas)

    def find(self, address: int) -> Vma | None:
        """Return the mapping that *address* is in."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._vmas[index].end:
            return self._vmas[index]
        return None

    def is_free(self, start: int, size: int) -> bool:
        """Whether nothing is mapped in these *size* bytes, and something could be."""
        if start < LOWEST or start + size > ADDRESS_LIMIT:
            return False
        index = bisect_right(self._starts, start) - 1
        if index >= 0 and start < self._vmas[index].end:
            return False
        return index + 1 >= len(self._vmas) or self._starts[index + 1] >= start + size

    def find_room(self, size: int) -> int | None:
        """Return the highest free address below `MMAP_TOP` where *size* bytes fit; None if nowhere."""
        end = MMAP_TOP
        for index in range(bisect_right(self._starts, MMAP_TOP) - 1, -1, -1):
            vma = self._vmas[index]
            if vma.end + size <= end:
                break
            end = min(end, vma.start)
        start = end - size
        return start if start >= LOWEST else None

    def map(self, start: int, size: int, protection: int, mapper: FileMapper | None = None) -> int:
        """Map *size* bytes at *start*, instead of what was there: zeros, or what *mapper* puts there.

        Returns:
            0, or an errno; nothing is mapped there then.
        """
        self.unmap(start, size)
        if mapper is None:
            self._insert(Vma(start, start + size, protection))
            return 0
        number, limit = mapper(self.base + start, size)
        if number or protection & ~limit:
            self._make_anonymous(start, size)
            return number or errno.EACCES
        self._insert_backed(Vma(start, start + size, protection, True, False, limit))
        return 0

    def unmap(self, start: int, size: int) -> None:
        """Unmap whatever is mapped in the range."""
        for vma in self._carve(start, start + size):
            if vma.backed:
                self._make_anonymous(vma.start, vma.end - vma.start)
            elif vma.protection:
                _madvise(self.base + vma.start, vma.end - vma.start, _MADV_DONTNEED)

    def protect(self, start: int, size: int, protection: int) -> int:
        """Change what may be done in the range; return 0, ENOMEM (not all is mapped) or EACCES (a file forbids)."""
        address, end = start, start + size
        while address < end:
            vma = self.find(address)
            if vma is None:
                return errno.ENOMEM
            address = vma.end
        for vma in self._overlapping(start, end):
            if protection & ~vma.limit:
                return errno.EACCES
            if vma.protection != protection:
                first, last = max(vma.start, start), min(vma.end, end)
                self._carve(first, last)
                self._insert(vma._replace(start=first, end=last, protection=protection))
        return 0

    def fill(self, address: int) -> bool:
        """Whether the page at *address*, which lay beyond the end of its file, is there by now."""
        vma = self.find(address)
        if vma is None or not vma.hollow or not _exists(self.base + address):
            return False
        self._carve(vma.start, vma.end)
        self._insert_backed(vma._replace(hollow=False))
        return True

    def files_changed(self) -> None:
        """Take note that files may be shorter than they were."""
        for vma in [vma for vma in self._vmas if vma.backed and not vma.hollow]:
            if not _exists(self.base + vma.end - PAGE_BYTES):
                self._carve(vma.start, vma.end)
                self._insert_backed(vma)

    def discard(self, start: int, size: int) -> None:
        """Make what is mapped in the range as it was when it was mapped (MADV_DONTNEED)."""
        for vma in self._overlapping(start, start + size):
            first, last = max(vma.start, start), min(vma.end, start + size)
            _madvise(self.base + first, last - first, _MADV_DONTNEED)

    def move(self, start: int, old_size: int, target: int, new_size: int) -> None:
        """Move a mapping's content and protection to *target*, which is mapped anew with *new_size* bytes."""
        vma = self.find(start)
        assert vma is not None
        content = min(old_size, new_size)
        self.map(target, new_size, vma.protection)
        self._bytes[target : target + content] = self._bytes[start : start + content]
        self.unmap(start, old_size)

    def _insert(self, vma: Vma) -> None:
        index = bisect_right(self._starts, vma.start)
        self._starts.insert(index, vma.start)
        self._vmas.insert(index, vma)
        if vma.protection and not vma.hollow:
            self._translator.allow(vma.start, vma.end - vma.start, vma.protection)

    def _insert_backed(self, vma: Vma) -> None:
        """Insert a mapping of a file, in two pieces if the file ends in it."""
        end = vma.end
        if not _exists(self.base + end - PAGE_BYTES):
            first, beyond = vma.start, vma.end - PAGE_BYTES  # what exists ends between these
            while first < beyond:
                middle = first + (beyond - first) // PAGE_BYTES // 2 * PAGE_BYTES
                if _exists(self.base + middle):
                    first = middle + PAGE_BYTES
                else:
                    beyond = middle
            end = first
        if vma.start < end:
            self._insert(vma._replace(end=end))
        if end < vma.end:
            self._insert(vma._replace(start=end, hollow=True))

    def _overlapping(self, start: int, end: int) -> list[Vma]:
        first = max(bisect_right(self._starts, start) - 1, 0)
        found = []
        for vma in self._vmas[first:]:
            if vma.start >= end:
                break
            if vma.end > start:
                found.append(vma)
        return found

    def _carve(self, start: int, end: int) -> list[Vma]:
        """Take [start, end) out of the list and the processor; return the pieces taken."""
        self._last = Vma(0, 0, 0)
        taken = []
        for vma in self._overlapping(start, end):
            index = bisect_right(self._starts, vma.start) - 1
            first, last = max(vma.start, start), min(vma.end, end)
            rest = []
            if vma.start < first:
                rest.append(vma._replace(end=first))
            if last < vma.end:
                rest.append(vma._replace(start=last))
            self._vmas[index : index + 1] = rest
            self._starts[index : index + 1] = [part.start for part in rest]
            if vma.protection and not vma.hollow:
                self._translator.forbid(first, last - first)
            taken.append(vma._replace(start=first, end=last))
        return taken

    def _make_anonymous(self, start: int, size: int) -> None:
        flags = _MAP_PRIVATE | _MAP_FIXED | _MAP_ANONYMOUS | _MAP_NORESERVE
        _mmap(self.base + start, size, PROT_READ | PROT_WRITE, flags, -1, 0)


def map_file(address: int, size: int, fd: int, offset: int, shared: bool) -> tuple[int, int]:
    """Put *size* bytes of the file open as *fd*, from *offset* on, at *address* of this process.

    For a `FileMapper`: returns the errno or 0, and what may be done there. A private mapping can be written to
    whatever the file's mode.
    """
    flags = _MAP_FIXED | (mmap_module.MAP_SHARED if shared else _MAP_PRIVATE)
    number = 0
    for protection in (PROT_READ | PROT_WRITE, PROT_READ):
        if _mmap(address, size, protection, flags, fd, offset) != _FAILED:
            return 0, protection | PROT_EXEC
        number = ctypes.get_errno()
        if number != errno.EACCES or not shared:
            break
    return number, 0


def _exists(address: int) -> bool:
    """Whether there is something at *address* of this process, where a file is mapped that may be too short."""
    here = _IoVec(address, 1)
    into = _IoVec(ctypes.addressof(_probed), 1)
    read: int = _process_vm_readv(os.getpid(), ctypes.byref(into), 1, ctypes.byref(here), 1, 0)
    return read == 1


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


_probed = ctypes.c_ubyte()
_process_vm_readv = _libc.process_vm_readv
_process_vm_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]
