"""The ring's formats: the page with the routine, the shared memory with the records, one record.

    page       = parameters code                         4,096 bytes, mapped readable and executable
    parameters = "ptsring1" version:u32 size:u32 cookie:u64 ring:u64 resume_call:u64 resume_after:u64
                 goid_offset:u64 m_offset:u64 index_mask:u64 buffer_limit:u64 read_errnos:u64[2]
                 entry:u64 entry_bytes[8] after:u64 after_bytes[8] tracer_pid:u32 pad[4] tracer_start:u64
                 ring_bytes:u64 procid_offset:u64 probe_bytes:u64 pad wanted:u64[8]
                 copies:u32[512] at 0x100, code at 0x900
    ring       = head:u64 at 0, limit:u64 at 0x40, lost:u64 at 0x80; records from 0x1000 on
    record     = sequence:u64 start:u64 end:u64 number:u16 frames:u8 pad length0:u16 length1:u16
                 args:u64[6] result:s64 goid:u64 g:u64 tid:u64 stack:u64[16] data[256] pad[16]
    copies     = two descriptors of 16 bits, low one first; 0: none
    descriptor = arg:3 source:2 length_arg:3 after_error:1 units:6 present:1     (lowest bits first)

`head` counts the slots that were taken, `limit` is the first one that must not be taken yet (written by the
reader), `lost` counts the calls that found none. A record is complete when its sequence is its index + 1.
Of the data, the first length0 bytes belong to the first descriptor and the next length1 to the second.

All numbers are little-endian. The ring is written by the program, so nothing in it is trusted: numbers are
bounded before they are used, and whatever the program scribbles there garbles its own trace, no more.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

PAGE_BYTES = 4096
MAGIC = b"ptsring1"
VERSION = 1
CODE_OFFSET = 0x900
WANTED_OFFSET = 0x0C0
COPIES_OFFSET = 0x100
MAX_SYSNO = 512

HEAD_OFFSET, LIMIT_OFFSET, LOST_OFFSET, RECORDS_OFFSET = 0x000, 0x040, 0x080, 0x1000
RECORD_BYTES = 512
MAX_FRAMES = 16
DATA_BYTES = 256

#: sequence, start, end, number, frames, length0, length1, a0..a5, result, goid, g, tid, stack, data.
RECORD = struct.Struct("<QQQHBxHH6Qq3Q128s256s16x")
STACK = struct.Struct(f"<{MAX_FRAMES}Q")

_PARAMETERS = struct.Struct("<8sII8Q2QQ8sQ8sI4xQQQQ")
_WANTED = struct.Struct("<8Q")
_COPIES = struct.Struct(f"<{MAX_SYSNO}I")


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the page says besides its code: see the grammar. Addresses are the program's.

    entry, entry_bytes: the first patched place and what was there; after, after_bytes: the second.
    probe_bytes: how large the area of probes behind the page is (`ring_probes.py`); 0: there is none.
    tracer_pid, tracer_start: who installed it (start time in clock ticks since boot, from /proc/PID/stat).
    """

    cookie: int
    ring: int
    resume_call: int
    resume_after: int
    goid_offset: int
    m_offset: int
    index_mask: int
    buffer_limit: int
    read_errnos: int
    entry: int
    entry_bytes: bytes
    after: int
    after_bytes: bytes
    tracer_pid: int
    tracer_start: int
    ring_bytes: int
    procid_offset: int
    probe_bytes: int = 0

    @property
    def mapped_bytes(self) -> int:
        """How much is mapped at the page's address."""
        return PAGE_BYTES + self.probe_bytes

    def encode(self) -> bytes:
        """Return the page's first bytes."""
        return _PARAMETERS.pack(
            MAGIC,
            VERSION,
            PAGE_BYTES,
            self.cookie,
            self.ring,
            self.resume_call,
            self.resume_after,
            self.goid_offset,
            self.m_offset,
            self.index_mask,
            self.buffer_limit,
            self.read_errnos & 0xFFFF_FFFF_FFFF_FFFF,
            self.read_errnos >> 64,
            self.entry,
            self.entry_bytes,
            self.after,
            self.after_bytes,
            self.tracer_pid,
            self.tracer_start,
            self.ring_bytes,
            self.procid_offset,
            self.probe_bytes,
        )


def encode_page(parameters: Parameters, wanted: set[int], copies: dict[int, int], code: bytes) -> bytes:
    """Return the whole page. wanted: numbers of the calls to record; copies: per number, its descriptors.

    Raises:
        ValueError: the code does not fit.
    """
    page = bytearray(PAGE_BYTES)
    head = parameters.encode()
    page[: len(head)] = head
    page[WANTED_OFFSET : WANTED_OFFSET + _WANTED.size] = encode_wanted(wanted)
    _COPIES.pack_into(page, COPIES_OFFSET, *(copies.get(number, 0) for number in range(MAX_SYSNO)))
    if CODE_OFFSET + len(code) > PAGE_BYTES:
        raise ValueError(f"{len(code)} bytes of code do not fit into the page")
    page[CODE_OFFSET : CODE_OFFSET + len(code)] = code
    return bytes(page)


def encode_wanted(wanted: set[int]) -> bytes:
    """Return the bitmap of the calls to record; numbers from 512 up are never recorded."""
    words = [0] * 8
    for number in wanted:
        if number < MAX_SYSNO:
            words[number >> 6] |= 1 << (number & 63)
    return _WANTED.pack(*words)


def decode_parameters(page: bytes) -> Parameters | None:
    """Return the parameters of a page, or None if it is not one of these."""
    if len(page) < _PARAMETERS.size:
        return None
    magic, version, size, *fields = _PARAMETERS.unpack_from(page)
    if magic != MAGIC or version != VERSION or size != PAGE_BYTES:
        return None
    cookie, ring, resume_call, resume_after, goid, m, mask, limit, low, high, *rest = fields
    entry, entry_bytes, after, after_bytes, tracer_pid, tracer_start, ring_bytes, procid, probe_bytes = rest
    return Parameters(
        cookie=cookie,
        ring=ring,
        resume_call=resume_call,
        resume_after=resume_after,
        goid_offset=goid,
        m_offset=m,
        index_mask=mask,
        buffer_limit=limit,
        read_errnos=low | high << 64,
        entry=entry,
        entry_bytes=entry_bytes,
        after=after,
        after_bytes=after_bytes,
        tracer_pid=tracer_pid,
        tracer_start=tracer_start,
        ring_bytes=ring_bytes,
        procid_offset=procid,
        probe_bytes=probe_bytes,
    )


class Source(IntEnum):
    """How many bytes are copied. RESULT: as many as the call returned, at most the length argument."""

    STRING = 0
    RESULT = 1
    ARGUMENT = 2
    CONSTANT = 3


class Copy(NamedTuple):
    """One descriptor. arg: index of the pointer; length_arg: for RESULT and ARGUMENT; size_bytes: for CONSTANT.

    after_error: it is copied although the call failed, if it did so with one of the page's `read_errnos`.
    """

    arg: int
    source: Source
    length_arg: int = 0
    after_error: bool = False
    size_bytes: int = 0

    def encode(self) -> int:
        """Return the 16 bits."""
        units = min(self.size_bytes // 8, 63)
        bits = self.arg | self.source << 3 | self.length_arg << 5 | self.after_error << 8
        return bits | units << 9 | 1 << 15


def encode_copies(copies: tuple[Copy, ...]) -> int:
    """Return the 32 bits for a call; only the first two copies count."""
    return sum(copy.encode() << 16 * index for index, copy in enumerate(copies[:2]))
