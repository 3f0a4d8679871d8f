"""What a spread program has mapped, and where: decides mmap(2) and its like for all hosts alike. Pure.

The hosts have watched memory in a few large *regions*. Within those a mapping is only a note here, so that mapping
and unmapping costs no host anything; the notes say which pages may be touched. A mapping elsewhere needs a new
region. Addresses are half-open ranges, whole pages.

Go (since 1.26) begins its heap at a random address, and asks for more behind it; so a new region is made large.
"""

import bisect
import errno
from typing import NamedTuple

from stepping.maps import PAGE_BYTES, USER_END, USER_START

#: Where mappings go for which the program names no place.
ANYWHERE = (0x7E00_0000_0000, 64 << 30)
#: How large a region is made around what the program asks for.
REGION_BYTES = 64 << 30

MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_SHARED_TYPES = 0x10, 0x20, 0x100000, 0x1
PROT_NONE = 0


class MapError(Exception):
    """The mapping cannot be had. `errno` is what the program gets."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class Mapped(NamedTuple):
    """Where a mapping goes. new_region: the [start, size) that hosts must first have, if any."""

    address: int
    size: int
    new_region: tuple[int, int] | None


class AddressSpace:
    """Regions, and in them the mappings with whether they may be touched."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, int]] = []
        self._starts: list[int] = []  # of _ranges, sorted
        self._ranges: list[tuple[int, int, bool]] = []  # (start, end, may be touched), disjoint
        self._next_anywhere = ANYWHERE[0]

    def add_region(self, start: int, size: int, *, mapped: bool = False) -> None:
        """Note a region that the hosts have. mapped: all of it is the program's, to touch."""
        self.regions.append((start, size))
        if mapped:
            self._note(start, start + size, True)

    def may_touch(self, page: int) -> bool:
        """Whether the program may touch page *page* (its number)."""
        address = page * PAGE_BYTES
        index = bisect.bisect_right(self._starts, address) - 1
        return index >= 0 and address < self._ranges[index][1] and self._ranges[index][2]

    def map(self, address: int, size: int, protection: int, flags: int) -> Mapped:
        """Decide an anonymous mmap(2), note it and say where it is.

        Raises:
            MapError: EINVAL, ENOMEM, EEXIST as mmap(2).
        """
        size = _pages_up(size)
        if not size or (address % PAGE_BYTES and flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)):
            raise MapError(errno.EINVAL)
        region = None
        address -= address % PAGE_BYTES
        if flags & MAP_FIXED_NOREPLACE and self._overlaps(address, address + size):
            raise MapError(errno.EEXIST)
        if not flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) and (
            not address or not self._is_usable(address, size) or self._overlaps(address, address + size)
        ):
            address = self._anywhere(size)
        elif not self._in_region(address, size):
            region = self._region_for(address, size)
        if region is not None:
            self.add_region(*region)
        self._note(address, address + size, protection != PROT_NONE)
        return Mapped(address, size, region)

    def unmap(self, address: int, size: int) -> None:
        """Note munmap(2) of whole pages."""
        self._cut(address, address + _pages_up(size))

    def protect(self, address: int, size: int, protection: int) -> None:
        """Note mprotect(2) of what is mapped in the range."""
        end = address + _pages_up(size)
        for start, stop, _ in self._within(address, end):
            self._note(max(start, address), min(stop, end), protection != PROT_NONE)

    def is_watched(self, address: int, size: int) -> bool:
        """Whether the range lies in a region, so that the hosts keep its content alike."""
        return self._in_region(address, size)

    def _anywhere(self, size: int) -> int:
        address = self._next_anywhere
        if address + size > ANYWHERE[0] + ANYWHERE[1]:
            raise MapError(errno.ENOMEM)
        self._next_anywhere = address + size + PAGE_BYTES
        return address

    def _is_usable(self, address: int, size: int) -> bool:
        if address < USER_START or address + size > USER_END:
            return False
        low, length = ANYWHERE
        if address < low + length and low < address + size:
            return False
        return self._in_region(address, size) or self._region_room(address, size) is not None

    def _region_for(self, address: int, size: int) -> tuple[int, int]:
        room = self._region_room(address, size)
        if room is None:
            raise MapError(errno.ENOMEM)
        return room

    def _region_room(self, address: int, size: int) -> tuple[int, int] | None:
        """Return a region to make that holds the range and touches no other; None if there is no room for it."""
        end = min(address + max(size, REGION_BYTES), USER_END)
        for start, length in self.regions:
            if start < address + size and address < start + length:
                return None
            if address < start:
                end = min(end, start)
        return (address, end - address) if end >= address + size else None

    def _in_region(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + length for start, length in self.regions)

    def _overlaps(self, start: int, end: int) -> bool:
        return bool(self._within(start, end))

    def _within(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        found = []
        for entry in self._ranges[first:]:
            if entry[0] >= end:
                break
            if entry[1] > start:
                found.append(entry)
        return found

    def _cut(self, start: int, end: int) -> None:
        """Take [start, end) out of the notes."""
        for entry in self._within(start, end):
            index = bisect.bisect_left(self._starts, entry[0])
            pieces = []
            if entry[0] < start:
                pieces.append((entry[0], start, entry[2]))
            if entry[1] > end:
                pieces.append((end, entry[1], entry[2]))
            self._ranges[index : index + 1] = pieces
            self._starts[index : index + 1] = [piece[0] for piece in pieces]

    def _note(self, start: int, end: int, touchable: bool) -> None:
        self._cut(start, end)
        index = bisect.bisect_left(self._starts, start)
        before = self._ranges[index - 1] if index else None
        if before is not None and before[1] == start and before[2] == touchable:
            self._ranges[index - 1] = (before[0], end, touchable)
            return
        self._ranges.insert(index, (start, end, touchable))
        self._starts.insert(index, start)


def _pages_up(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES
