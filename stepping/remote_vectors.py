"""Calls whose buffers are named by vectors or messages, some of which are remote: what the kernel gets instead.

The kernel gets a copy of the vector (struct iovec), or of the message (struct msghdr, mmsghdr) with its vector, in
which remote buffers are replaced by buffers of the process's own. `stage` makes it, and fills what is to be sent;
`Staged.finish` carries back what the call has received. All buffers of the process's own come from one `Room`; a
transfer by a vector that it is too small for becomes a short one, as any such transfer may, and a message is refused.

Source: readv(2), sendmsg(2), sendmmsg(2).
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from stepping.remote_memory import RemoteMap
from stepping.syscalls.marshal_messages import CONTROLLEN_OFFSET, FLAGS_OFFSET, NAMELEN_OFFSET
from stepping.syscalls.model import ArgKind, Syscall
from stepping.syscalls.socket_messages import MMSGHDR_BYTES, MSG_LEN_OFFSET, MSGHDR

_VECTORS = frozenset({ArgKind.IOV_IN, ArgKind.IOV_OUT})
_MESSAGES = frozenset({ArgKind.MSG_IN, ArgKind.MSG_OUT, ArgKind.MMSG_IN, ArgKind.MMSG_OUT})
_ARRAYS = frozenset({ArgKind.MMSG_IN, ArgKind.MMSG_OUT})
_READ = frozenset({ArgKind.IOV_IN, ArgKind.MSG_IN, ArgKind.MMSG_IN})
#: Arguments that name buffers by way of other structures.
INDIRECT = _VECTORS | _MESSAGES

_IOVEC = struct.Struct("<QQ")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MOST = 1024
_ALIGNMENT = 16


class NoRoomError(Exception):
    """The buffers of the process's own are too small for a call."""


class Room:
    """*size* bytes of the process's own memory at *start*, given out piece by piece."""

    def __init__(self, start: int, size: int) -> None:
        self._at = start
        self._end = start + size

    @property
    def left(self) -> int:
        """How many bytes can still be taken at once."""
        return self._end - self._at

    def take(self, size: int) -> int:
        """Return the address of *size* bytes.

        Raises:
            NoRoomError: there are not so many.
        """
        if size > self.left:
            raise NoRoomError
        at = self._at
        self._at = min(at + size + -size % _ALIGNMENT, self._end)
        return at


class _Piece(NamedTuple):
    """A buffer of *size* bytes at *address*, as the program has it, and where the kernel finds it."""

    address: int
    size: int
    at: int


class _Message(NamedTuple):
    """header: where its msghdr is, in the program and for the kernel; name, control: those that are remote."""

    header: int
    own_header: int
    name: _Piece | None
    control: _Piece | None
    data: Sequence[_Piece]


class Staged(NamedTuple):
    """What a call was given for *argument*, by index: *address*. messages: of a vector one, without a header."""

    argument: int
    address: int
    kind: ArgKind
    messages: Sequence[_Message]

    def finish(self, remote: RemoteMap, result: int) -> None:
        """Carry back what the call, which has returned *result*, has left in the buffers.

        Raises:
            MemoryFaultError: the program's memory is gone. Whatever the store raises.
        """
        memory = remote.memory
        receives = self.kind not in _READ
        for message in self.messages[: max(result, 0)] if self.kind in _ARRAYS else self.messages:
            filled = result
            if self.kind in _ARRAYS:
                length = memory.read(message.own_header + MSG_LEN_OFFSET, _U32.size)
                remote.write(message.header + MSG_LEN_OFFSET, length)
                filled = _U32.unpack(length)[0]
            if not receives or result < 0:
                continue
            if message.header:
                self._finish_header(message, remote)
            for piece in message.data:
                count = min(piece.size, filled)
                if count > 0 and piece.at != piece.address:
                    remote.write(piece.address, memory.read(piece.at, count))
                filled -= count

    def _finish_header(self, message: _Message, remote: RemoteMap) -> None:
        for offset, size in ((NAMELEN_OFFSET, 4), (CONTROLLEN_OFFSET, 8), (FLAGS_OFFSET, 4)):
            remote.write(message.header + offset, remote.memory.read(message.own_header + offset, size))
        for piece, offset, codec in (
            (message.name, NAMELEN_OFFSET, _U32),
            (message.control, CONTROLLEN_OFFSET, _U64),
        ):
            if piece is not None:
                (length,) = codec.unpack(remote.memory.read(message.own_header + offset, codec.size))
                remote.write(piece.address, remote.memory.read(piece.at, min(length, piece.size)))


def touches(row: Syscall, index: int, args: Sequence[int], remote: RemoteMap) -> bool:
    """Whether any of what argument *index* of the call leads to is remote.

    Raises:
        MemoryFaultError: it leads nowhere.
    """
    kind = row.args[index].kind
    for address, count in _vectors(kind, args[index], _count(row, index, args), remote):
        if address and remote.touches(address, _IOVEC.size * count):
            return True
        if any(remote.touches(base, size) for base, size in _read_vector(address, count, remote)):
            return True
    if kind in _VECTORS:
        return False
    for header in _headers(kind, args[index], _count(row, index, args)):
        if remote.touches(header, MMSGHDR_BYTES):
            return True
        name, name_size, _, _, control, control_size, _ = MSGHDR.unpack(remote.read(header, MSGHDR.size))
        if remote.touches(name, name_size) or remote.touches(control, control_size):
            return True
    return False


def stage(row: Syscall, index: int, args: Sequence[int], remote: RemoteMap, room: Room) -> Staged:
    """Return what the call is to be given for argument *index*, which `touches` remote memory.

    Raises:
        NoRoomError: it does not fit. MemoryFaultError: it leads nowhere. Whatever the store raises.
    """
    kind = row.args[index].kind
    count = _count(row, index, args)
    if kind in _VECTORS:
        own, pieces = _stage_vector(args[index], count, remote, room, fills=kind in _READ, may_be_short=True)
        return Staged(index, own, kind, [_Message(0, 0, None, None, pieces)])
    stride = MMSGHDR_BYTES if kind in _ARRAYS else MSGHDR.size
    headers = _headers(kind, args[index], count)
    start = room.take(stride * len(headers))
    messages = [
        _stage_message(header, start + stride * number, stride, remote, room, fills=kind in _READ)
        for number, header in enumerate(headers)
    ]
    return Staged(index, start, kind, messages)


def _stage_message(
    header: int, own_header: int, size: int, remote: RemoteMap, room: Room, *, fills: bool
) -> _Message:
    raw = remote.read(header, size)
    name, name_size, iov, count, control, control_size, flags = MSGHDR.unpack_from(raw)
    own_iov, pieces = _stage_vector(iov, min(count, _MOST), remote, room, fills=fills, may_be_short=False)
    name_piece = _stage_buffer(name, name_size, remote, room, fills=True)
    control_piece = _stage_buffer(control, control_size, remote, room, fills=True)
    own = MSGHDR.pack(
        *(name_piece.at if name_piece else name, name_size, own_iov, count),
        *(control_piece.at if control_piece else control, control_size, flags),
    )
    remote.memory.write(own_header, own + raw[len(own) :])
    return _Message(header, own_header, name_piece, control_piece, pieces)


def _stage_buffer(address: int, size: int, remote: RemoteMap, room: Room, *, fills: bool) -> _Piece | None:
    """Return a buffer of the process's own for a remote one; None for one that is not."""
    if not size or not remote.touches(address, size):
        return None
    at = room.take(size)
    if fills:
        remote.memory.write(at, remote.read(address, size))
    return _Piece(address, size, at)


def _stage_vector(
    address: int, count: int, remote: RemoteMap, room: Room, *, fills: bool, may_be_short: bool
) -> tuple[int, list[_Piece]]:
    own = room.take(_IOVEC.size * count)
    pieces: list[_Piece] = []
    for base, size in _read_vector(address, count, remote):
        shown = min(size, room.left) if may_be_short and remote.touches(base, size) else size
        piece = _stage_buffer(base, shown, remote, room, fills=fills)
        pieces.append(piece or _Piece(base, shown, base))
        if shown < size:
            break
    raw = b"".join(_IOVEC.pack(piece.at, piece.size) for piece in pieces)
    remote.memory.write(own, raw.ljust(_IOVEC.size * count, b"\0"))
    return own, pieces


def _count(row: Syscall, index: int, args: Sequence[int]) -> int:
    """Return how many elements an array has; 1 for what is none. What the kernel refuses counts as none."""
    length = row.args[index].length
    if length is None or length.arg is None:
        return 1
    count = args[length.arg] & 0xFFFFFFFF
    return count if count <= _MOST else 0


def _headers(kind: ArgKind, address: int, count: int) -> list[int]:
    return [address + MMSGHDR_BYTES * number for number in range(count)] if kind in _ARRAYS else [address]


def _vectors(kind: ArgKind, address: int, count: int, remote: RemoteMap) -> list[tuple[int, int]]:
    """Return where the vectors are that an argument leads to, and how many elements each has."""
    if kind in _VECTORS:
        return [(address, count)]
    found = []
    for header in _headers(kind, address, count):
        _, _, iov, elements, _, _, _ = MSGHDR.unpack(remote.read(header, MSGHDR.size))
        found.append((iov, min(elements, _MOST)))
    return found


def _read_vector(address: int, count: int, remote: RemoteMap) -> list[tuple[int, int]]:
    return list(_IOVEC.iter_unpack(remote.read(address, _IOVEC.size * count))) if count and address else []
