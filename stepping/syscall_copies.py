"""Bounded copies of what a call's pointers lead to, for a log: what it reads at entry, what it filled at exit.

The table says what is copied; `marshal.gather` copies. A log wants the beginning of a buffer, not gigabytes, so
reads are clipped. A pointer that cannot be read is simply not copied: the kernel will tell the program, and the
log shows the address.
"""

import struct

from stepping.errors import MemoryFaultError
from stepping.syscalls.marshal import Args, BadArgumentError, Gathered, ProgramMemory, gather
from stepping.syscalls.model import RESULT, Arg, Length, Syscall

#: How much of each buffer is copied if nothing else is asked for.
COPY_LIMIT_BYTES = 4096

_MAX_COPY_BYTES = 1 << 20


class ClippedMemory:
    """Another memory of which single reads give *limit* bytes at most (at least 64, so that structs are whole)."""

    def __init__(self, memory: ProgramMemory, limit: int = COPY_LIMIT_BYTES) -> None:
        self._memory = memory
        self._limit = min(max(limit, 64), _MAX_COPY_BYTES)

    def read(self, address: int, size: int) -> bytes:
        """Return the first of *size* bytes; MemoryFaultError if they are not all there."""
        return self._memory.read(address, min(size, self._limit))

    def read_string(self, address: int, limit: int) -> bytes:
        """Return the bytes before the first NUL; ValueError if it is not within *limit*."""
        return self._memory.read_string(address, limit)

    def write(self, address: int, data: bytes) -> None:
        """Refuse: a log changes nothing."""
        raise MemoryFaultError(address)


def copy_ins(row: Syscall, args: Args, memory: ClippedMemory) -> Gathered:
    """Copy what the call reads; without copies if a pointer cannot be followed."""
    try:
        return gather(row, args, memory)
    except BadArgumentError:
        return Gathered(args, {}, {}, {})


def copy_outs(row: Syscall, call: Gathered, result: int, memory: ClippedMemory) -> dict[int, bytes]:
    """Copy, by argument index, what a call that returned *result* has filled; nothing for one that failed."""
    outs: dict[int, bytes] = {}
    if -4095 <= result < 0:
        return outs
    for index, room in call.outs.items():
        if index in call.messages:
            continue  # not followed
        arg = row.args[index]
        try:
            size = min(room, _valid(arg, call.args, result, memory, room))
            if index in call.iovecs:
                outs[index] = _read_vector(call.iovecs[index], size, memory)
            elif size:
                outs[index] = memory.read(call.args[index], size)
        except MemoryFaultError:
            continue
    return outs


def _valid(arg: Arg, args: Args, result: int, memory: ClippedMemory, room: int) -> int:
    valid = arg.valid
    if valid is None:
        return room
    if valid.arg is None:
        return valid.of()
    if valid.arg == RESULT:
        return valid.of(result)
    value = args[valid.arg]
    if valid.indirect:
        value = _pointed_number(valid, value, memory)
    return valid.of(value)


def _pointed_number(length: Length, pointer: int, memory: ClippedMemory) -> int:
    return int(struct.unpack("=I", memory.read(pointer + length.offset, 4))[0]) if pointer else 0


def _read_vector(vector: list[tuple[int, int]], size: int, memory: ClippedMemory) -> bytes:
    parts = []
    for base, length in vector:
        if size <= 0:
            break
        part = memory.read(base, min(length, size))
        parts.append(part)
        size -= length
        if len(part) < length:
            break
    return b"".join(parts)
