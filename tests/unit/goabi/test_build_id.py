"""Build ids from note segments, well formed or not."""

import os
import struct
from pathlib import Path

from goabi.build_id import read_build_id
from goabi.elf_header import PT_NOTE, ElfHeader, ProgramHeader

NOTE = struct.Struct("<III")


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    padded = [data + bytes(-len(data) % 4) for data in (name, desc)]
    return NOTE.pack(len(name), len(desc), kind) + b"".join(padded)


def build_id(path: Path, *segments: bytes) -> str:
    data, headers = b"\0" * 64, []
    for segment in segments:
        headers.append(ProgramHeader(PT_NOTE, 4, len(data), 0, len(segment), len(segment), 4))
        data += segment
    path.write_bytes(data)
    return read_build_id(path, ElfHeader("amd64", "EXEC", 0, None, tuple(headers), 0, 0, 0, len(data)))


def test_gos_comes_before_gnus(tmp_path: Path) -> None:
    gnu, go = note(b"GNU\0", 3, bytes(range(20))), note(b"Go\0\0", 4, b"one/two/three/four")
    other = note(b"GNU\0", 1, bytes(16))
    assert build_id(tmp_path / "x", other + gnu) == bytes(range(20)).hex()
    assert build_id(tmp_path / "x", gnu, go) == "one/two/three/four"
    assert build_id(tmp_path / "x", other) == ""
    assert build_id(tmp_path / "x") == ""


def test_damaged_notes_are_no_notes(tmp_path: Path) -> None:
    whole = note(b"Go\0\0", 4, b"one/two/three/four")
    for size in range(len(whole)):
        build_id(tmp_path / "x", whole[:size])
    assert build_id(tmp_path / "x", NOTE.pack(0xFFFFFFFF, 0xFFFFFFFF, 4) + os.urandom(64)) == ""
