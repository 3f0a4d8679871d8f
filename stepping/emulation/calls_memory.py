"""Syscalls on the address space of an emulated program.

Source: mmap(2), mremap(2), madvise(2), brk(2).
"""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from stepping.emulation.address_space import LOWEST, PAGE_BYTES, PROT_READ, PROT_WRITE
from stepping.emulation.threads import Result, Thread
from stepping.emulator import ADDRESS_LIMIT

if TYPE_CHECKING:
    from stepping.emulation.machine import Machine

_MAP_SHARED, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_FIXED_NOREPLACE = 1, 0x10, 0x20, 0x100000
_MADV_DONTNEED, _MADV_FREE, _MADV_COLLAPSE = 4, 8, 25
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_NEVER = frozenset({"mbind", "set_mempolicy", "get_mempolicy", "migrate_pages", "move_pages", "pkey_alloc"})
_NOTHING_TO_DO = frozenset({"msync", "mlock", "mlock2", "mlockall", "munlock", "munlockall"})


def _pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


class _Memory:
    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self._space = machine.space

    def mmap(self, _thread: Thread, args: list[int]) -> Result:
        address, size, protection, flags, fd, offset = args
        size = _pages(size)
        flags &= 0xFFFFFFFF
        if not size or offset % PAGE_BYTES:
            return -errno.EINVAL
        if size > ADDRESS_LIMIT:
            return -errno.ENOMEM
        space = self._space
        if flags & (_MAP_FIXED | _MAP_FIXED_NOREPLACE):
            if address % PAGE_BYTES:
                return -errno.EINVAL
            if address < LOWEST or address + size > ADDRESS_LIMIT:
                return -errno.ENOMEM
            if flags & _MAP_FIXED_NOREPLACE and not space.is_free(address, size):
                return -errno.EEXIST
        else:
            address = _pages(address)
            if not address or not space.is_free(address, size):
                found = space.find_room(size)
                if found is None:
                    return -errno.ENOMEM
                address = found
        mapper = None
        if not flags & _MAP_ANONYMOUS:
            file = fd & 0xFFFFFFFF
            shared = bool(flags & _MAP_SHARED)

            def mapper(at: int, length: int) -> tuple[int, int]:
                return self._machine.resources.map_file(file, offset, at, length, shared)

        error = space.map(address, size, protection & 7, mapper)
        return -error if error else address

    def munmap(self, _thread: Thread, args: list[int]) -> Result:
        address, size = args[0], _pages(args[1])
        if address % PAGE_BYTES or not size or address + size > ADDRESS_LIMIT:
            return -errno.EINVAL
        self._space.unmap(address, size)
        return 0

    def mprotect(self, _thread: Thread, args: list[int]) -> Result:
        address, size = args[0], _pages(args[1])
        if address % PAGE_BYTES:
            return -errno.EINVAL
        return -self._space.protect(address, size, args[2] & 7)

    def madvise(self, _thread: Thread, args: list[int]) -> Result:
        address, size, advice = args[0], _pages(args[1]), args[2] & 0xFFFFFFFF
        if address % PAGE_BYTES or address + size > ADDRESS_LIMIT:
            return -errno.EINVAL
        if advice in (_MADV_DONTNEED, _MADV_FREE):
            self._space.discard(address, size)
        elif advice > _MADV_COLLAPSE:
            return -errno.EINVAL
        return 0

    def mincore(self, _thread: Thread, args: list[int]) -> Result:
        address, size, vector = args[:3]
        if address % PAGE_BYTES:
            return -errno.EINVAL
        pages = _pages(size) // PAGE_BYTES
        if not self._space.allows(address, pages * PAGE_BYTES, 0):
            return -errno.ENOMEM
        if not self._space.allows(vector, pages, PROT_WRITE):
            return -errno.EFAULT
        self._space.write(vector, b"\1" * pages)
        return 0

    def mremap(self, _thread: Thread, args: list[int]) -> Result:
        address, old_size, new_size, flags, target = (
            args[0],
            _pages(args[1]),
            _pages(args[2]),
            args[3],
            args[4],
        )
        space = self._space
        vma = space.find(address)
        if address % PAGE_BYTES or not new_size or not old_size:
            return -errno.EINVAL
        if vma is None or vma.end < address + old_size:
            return -errno.EFAULT
        if flags & _MREMAP_FIXED:
            if not flags & _MREMAP_MAYMOVE or target % PAGE_BYTES or target + new_size > ADDRESS_LIMIT:
                return -errno.EINVAL
        elif new_size <= old_size:
            space.unmap(address + new_size, old_size - new_size)
            return address
        elif vma.end == address + old_size and space.is_free(vma.end, new_size - old_size):
            space.map(vma.end, new_size - old_size, vma.protection)
            return address
        elif flags & _MREMAP_MAYMOVE:
            found = space.find_room(new_size)
            if found is None:
                return -errno.ENOMEM
            target = found
        else:
            return -errno.ENOMEM
        space.move(address, old_size, target, new_size)
        return target

    def brk(self, _thread: Thread, args: list[int]) -> Result:
        machine, wanted = self._machine, args[0]
        old_end, new_end = _pages(machine.brk), _pages(wanted)
        if wanted < machine.brk_start:
            return machine.brk
        if new_end > old_end:
            if not self._space.is_free(old_end, new_end - old_end):
                return machine.brk
            self._space.map(old_end, new_end - old_end, PROT_READ | PROT_WRITE)
        elif new_end < old_end:
            self._space.unmap(new_end, old_end - new_end)
        machine.brk = wanted
        return wanted


def handlers(machine: "Machine") -> dict[str, Callable[[Thread, list[int]], Result]]:
    """Return what answers each call, by name."""
    memory = _Memory(machine)
    table: dict[str, Callable[[Thread, list[int]], Result]] = {
        "mmap": memory.mmap,
        "munmap": memory.munmap,
        "mprotect": memory.mprotect,
        "madvise": memory.madvise,
        "mincore": memory.mincore,
        "mremap": memory.mremap,
        "brk": memory.brk,
    }
    table |= dict.fromkeys(_NOTHING_TO_DO, lambda _thread, _args: 0)
    table |= dict.fromkeys(_NEVER, lambda _thread, _args: -errno.ENOSYS)
    return table
