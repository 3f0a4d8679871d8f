"""Protocol buffers' wire format, as much as the files of a trace need: fields are encoded, and split when read back.

    message = *field
    field   = varint(number << 3 | 0) varint            a number; signed ones as 64 bits of two's complement
            | varint(number << 3 | 2) varint(size) bytes    text, bytes, a message, or packed numbers
    varint  = *(low 7 bits | 0x80) last 7 bits          little end first

It stands here because the two formats that use it need few messages, one of them at full speed: the builder in the
package `perfetto` takes twice as long for the packets of a call, and 0.2 s to import, and knows no profiles. Tests
read with its parser what is written here.

Not trusted: bytes that are read. Thread rules: any thread may call these.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterable, Iterator

from ptserver.tracelog.errors import TraceFormatError

_BITS = 14
_MASK = (1 << _BITS) - 1
_WORD = (1 << 64) - 1

#: Two bytes at a time, since a time of today takes eight: the last ones of a varint, and those before. The first
#: table is that of tags too: fields are numbered below 2048.
_LAST = tuple(bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(_MASK + 1))
_MORE = tuple(bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(_MASK + 1))

#: One byte, and more to come. A table that stays in the processor's cache, as the others do not.
_SMALL = tuple(bytes((n | 0x80,)) for n in range(128))

_NUMBER = 0
_BYTES = 2


def varint(number: int) -> bytes:
    """Return *number*, of which 64 bits count; a negative one is written as its two's complement."""
    if 0 <= number <= _MASK:
        return _LAST[number]
    number &= _WORD
    encoded = b""
    while number > _MASK:
        encoded += _MORE[number & _MASK]
        number >>= _BITS
    return encoded + _LAST[number]


def varints(numbers: Iterable[int]) -> list[bytes]:
    """Return `varint` of each number, quickly if they are large and close to each other, as times are."""
    small, tops = _SMALL, _Tops()
    return [
        small[number & 127] + small[number >> 7 & 127] + tops[number >> _BITS]
        if number > _MASK
        else _LAST[number]
        for number in numbers
    ]


class _Tops(dict[int, bytes]):
    """The rest of numbers, after their lowest two bytes."""

    def __missing__(self, number: int) -> bytes:
        encoded = self[number] = varint(number)
        return encoded


def number_field(field: int, number: int) -> bytes:
    """Return field *field* with a number: int32, int64, uint32, uint64, bool or an enum."""
    if 0 <= number <= _MASK:
        return _LAST[field << 3] + _LAST[number]
    return _LAST[field << 3] + varint(number)


def fixed64_field(field: int, number: int) -> bytes:
    """Return field *field* with a number of type fixed64, unsigned."""
    return varint(field << 3 | 1) + number.to_bytes(8, "little")


def bytes_field(field: int, content: bytes) -> bytes:
    """Return field *field* with bytes or an encoded message."""
    size = len(content)
    return _LAST[field << 3 | _BYTES] + (_LAST[size] if size <= _MASK else varint(size)) + content


def text_field(field: int, text: str) -> bytes:
    """Return field *field* with text. What UTF-8 cannot hold (undecodable file names) is shown as an escape."""
    return bytes_field(field, text.encode(errors="backslashreplace"))


def packed_field(field: int, numbers: Iterable[int]) -> bytes:
    """Return field *field* with several numbers."""
    return bytes_field(field, b"".join(map(varint, numbers)))


def split_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Return the fields of *message* in their order: number and content. Numbers are unsigned, 64 bits.

    Raises:
        TraceFormatError: the message is malformed, or ends in the middle of a field; the fields before were given.
    """
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        if tag & 7 == _NUMBER:
            number, position = _read_varint(message, position)
            yield tag >> 3, number
            continue
        if tag & 7 != _BYTES:
            raise TraceFormatError(f"protobuf field {tag >> 3} is of kind {tag & 7}, which traces do not use")
        size, position = _read_varint(message, position)
        if size > len(message) - position:
            raise TraceFormatError(f"a protobuf message ends inside field {tag >> 3}")
        yield tag >> 3, message[position : position + size]
        position += size


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise TraceFormatError("a protobuf message ends inside a number")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & _WORD, position
    raise TraceFormatError("a protobuf number has more than 64 bits")
