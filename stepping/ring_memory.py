"""The memory that holds a ring's records, as its reader has it: mapped here too, or read in the program.

It is mapped where the program could be made to hand over a memfd. Where its calls on descriptors are served by
somebody else that cannot be, and the ring is memory of the program's own, which the kernel lets only root map; for
others, what is in it when the program ends is lost.
"""

import contextlib
import mmap
import os
import struct
from typing import Protocol

from stepping.errors import MemoryFaultError
from stepping.tracee_memory import TraceeMemory

_WORD = struct.Struct("<Q")
_MADV_POPULATE_WRITE = 23


class RingMemory(Protocol):
    """Offsets are from the ring's beginning, and multiples of 8 for words."""

    def word(self, offset: int) -> int:
        """Return one word; 0 if the memory is gone."""

    def words(self, offset: int, count: int, stride: int) -> list[int]:
        """Return *count* words that are *stride* bytes apart."""

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes, zeros if the memory is gone."""

    def write_word(self, offset: int, value: int) -> None:
        """Write one word."""

    def populate(self) -> None:
        """Have all pages there, so that neither side waits for the kernel to make one."""

    def close(self) -> None:
        """Give it up."""


class MappedRing:
    """The memory behind the descriptor *fd*, which is closed."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._map = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED)
        os.close(fd)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")

    def word(self, offset: int) -> int:
        """Return one word."""
        return self._words[offset // 8]

    def words(self, offset: int, count: int, stride: int) -> list[int]:
        """Return *count* words that are *stride* bytes apart."""
        return self._words[offset // 8 : (offset + count * stride) // 8 : stride // 8].tolist()

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes."""
        return bytes(self._bytes[offset : offset + size])

    def write_word(self, offset: int, value: int) -> None:
        """Write one word."""
        self._words[offset // 8] = value

    def populate(self) -> None:
        """Have all pages there."""
        with contextlib.suppress(OSError):  # before Linux 5.14 they come one by one
            self._map.madvise(_MADV_POPULATE_WRITE)

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._bytes.release()
        self._map.close()


class DistantRing:
    """The memory at *address* in process *pid*."""

    def __init__(self, pid: int, address: int) -> None:
        self._memory = TraceeMemory(pid)
        self._address = address

    def word(self, offset: int) -> int:
        """Return one word."""
        return int(_WORD.unpack(self.read(offset, 8))[0])

    def words(self, offset: int, count: int, stride: int) -> list[int]:
        """Return *count* words that are *stride* bytes apart."""
        data = self.read(offset, count * stride)
        return memoryview(data).cast("Q")[:: stride // 8].tolist()

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes."""
        try:
            return self._memory.read(self._address + offset, size)
        except MemoryFaultError:
            return bytes(size)

    def write_word(self, offset: int, value: int) -> None:
        """Write one word, if there is still anybody to read it."""
        try:
            self._memory.write(self._address + offset, _WORD.pack(value))
        except MemoryFaultError:
            return

    def populate(self) -> None:
        """It is the program's memory, and comes as the program uses it."""

    def close(self) -> None:
        """Close the process's memory."""
        self._memory.close()
