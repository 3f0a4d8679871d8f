"""Encodes ELF core files. Pure; little-endian, 64 bits. What the bytes mean is what `goabi.core` reads.

    core     = Ehdr, Phdr of the notes, Phdr per segment, notes, padding to a page, segments' bytes, each at a page
    notes    = PRPSINFO AUXV FILE TIME (PRSTATUS FPREGSET X86_XSTATE?)*    the current thread first
    note     = namesz:u32 descsz:u32 type:u32 name NUL padding desc padding       (padded to 4 bytes)
    TIME     = monotonic_ns:u64, owner "ptserver": the program's clock when it was stopped

Source: elf(5), core(5); linux/elfcore.h, fs/binfmt_elf.c, include/linux/elfcore-compat.h.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stepping.maps import PAGE_BYTES
from stepping.syscalls.model import Arch

_EHDR = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_NHDR = struct.Struct("<III")
_PRSTATUS_HEAD = struct.Struct("<12xH2x16xiiii64x")
_PRPSINFO = struct.Struct("<4B4xQIIiiii16s80s")

_ET_CORE, _PT_LOAD, _PT_NOTE = 4, 1, 4
_MACHINES: dict[Arch, int] = {"amd64": 62, "arm64": 183}
_FLAGS = {"r": 4, "w": 2, "x": 1}

_NT_PRSTATUS, _NT_FPREGSET, _NT_PRPSINFO, _NT_AUXV = 1, 2, 3, 6
_NT_FILE, _NT_X86_XSTATE = 0x46494C45, 0x202

#: The owner and type of the note that tells the time.
TIME_OWNER, TIME_TYPE = "ptserver", 0x54494D45

#: How many segments a core's header can count.
MAX_SEGMENTS = 0xFFFE


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of memory, [start, end), with its permissions as in maps; `kept`: whether the core holds its bytes."""

    start: int
    end: int
    perms: str
    kept: bool


@dataclass(frozen=True, slots=True)
class ThreadState:
    """A thread's register sets, in the kernel's layout; xstate is empty where there is none."""

    tid: int
    general: bytes
    floating: bytes
    xstate: bytes


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What a core says of the process. files: (start, end, offset in bytes, path) of what is mapped."""

    pid: int
    ppid: int
    pgrp: int
    sid: int
    uid: int
    gid: int
    state: str
    name: bytes
    arguments: bytes
    auxv: bytes
    files: Sequence[tuple[int, int, int, bytes]]
    monotonic_ns: int


def encode_notes(process: ProcessState, threads: Iterable[ThreadState]) -> bytes:
    """Return the notes, the first of *threads* as the current one."""
    state_names = "RSDTZW"
    number = state_names.find(process.state)
    info = _PRPSINFO.pack(
        *(max(number, 0), ord(process.state[:1] or "."), process.state == "Z", 0, 0),
        *(process.uid, process.gid, process.pid, process.ppid, process.pgrp, process.sid),
        *(process.name, process.arguments.replace(b"\0", b" ").rstrip()),
    )
    parts = [
        _note("CORE", _NT_PRPSINFO, info),
        _note("CORE", _NT_AUXV, process.auxv),
        _note("CORE", _NT_FILE, _files(process.files)),
        _note(TIME_OWNER, TIME_TYPE, struct.pack("<Q", process.monotonic_ns)),
    ]
    for thread in threads:
        head = _PRSTATUS_HEAD.pack(0, thread.tid, process.ppid, process.pgrp, process.sid)
        parts.append(_note("CORE", _NT_PRSTATUS, head + thread.general + struct.pack("<i4x", 1)))
        parts.append(_note("CORE", _NT_FPREGSET, thread.floating))
        if thread.xstate:
            parts.append(_note("LINUX", _NT_X86_XSTATE, thread.xstate))
    return b"".join(parts)


def place_segments(segments: Sequence[Segment], notes_bytes: int) -> list[int]:
    """Return where in the file each segment's bytes go, and at the end where the file ends."""
    position = _EHDR.size + _PHDR.size * (1 + len(segments)) + notes_bytes
    position = -(-position // PAGE_BYTES) * PAGE_BYTES
    offsets = []
    for segment in segments:
        offsets.append(position)
        if segment.kept:
            position += segment.end - segment.start
    return [*offsets, position]


def encode_headers(arch: Arch, segments: Sequence[Segment], offsets: Sequence[int], notes: bytes) -> bytes:
    """Return the beginning of the file, up to the segments' bytes."""
    count = 1 + len(segments)
    at = _EHDR.size + _PHDR.size * count
    ident = (b"\x7fELF", 2, 1, 1, 0)
    parts = [
        _EHDR.pack(
            *ident,
            *(_ET_CORE, _MACHINES[arch], 1, 0, _EHDR.size, 0, 0),
            *(_EHDR.size, _PHDR.size, count, 0, 0, 0),
        ),
        _PHDR.pack(_PT_NOTE, 0, at, 0, 0, len(notes), 0, 4),
    ]
    for segment, offset in zip(segments, offsets, strict=False):
        size = segment.end - segment.start
        flags = sum(flag for letter, flag in _FLAGS.items() if letter in segment.perms[:3])
        kept = size if segment.kept else 0
        parts.append(_PHDR.pack(_PT_LOAD, flags, offset, segment.start, 0, kept, size, PAGE_BYTES))
    return b"".join([*parts, notes])


def _files(files: Sequence[tuple[int, int, int, bytes]]) -> bytes:
    table = b"".join(struct.pack("<QQQ", start, end, offset // PAGE_BYTES) for start, end, offset, _ in files)
    names = b"".join(path + b"\0" for *_, path in files)
    return struct.pack("<QQ", len(files), PAGE_BYTES) + table + names


def _note(owner: str, kind: int, data: bytes) -> bytes:
    name = owner.encode() + b"\0"
    return _NHDR.pack(len(name), len(data), kind) + _padded(name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
