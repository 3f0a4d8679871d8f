"""Lets a Go program open, close and look at some files itself, by the routine of `direct_calls`.

The stub host puts files at numbers that are free, and says which path leads to which of them. While it lets the
program (`begin` to `end`), the routine does this:

    openat       of a path that is known, with the flags that are known: gives the lowest free number, if that file is
                 there; its offset is set to 0
    close        of a number that has a slot: it is free again
    newfstatat   of a path that is known, and
    fstat        of a number that has a slot: the attributes that are known

Every other call is taken. *Slots* are numbers in ascending order, free or in use; no other number below the highest
of them is free. So the lowest free slot is the lowest free number, whatever the program opens and closes meanwhile.

Pointers of the program are followed only into a range of addresses that the host has found to be there, because a
pointer that leads nowhere would end the program, where the kernel says EFAULT.

    data    count u32, whether it may u32 | from u64, reach u64 | free u64 | numbers 64 u32 | contents 64 u32
    file    hash u32, length u32 | flags of the open u32 | attributes 144 bytes | path          64 of 512 bytes each

A file lies where the hash of its path says, so one may take the place of another.
"""

import contextlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from stepping.direct_calls import DirectTable
from stepping.errors import MemoryFaultError
from stepping.tracee_memory import TraceeMemory

MAX_SLOTS = 63
STAT_BYTES = 144
MAX_PATH_BYTES = 351

_MAY_OFFSET, _FROM_OFFSET, _FREE_OFFSET, _FILES_OFFSET = 0x04, 0x08, 0x18, 0x5000
_SLOTS = struct.Struct("<QQQ32x64I64I")
_ROOM = 64  # of which a byte of the table can name all but one
_FILE = struct.Struct("<III4x144s")
_FILE_BYTES, _FILES = 512, 64
_U64 = struct.Struct("<Q")
_YES, _NO = b"\1\0\0\0", b"\0\0\0\0"
_NO_FILE = 0xFFFFFFFF
_U32 = 0xFFFFFFFF


class Slot(NamedTuple):
    """A number; which file is there, as `place_of` says, None for another one; and whether it is in use."""

    number: int
    place: int | None
    is_open: bool


def hash_of(path: bytes) -> int:
    """Return the hash of a path."""
    value = 0
    for byte in path:
        value = (value * 31 + byte) & _U32
    return value


def place_of(path: bytes) -> int:
    """Return where a file is kept by its path."""
    return hash_of(path) % _FILES


class DirectOpens:
    """Of a running program, by its *memory*; its data lie at *address*. *table* has its descriptors.

    Every method but `end` may raise MemoryFaultError.
    """

    def __init__(self, memory: TraceeMemory, address: int, table: DirectTable) -> None:
        self._memory = memory
        self._address = address
        self._table = table
        self._slots: Sequence[Slot] = ()

    def know(self, path: bytes, flags: int, stat: bytes) -> None:
        """Let a path of up to `MAX_PATH_BYTES` lead to a file with these attributes. The program may not now."""
        at = self._address + _FILES_OFFSET + place_of(path) * _FILE_BYTES
        self._memory.write(at, _FILE.pack(hash_of(path), len(path), flags, stat) + path)

    def forget(self, place: int) -> None:
        """Let no path lead there. The program may not now."""
        self._memory.write(self._address + _FILES_OFFSET + place * _FILE_BYTES, bytes(8))

    def begin(self, slots: Sequence[Slot], pointers: range) -> None:
        """Let the program. slots: at most `MAX_SLOTS`; pointers: where its memory is there to be read and written."""
        numbers = {slot.number for slot in slots}
        for old in self._slots:
            if old.number not in numbers:
                self._table.clear_slot(old.number)
        free = 0
        for index, slot in enumerate(slots):
            self._table.set_slot(slot.number, index, is_open=slot.is_open)
            free |= (not slot.is_open) << index
        self._slots = slots
        rest = [0] * (_ROOM - len(slots))
        places = [_NO_FILE if slot.place is None else slot.place for slot in slots]
        data = _SLOTS.pack(
            pointers.start,
            max(0, len(pointers) - _FILE_BYTES),
            free,
            *[slot.number for slot in slots],
            *rest,
            *places,
            *rest,
        )
        self._memory.write(self._address + _FROM_OFFSET, data)
        self._memory.write(self._address + _MAY_OFFSET, _YES)

    def end(self) -> list[bool]:
        """Let it no more; return which of the slots are in use now."""
        is_open = [slot.is_open for slot in self._slots]
        with contextlib.suppress(MemoryFaultError):
            self._memory.write(self._address + _MAY_OFFSET, _NO)
            self._table.await_unused()
            free = _U64.unpack(self._memory.read(self._address + _FREE_OFFSET, 8))[0]
            is_open = [not free >> index & 1 for index in range(len(self._slots))]
        for slot, now in zip(self._slots, is_open, strict=True):
            self._table.changed(slot.number, is_open=now)
        return is_open
