"""How this package sees memory: a protocol, and the readers that are made of bytes or of other readers.

Everything that looks into a program takes a `MemoryReader`, so a live process, a core file, a file on disk and
a checkpoint serve alike. Addresses are unsigned 64-bit; words are little-endian (both architectures are).
Readers made here are not locked: use one per thread, or lock outside.
"""

import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NewType, Protocol

from goabi.errors import MemoryFaultError

Addr = NewType("Addr", int)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ADDRESS_LIMIT = 1 << 64


class MemoryReader(Protocol):
    """Memory that can be read. The one method returns all that was asked for, or raises."""

    def read(self, addr: int, size: int, /) -> bytes:
        """Exactly `size` bytes at `addr`. Raises: `MemoryFaultError` carrying the address; never a short read."""
        ...


class Memory(MemoryReader, Protocol):
    """Memory that can be written as well."""

    def write(self, addr: int, data: bytes, /) -> None:
        """Replace the bytes at `addr`. Raises: `MemoryFaultError`; part of `data` may then have been written."""
        ...


class BytesMemory:
    """Memory made of segments `(address, bytes)`, which must not overlap; adjoining ones read as one."""

    def __init__(self, segments: Iterable[tuple[int, bytes]]) -> None:
        ordered = sorted((addr, bytearray(data)) for addr, data in segments if data)
        for (low, data), (high, _) in pairwise(ordered):
            if low + len(data) > high:
                raise MemoryFaultError(high, len(data), "segments overlap")
        self._starts = [addr for addr, _ in ordered]
        self._data = [data for _, data in ordered]

    def _pieces(self, addr: int, size: int) -> list[tuple[int, int, int]]:
        """The `(segment, offset, length)` that make up a range."""
        pieces = []
        while size > 0:
            index = bisect_right(self._starts, addr) - 1
            offset = addr - self._starts[index] if index >= 0 else 0
            if index < 0 or offset >= len(self._data[index]):
                raise MemoryFaultError(addr, size)
            length = min(size, len(self._data[index]) - offset)
            pieces.append((index, offset, length))
            addr, size = addr + length, size - length
        return pieces

    def read(self, addr: int, size: int, /) -> bytes:
        """See `MemoryReader.read`."""
        check_range(addr, size)
        return b"".join(
            bytes(self._data[index][offset : offset + length])
            for index, offset, length in self._pieces(addr, size)
        )

    def write(self, addr: int, data: bytes, /) -> None:
        """See `Memory.write`; writes nothing when any byte is unmapped."""
        check_range(addr, len(data))
        done = 0
        for index, offset, length in self._pieces(addr, len(data)):
            self._data[index][offset : offset + length] = data[done : done + length]
            done += length


class CachedMemory:
    """Reads of another reader, kept by blocks, for memory that does not change while this object is used.

    A block that faults is asked again piecewise, so that the edge of a mapping is readable to its last byte.
    `block_bytes` is a power of two; at most `max_blocks` are kept, the least recently used goes first.
    """

    def __init__(self, reader: MemoryReader, block_bytes: int = 4096, max_blocks: int = 4096) -> None:
        self._reader = reader
        self._block_bytes = block_bytes
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, addr: int, size: int, /) -> bytes:
        """See `MemoryReader.read`."""
        check_range(addr, size)
        block_bytes = self._block_bytes
        base = addr & -block_bytes
        if size > block_bytes * 16:
            return self._reader.read(addr, size)  # would only push the useful blocks out
        try:
            if addr + size <= base + block_bytes:
                return self._block(base)[addr - base : addr - base + size]
            whole = b"".join(self._block(start) for start in range(base, addr + size, block_bytes))
        except MemoryFaultError:
            return self._reader.read(addr, size)
        return whole[addr - base : addr - base + size]

    def _block(self, base: int) -> bytes:
        block = self._blocks.get(base)
        if block is None:
            block = self._reader.read(base, self._block_bytes)
            self._blocks[base] = block
            if len(self._blocks) > self._max_blocks:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(base)
        return block

    def clear(self) -> None:
        """Forget everything: the memory has changed."""
        self._blocks.clear()


def check_range(addr: int, size: int) -> None:
    """Refuse what cannot be a range of addresses. Raises: `MemoryFaultError`."""
    if size < 0 or addr < 0 or addr + size > _ADDRESS_LIMIT:
        raise MemoryFaultError(addr, size, "not a range of addresses")


def read_u32(reader: MemoryReader, addr: int) -> int:
    """The 32-bit word at `addr`."""
    return int(_U32.unpack(reader.read(addr, 4))[0])


def read_u64(reader: MemoryReader, addr: int) -> int:
    """The 64-bit word at `addr`."""
    return int(_U64.unpack(reader.read(addr, 8))[0])


def read_words(reader: MemoryReader, addr: int, count: int) -> tuple[int, ...]:
    """`count` 64-bit words from `addr` on."""
    return struct.unpack(f"<{count}Q", reader.read(addr, 8 * count))


def read_scattered(
    reader: MemoryReader, addrs: Sequence[int], size: int, gap_bytes: int = 4096, run_bytes: int = 1 << 18
) -> list[bytes | None]:
    """`size` bytes at each of `addrs`, in their order; None where unreadable.

    Addresses closer than `gap_bytes` are read together, in runs of up to `run_bytes`: structures that an
    allocator packed cost one read per run instead of one each.
    """
    results: list[bytes | None] = [None] * len(addrs)
    order = sorted(range(len(addrs)), key=addrs.__getitem__)
    position = 0
    while position < len(order):
        start = addrs[order[position]]
        end = start + size
        stop = position + 1
        while stop < len(order):
            addr = addrs[order[stop]]
            if addr > end + gap_bytes or addr + size - start > run_bytes:
                break
            end = max(end, addr + size)
            stop += 1
        run = order[position:stop]
        try:
            data = reader.read(start, end - start)
        except MemoryFaultError:
            for index in run:
                results[index] = _read_or_none(reader, addrs[index], size)
        else:
            for index in run:
                offset = addrs[index] - start
                results[index] = data[offset : offset + size]
        position = stop
    return results


def _read_or_none(reader: MemoryReader, addr: int, size: int) -> bytes | None:
    try:
        return reader.read(addr, size)
    except MemoryFaultError:
        return None
