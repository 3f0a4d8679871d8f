"""Finds the program that an emulator's process executes, and its memory, which is a part of that process's.

An emulator whose program has a server at an address says at its door (`stepping.door`) where that is:

    note = "ptserver" base bias path     two numbers of 8 bytes, the program's file

The program's address *a* is at base + *a* of the process; bias is what was added to the addresses of its link.

Not trusted: the process, which may say anything.
"""

import os
import struct
from dataclasses import dataclass

from stepping.door import NOTE_MAX_BYTES, leave_note, read_note
from stepping.errors import MemoryFaultError
from stepping.tracee_memory import TraceeMemory

_HEAD = struct.Struct("<8sQQ")
_MAGIC = b"ptserver"


@dataclass(frozen=True)
class Guest:
    """A program on an emulator: its file, where its memory is, and what was added to its addresses."""

    path: str
    base: int
    bias: int


def announce_guest(guest: Guest) -> None:
    """Let others find the program of this process, if its path is not too long for that."""
    note = _HEAD.pack(_MAGIC, guest.base, guest.bias) + os.fsencode(guest.path) + b"\0"
    if len(note) <= NOTE_MAX_BYTES:
        leave_note(note)


def find_guest(pid: int) -> Guest | None:
    """Return the program on the emulator that is process *pid*; None if it is none, or may not be read."""
    try:
        memory = TraceeMemory(pid)
    except OSError:
        return None
    try:
        note = read_note(memory)
    except MemoryFaultError:
        return None
    finally:
        memory.close()
    magic, base, bias = _HEAD.unpack_from(note)
    path = note[_HEAD.size :].partition(b"\0")[0]
    return Guest(os.fsdecode(path), base, bias) if magic == _MAGIC and path else None


class GuestMemory(TraceeMemory):
    """The memory of the program on the emulator that is process *pid*. What is not mapped reads as zeros."""

    def __init__(self, pid: int, base: int) -> None:
        """Open it. Raises: OSError, as `TraceeMemory`."""
        super().__init__(pid)
        self.base = base

    def read(self, address: int, size: int) -> bytes:
        """See `TraceeMemory.read`."""
        return super().read(self.base + address, size)

    def write(self, address: int, data: bytes) -> None:
        """See `TraceeMemory.write`."""
        super().write(self.base + address, data)
