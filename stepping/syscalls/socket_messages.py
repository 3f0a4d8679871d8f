"""Socket messages (struct msghdr, struct mmsghdr) as one run of bytes: as they travel, and as servers see them.

    run     = message*
    message = name_size control_size data_size flags length name_length name control data
    name_size, control_size, data_size, flags, length, name_length = 4 bytes each, unsigned, in the machine's order

A message to send has all its parts; its last three numbers are 0. An *offer* to receive a message is the six numbers
alone, and its sizes are the room that there is. A received message has its parts as far as they fit; flags are those
that the kernel returned, length is what it counted of the data and name_length of the name: either may be more than
there was room for.

Not trusted: the program's memory, nor a run that came from elsewhere.

Source: recvmsg(2), cmsg(3); net/socket.c (copy_msghdr_from_user, ____sys_recvmsg).
"""

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

#: No address family has a longer name (struct sockaddr_storage).
MAX_NAME_BYTES = 128
#: More control data than any kernel's net.core.optmem_max allows.
MAX_CONTROL_BYTES = 1 << 20
MAX_MESSAGES = 1024  # UIO_MAXIOV

#: The six numbers before a message's parts.
HEAD = struct.Struct("=6I")
#: struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
MSGHDR = struct.Struct("=QI4xQQQQI4x")
#: struct mmsghdr: a msghdr, then at `MSG_LEN_OFFSET` the number of bytes that were sent or received.
MMSGHDR_BYTES, MSG_LEN_OFFSET = 64, 56

_CMSGHDR = struct.Struct("=Qii")
_FD = struct.Struct("=I")
_SOL_SOCKET, _SCM_RIGHTS = 1, 1


class Message(NamedTuple):
    """One message of a run; an offer has no parts. See the module's text."""

    name_size: int
    control_size: int
    data_size: int
    flags: int = 0
    length: int = 0
    name_length: int = 0
    name: bytes = b""
    control: bytes = b""
    data: bytes = b""

    def pack(self) -> bytes:
        """Return it as part of a run."""
        return HEAD.pack(*self[:6]) + self.name + self.control + self.data

    @property
    def size_bytes(self) -> int:
        """How long it is in a run, or, of an offer, may become."""
        return HEAD.size + self.name_size + self.control_size + self.data_size


def split(run: bytes, *, offers: bool = False) -> list[Message]:
    """Return the messages of *run*, at most `MAX_MESSAGES`. offers: whether it is one of offers.

    Raises:
        ValueError: it is none, or has a name or control data beyond the limits above.
    """
    messages: list[Message] = []
    at = 0
    while at < len(run):
        if at + HEAD.size > len(run) or len(messages) == MAX_MESSAGES:
            raise ValueError("no run of messages")
        name_size, control_size, data_size, *rest = HEAD.unpack_from(run, at)
        if name_size > MAX_NAME_BYTES or control_size > MAX_CONTROL_BYTES:
            raise ValueError("a message with too long a name, or with too much control data")
        at += HEAD.size
        parts = []
        for size in () if offers else (name_size, control_size, data_size):
            parts.append(run[at : at + size])
            at += size
        if at > len(run):
            raise ValueError("a message ends before its last part")
        messages.append(Message(name_size, control_size, data_size, *rest, *parts))
    return messages


def passed_descriptors(run: bytes) -> Iterator[int]:
    """Yield the descriptors that the messages of *run* pass on (SCM_RIGHTS).

    Raises:
        ValueError: as `split`.
    """
    for message in split(run):
        for place in _places(message.control):
            yield _FD.unpack_from(message.control, place)[0]


def with_descriptors(run: bytes, others: Mapping[int, int]) -> bytes:
    """Return *run* with *others* in the place of the descriptors that its messages pass on.

    Raises:
        ValueError: as `split`.
        KeyError: one has no other.
    """
    renamed = []
    for message in split(run):
        control = bytearray(message.control)
        for place in _places(message.control):
            _FD.pack_into(control, place, others[_FD.unpack_from(control, place)[0]])
        renamed.append(message._replace(control=bytes(control)).pack())
    return b"".join(renamed)


def _places(control: bytes) -> Iterator[int]:
    """Yield where in control data descriptors are."""
    at = 0
    while at + _CMSGHDR.size <= len(control):
        size, level, kind = _CMSGHDR.unpack_from(control, at)
        if (level, kind) == (_SOL_SOCKET, _SCM_RIGHTS):
            yield from range(at + _CMSGHDR.size, min(at + size, len(control)) - 3, 4)
        if size < _CMSGHDR.size:
            return
        at += size + 7 & ~7
