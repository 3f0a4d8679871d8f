"""A ring's records without what is empty in them, for a file.

    packed = {record}
    record = the first 112 bytes of a ring's record (see `ring_layout`), stack[8 * frames], data[length0 + length1]

No more than 16 frames and 256 bytes of data count, whatever the record says. A record takes 130 to 250 bytes as a
rule, in place of 512.

Not trusted: the records, packed or not.
"""

import struct

from stepping.ring_layout import DATA_BYTES, MAX_FRAMES, RECORD_BYTES

_FRAMES_AT, _LENGTHS_AT = 26, (28, 30)
_SIZES = struct.Struct("<BxHH")
_STACK_AT = 112
_DATA_AT = _STACK_AT + 8 * MAX_FRAMES
_DATA_ROOM = RECORD_BYTES - _DATA_AT


def pack(records: bytes) -> bytes:
    """Return whole records packed."""
    frames = memoryview(records)[_FRAMES_AT::RECORD_BYTES].tolist()
    halves = memoryview(records).cast("H")
    first, second = (halves[at // 2 :: RECORD_BYTES // 2].tolist() for at in _LENGTHS_AT)
    pieces: list[bytes] = []
    add = pieces.append
    for at, depth, one, other in zip(
        range(0, len(records), RECORD_BYTES), frames, first, second, strict=True
    ):
        add(records[at : at + _STACK_AT + 8 * (depth if depth < MAX_FRAMES else MAX_FRAMES)])
        size = one + other
        if size:
            add(records[at + _DATA_AT : at + _DATA_AT + (size if size < DATA_BYTES else DATA_BYTES)])
    return b"".join(pieces)


def unpack(packed: bytes) -> tuple[bytes, int]:
    """Return the records, and how many bytes they took; what is left is the beginning of one that was cut off."""
    pieces: list[bytes] = []
    add, sizes_at = pieces.append, _SIZES.unpack_from
    at, end = 0, len(packed)
    while at + _STACK_AT <= end:
        depth, first, second = sizes_at(packed, at + _FRAMES_AT)
        data_at = at + _STACK_AT + 8 * (depth if depth < MAX_FRAMES else MAX_FRAMES)
        size = first + second
        data_end = data_at + (size if size < DATA_BYTES else DATA_BYTES)
        if data_end > end:
            break
        add(packed[at:data_at].ljust(_DATA_AT, b"\0"))
        add(packed[data_at:data_end].ljust(_DATA_ROOM, b"\0"))
        at = data_end
    return b"".join(pieces), at
