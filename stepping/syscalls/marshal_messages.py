"""Carries socket messages out of a program's memory, and received ones back into it.

In memory they are what msghdr and mmsghdr lead to; on the way they are a run of bytes, see `socket_messages`.
"""

import errno
import struct
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from stepping.syscalls.socket_messages import (
    HEAD,
    MAX_CONTROL_BYTES,
    MAX_MESSAGES,
    MAX_NAME_BYTES,
    MMSGHDR_BYTES,
    MSG_LEN_OFFSET,
    MSGHDR,
    Message,
    split,
)

Vector = list[tuple[int, int]]

NAMELEN_OFFSET, CONTROLLEN_OFFSET, FLAGS_OFFSET = 8, 40, 48
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_NOTHING = HEAD.size  # what a message without any part takes


class _Memory(Protocol):
    def read(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...


_M = TypeVar("_M", bound=_Memory)
#: Gives the buffers of the iovec array at an address, of so many elements, up to so many bytes in all.
ReadVector = Callable[[int, int, int, _M], Vector]


class Place(NamedTuple):
    """Where a message of the program is. header: of its msghdr; is_array: that is part of an mmsghdr."""

    header: int
    is_array: bool
    name: int
    name_room: int
    control: int
    control_room: int
    vector: Vector


class RefusedMessageError(Exception):
    """The kernel would refuse the message, with *errno*."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


def find_messages(
    address: int, count: int | None, room: int, memory: _M, read_vector: ReadVector[_M]
) -> list[Place]:
    """Return where the messages at *address* are: a msghdr's if *count* is None, else those of so many mmsghdr.

    Together they take at most *room* bytes as a run; of an array that holds more, only the first ones are returned.

    Raises:
        RefusedMessageError: the first one is none that the kernel would take; later ones only end the array.
    """
    places: list[Place] = []
    for index in range(1 if count is None else min(count, MAX_MESSAGES)):
        header = address + MMSGHDR_BYTES * index
        try:
            place = _read_place(header, count is not None, room, memory, read_vector)
        except RefusedMessageError:
            if places:
                break
            raise
        taken = _size_of(place)
        if places and (taken > room or room < _NOTHING):
            break
        places.append(place)
        room -= taken
    return places


def _read_place(header: int, is_array: bool, room: int, memory: _M, read_vector: ReadVector[_M]) -> Place:
    name, name_size, iov, count, control, control_size, _ = MSGHDR.unpack(memory.read(header, MSGHDR.size))
    if name_size >> 31 and name:
        raise RefusedMessageError(errno.EINVAL)
    if count > MAX_MESSAGES:
        raise RefusedMessageError(errno.EMSGSIZE)
    if control_size > MAX_CONTROL_BYTES and control:
        raise RefusedMessageError(errno.ENOBUFS)
    name_size = min(name_size, MAX_NAME_BYTES) if name else 0
    control_size = control_size if control else 0
    left = max(room - _NOTHING - name_size - control_size, 0)
    vector = read_vector(iov, count, left, memory) if count else []
    return Place(header, is_array, name, name_size, control, control_size, vector)


def _size_of(place: Place) -> int:
    return _NOTHING + place.name_room + place.control_room + sum(size for _, size in place.vector)


def read_messages(places: list[Place], memory: _Memory) -> bytes:
    """Return the messages to send at *places*, as a run."""
    parts = []
    for place in places:
        name = memory.read(place.name, place.name_room) if place.name_room else b""
        control = memory.read(place.control, place.control_room) if place.control_room else b""
        data = b"".join([memory.read(base, size) for base, size in place.vector])
        parts.append(
            Message(len(name), len(control), len(data), name=name, control=control, data=data).pack()
        )
    return b"".join(parts)


def offers(places: list[Place]) -> tuple[bytes, int]:
    """Return the offers to receive into *places*, as a run, and how long the run of what is received may become."""
    run = [
        HEAD.pack(place.name_room, place.control_room, sum(size for _, size in place.vector), 0, 0, 0)
        for place in places
    ]
    return b"".join(run), sum(map(_size_of, places))


def write_received(places: list[Place], run: bytes, memory: _Memory) -> None:
    """Put the received messages of *run* to their *places*; what there is no room for, or is malformed, is not."""
    try:
        messages = split(run)
    except ValueError:
        return
    for place, message in zip(places, messages, strict=False):
        if place.name:
            memory.write(place.name, message.name[: place.name_room])
            memory.write(place.header + NAMELEN_OFFSET, _U32.pack(message.name_length))
        control = message.control[: place.control_room]
        if control:
            memory.write(place.control, control)
        done = 0
        for base, size in place.vector:
            if done >= len(message.data):
                break
            memory.write(base, message.data[done : done + size])
            done += size
        memory.write(place.header + CONTROLLEN_OFFSET, _U64.pack(len(control)))
        memory.write(place.header + FLAGS_OFFSET, _U32.pack(message.flags))
        if place.is_array:
            memory.write(place.header + MSG_LEN_OFFSET, _U32.pack(message.length))


def write_sent(places: list[Place], lengths: bytes, memory: _Memory) -> None:
    """Put how much was sent of each message of an array (4 bytes each in *lengths*) into its mmsghdr."""
    for place, (length,) in zip(places, _U32.iter_unpack(lengths[: len(lengths) & ~3]), strict=False):
        memory.write(place.header + MSG_LEN_OFFSET, _U32.pack(length))
