"""The build id of a program, read from its note segments: Go's if it has one, else GNU's.

    note = namesz:u32 descsz:u32 type:u32 name desc       name and desc padded to 4 bytes

Source: elf(5); cmd/link/internal/ld/elf.go (ELF_NOTE_GOBUILDID_TAG), `ld --build-id`. Nothing of the file is trusted.
Any thread may call this.
"""

import os
import struct
from collections.abc import Iterator

from goabi.elf_header import PT_NOTE, ElfHeader

_NOTE = struct.Struct("<III")
_GO, _GNU = (b"Go\0\0", 4), (b"GNU\0", 3)
_MAX_SEGMENT_BYTES = 1 << 16


def read_build_id(path: str | os.PathLike[str], header: ElfHeader) -> str:
    """Return the build id of the program at *path*, "" without one. GNU's is in hexadecimal.

    Raises: OSError when the file cannot be read.
    """
    found: dict[tuple[bytes, int], bytes] = {}
    with open(path, "rb") as file:
        for segment in header.program_headers:
            if segment.type == PT_NOTE:
                notes = os.pread(file.fileno(), min(segment.filesz, _MAX_SEGMENT_BYTES), segment.offset)
                found |= dict(_notes(notes))
    if _GO in found:
        return found[_GO].decode("ascii", "replace")
    return found.get(_GNU, b"").hex()


def _notes(data: bytes) -> Iterator[tuple[tuple[bytes, int], bytes]]:
    at = 0
    while at + _NOTE.size <= len(data):
        name_bytes, desc_bytes, kind = _NOTE.unpack_from(data, at)
        name_at = at + _NOTE.size
        desc_at = name_at + (name_bytes + 3 & ~3)
        yield (data[name_at : name_at + name_bytes], kind), data[desc_at : desc_at + desc_bytes]
        at = desc_at + (desc_bytes + 3 & ~3)
