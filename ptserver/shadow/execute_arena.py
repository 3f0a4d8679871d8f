"""Memory that a call made for a program reads and fills, at addresses that the program does not choose.

Thread rules: an arena belongs to one thread.
"""

import ctypes
import mmap

_PAGE_BYTES = mmap.PAGESIZE
_SMALL_BYTES = 64 << 10
#: An arena that has grown beyond this gives its memory back once it is no longer needed.
_KEEP_BYTES = 1 << 20


class Arena:
    """A piece of memory that is filled from its start by one call, and reset before the next.

    memory: what it holds, by offset; address: where its offset 0 is. Both change when it grows.
    """

    __slots__ = ("_pin", "address", "memory", "size_bytes", "used_bytes")

    def __init__(self) -> None:
        self.used_bytes = 0
        self._map(_SMALL_BYTES)

    def reserve(self, size_bytes: int) -> None:
        """Forget what the arena holds, and make room for *size_bytes* in all."""
        self.used_bytes = 0
        if size_bytes > self.size_bytes:
            self._map(max(2 * self.size_bytes, _pages(size_bytes)))
        elif size_bytes <= _KEEP_BYTES < self.size_bytes:
            self._map(_SMALL_BYTES if size_bytes <= _SMALL_BYTES else _KEEP_BYTES)

    def take(self, size_bytes: int) -> int:
        """Return the offset of *size_bytes* that nothing else uses, aligned for any use that has such a size.

        The arena must have been reserved for it; its content is what an earlier call left there.
        """
        align = (
            64 if size_bytes & 511 or not size_bytes else _PAGE_BYTES
        )  # O_DIRECT wants whole sectors aligned
        offset = self.used_bytes + align - 1 & -align
        self.used_bytes = offset + size_bytes
        return offset

    def _map(self, size_bytes: int) -> None:
        self._pin: ctypes.c_char | None = None  # gives up its hold on the old memory, which can then be freed
        self.memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pin = ctypes.c_char.from_buffer(self.memory)
        self.address = ctypes.addressof(self._pin)
        self.size_bytes = size_bytes


def _pages(size_bytes: int) -> int:
    return size_bytes + _PAGE_BYTES - 1 & -_PAGE_BYTES
