"""Socket messages of a call that is made for a program: placed in an arena, and what became of them.

They come and go as a run of bytes, see `stepping.syscalls.socket_messages`. The kernel gets headers that are made
here, and pointers of this process only.

Thread rules: those of the arena.
"""

import struct

from ptserver.shadow.execute_arena import Arena
from stepping.syscalls.model import ArgKind
from stepping.syscalls.socket_messages import MMSGHDR_BYTES, MSG_LEN_OFFSET, MSGHDR, Message, split

MESSAGE_KINDS = frozenset({ArgKind.MSG_IN, ArgKind.MSG_OUT, ArgKind.MMSG_IN, ArgKind.MMSG_OUT})

_IOVEC = struct.Struct("=QQ")
_U32 = struct.Struct("=I")


class Messages:
    """The messages of one argument.

    size: the bytes of the arena that they take; count: how many they are; at: where they were put.
    """

    def __init__(self, kind: ArgKind, run: bytes, back: int) -> None:
        """*run*: what came for the argument; *back*: how many bytes may go back.

        Raises:
            ValueError: these do not go together.
        """
        self.is_array = kind in (ArgKind.MMSG_IN, ArgKind.MMSG_OUT)
        self._receives = kind in (ArgKind.MSG_OUT, ArgKind.MMSG_OUT)
        self._messages = split(run, offers=self._receives)
        self.count = len(self._messages)
        if not self.count and not self.is_array:
            raise ValueError("no message")
        if self._receives:
            wanted = sum(message.size_bytes for message in self._messages)
        else:
            wanted = _U32.size * self.count if self.is_array else 0
        if wanted > back:
            raise ValueError("more may come back than is wanted")
        self.size = self.count * (MMSGHDR_BYTES + _IOVEC.size) + sum(map(_parts_size, self._messages))
        self.at = 0

    def place(self, arena: Arena) -> int:
        """Put them into the arena and return the address for the register; the arena must have room."""
        self.at = at = arena.take(self.size)
        memory, base = arena.memory, arena.address
        at += MMSGHDR_BYTES * self.count
        for header, message in zip(self._headers(), self._messages, strict=True):
            addresses = []
            for part, size in zip(message[6:], message[:3], strict=True):
                memory[at : at + len(part)] = part
                if (
                    self._receives
                ):  # the kernel leaves gaps in control data, which must not tell of other calls
                    memory[at + len(part) : at + size] = bytes(size - len(part))
                addresses.append(base + at)
                at += size + 7 & ~7
            _IOVEC.pack_into(memory, at, addresses[2], message.data_size)
            name, control, _ = addresses
            MSGHDR.pack_into(
                memory, header, name, message.name_size, base + at, 1, control, message.control_size, 0
            )
            at += _IOVEC.size
        return base + self.at

    def collect(self, arena: Arena, value: int) -> bytes:
        """Return what goes back after the call has returned *value*: a run, or the lengths that were sent."""
        memory, done = arena.memory, min(value, self.count) if self.is_array else 1
        if not self._receives:
            if not self.is_array:
                return b""
            lengths = (memory[at + MSG_LEN_OFFSET : at + MSG_LEN_OFFSET + 4] for at in self._headers())
            return b"".join(lengths)[: _U32.size * done]
        parts = []
        for header, message in zip(self._headers(), self._messages[:done], strict=False):
            name, name_length, vector, _, control, control_size, flags = MSGHDR.unpack_from(memory, header)
            length = _U32.unpack_from(memory, header + MSG_LEN_OFFSET)[0] if self.is_array else value
            data = _IOVEC.unpack_from(memory, vector - arena.address)[0]
            sizes = (
                min(name_length, message.name_size),
                min(control_size, message.control_size),
                min(length, message.data_size),
            )
            filled = [
                memory[start - arena.address : start - arena.address + size]
                for start, size in zip((name, control, data), sizes, strict=True)
            ]
            parts.append(Message(*sizes, flags, length & 0xFFFFFFFF, name_length, *filled).pack())
        return b"".join(parts)

    def _headers(self) -> range:
        return range(self.at, self.at + MMSGHDR_BYTES * self.count, MMSGHDR_BYTES)


def _parts_size(message: Message) -> int:
    return sum(size + 7 & ~7 for size in message[:3])
