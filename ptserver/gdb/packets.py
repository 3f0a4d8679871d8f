"""Packets of the GDB remote protocol: from bytes, and to bytes. Pure.

    stream    = { packet | "+" | "-" | interrupt }
    packet    = "$" data "#" checksum:two-hex-digits    (the sum of the data's bytes, modulo 256)
    data      = { byte | "}" (byte XOR 0x20) | byte "*" (count + 29) }
    interrupt = 0x03

In data, ``#``, ``$`` and ``}`` are always escaped, ``*`` in answers; ``*`` repeats the byte in front of it. Not
trusted: the stream. What is between packets and means nothing is skipped.

Source: GDB manual, appendix E, "Overview" (of the remote serial protocol).
"""

from typing import NamedTuple

#: The longest packet that is taken: PacketSize as it is announced.
MAX_PACKET_BYTES = 0x4000

_ESCAPE, _REPEAT = 0x7D, 0x2A
_ESCAPED = frozenset(b"#$}*")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Packet(NamedTuple):
    """A packet whose checksum is right, with its data as it was meant."""

    data: bytes


class Damaged(NamedTuple):
    """A packet whose checksum is wrong, or which makes no sense; the sender is to repeat it."""


class Acknowledged(NamedTuple):
    """The peer has (or, not *good*, has not) understood the last packet."""

    good: bool


class Interrupt(NamedTuple):
    """The user has pressed ^C."""


Event = Packet | Damaged | Acknowledged | Interrupt


def encode(data: bytes) -> bytes:
    """Return the packet that carries *data*."""
    escaped = bytearray()
    for byte in data:
        if byte in _ESCAPED:
            escaped += bytes((_ESCAPE, byte ^ 0x20))
        else:
            escaped.append(byte)
    return b"$%s#%02x" % (bytes(escaped), sum(escaped) & 0xFF)


class Decoder:
    """Takes a stream apart."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        """Take in *data*; return what is complete now."""
        self._buffer += data
        events: list[Event] = []
        while self._buffer:
            first = self._buffer[0]
            if first == 0x24:
                end = self._buffer.find(b"#")
                if end < 0 or len(self._buffer) < end + 3:
                    if len(self._buffer) > 2 * MAX_PACKET_BYTES:
                        self._buffer.clear()
                        events.append(Damaged())
                    return events
                events.append(_decode(bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])))
                del self._buffer[: end + 3]
                continue
            if first == 0x03:
                events.append(Interrupt())
            elif first in b"+-":
                events.append(Acknowledged(first == 0x2B))
            del self._buffer[0]
        return events


def _decode(raw: bytes, checksum: bytes) -> Event:
    if not _HEX.issuperset(checksum) or int(checksum, 16) != sum(raw) & 0xFF:
        return Damaged()
    data = bytearray()
    index = 0
    while index < len(raw):
        byte = raw[index]
        index += 1
        if byte == _ESCAPE:
            if index == len(raw):
                return Damaged()
            data.append(raw[index] ^ 0x20)
            index += 1
        elif byte == _REPEAT:
            if index == len(raw) or not data or raw[index] < 29:
                return Damaged()
            data += data[-1:] * (raw[index] - 29)
            index += 1
        else:
            data.append(byte)
    return Packet(bytes(data))
