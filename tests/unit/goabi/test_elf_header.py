"""read_elf_header on files made byte by byte, and on this Python itself."""

import os
import struct
import sys
from pathlib import Path

import pytest

from goabi.elf_header import PT_INTERP, PT_LOAD, ElfType, decode_elf_header, read_elf_header
from goabi.errors import GoAbiError, NotElfError, TruncatedElfError, WrongArchError, WrongElfTypeError

CORE: tuple[ElfType, ...] = ("CORE",)


def make_elf(
    *,
    cls: int = 2,
    data: int = 1,
    kind: int = 2,
    machine: int = 62,
    segments: list[tuple[int, bytes]] | None = None,
    phentsize: int = 56,
) -> bytes:
    segments = segments if segments is not None else [(PT_LOAD, b"code")]
    ident = b"\x7fELF" + bytes([cls, data, 1]) + bytes(9)
    ehdr = ident + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0x401000, 64, 0, 0, 64, phentsize, len(segments), 64, 0, 0
    )
    offset = 64 + 56 * len(segments)
    table, bodies = b"", b""
    for kind_, body in segments:
        position = offset + len(bodies)
        table += struct.pack("<IIQQQQQQ", kind_, 5, position, 0x400000, 0, len(body), len(body), 1)
        bodies += body
    return ehdr + table + bodies


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


def test_static_program(tmp_path: Path) -> None:
    header = read_elf_header(write(tmp_path, make_elf()))
    assert (header.arch, header.type, header.entry) == ("amd64", "EXEC", 0x401000)
    assert header.interpreter is None
    assert not header.is_dynamic
    assert not header.is_pie
    (segment,) = header.program_headers
    assert (segment.type, segment.offset, segment.vaddr, segment.filesz) == (PT_LOAD, 120, 0x400000, 4)


def test_dynamic_arm64_pie(tmp_path: Path) -> None:
    image = make_elf(
        kind=3, machine=183, segments=[(PT_INTERP, b"/lib/ld-linux-aarch64.so.1\0"), (PT_LOAD, b"x")]
    )
    header = read_elf_header(write(tmp_path, image))
    assert (header.arch, header.type) == ("arm64", "DYN")
    assert header.interpreter == "/lib/ld-linux-aarch64.so.1"
    assert header.is_dynamic
    assert header.is_pie


def test_this_python() -> None:
    header = read_elf_header(sys.executable)
    assert header.arch == {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    assert header.file_size_bytes == Path(sys.executable).stat().st_size


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", NotElfError, "is empty"),
        (b"#!/bin/sh\n", NotElfError, "is a script"),
        (b"MZ\x90\x00", NotElfError, "4d 5a 90 00"),
        (b"\x7fELF", TruncatedElfError, "4 bytes"),
        (make_elf()[:63], TruncatedElfError, "63 bytes"),
        (make_elf()[:100], TruncatedElfError, "program headers"),
        (make_elf()[:-1], TruncatedElfError, "segment 0 ends at byte 124"),
        (make_elf(cls=1), WrongArchError, "32-bit"),
        (make_elf(data=2), WrongArchError, "big-endian"),
        (make_elf(machine=243), WrongArchError, "riscv64"),
        (make_elf(machine=999), WrongArchError, "machine number 999"),
        (make_elf(kind=1), WrongElfTypeError, "object file"),
        (make_elf(kind=4), WrongElfTypeError, "core dump"),
        (make_elf(kind=77), WrongElfTypeError, "ELF type 77"),
        (make_elf(segments=[]), TruncatedElfError, "no program headers"),
        (make_elf(phentsize=57), TruncatedElfError, "57 bytes"),
        (make_elf(segments=[(PT_INTERP, b"/no/end")]), TruncatedElfError, "does not end"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, error: type[GoAbiError], words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(error, match=words) as caught:
        read_elf_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo):
        with pytest.raises(NotElfError, match="not a regular file"):
            read_elf_header(path)
    with pytest.raises(FileNotFoundError):
        read_elf_header(tmp_path / "none")


def test_core_only_when_asked_for() -> None:
    image = make_elf(kind=4)
    header = decode_elf_header("core", lambda n, o: image[o : o + n], len(image), types=CORE)
    assert header.type == "CORE"
    program = make_elf()
    with pytest.raises(WrongElfTypeError, match="where a core dump is needed"):
        decode_elf_header("core", lambda n, o: program[o : o + n], len(program), types=CORE)
