"""Cores and compressed sections made byte by byte."""

import struct
import zlib
from pathlib import Path

import pytest

from goabi.core import CoreFile, MappedFile
from goabi.elf import ElfFile
from goabi.elf_header import PT_LOAD, PT_NOTE
from goabi.errors import CoreError, MemoryFaultError, TruncatedElfError, WrongElfTypeError
from goabi.memory import BytesMemory

NT_PRSTATUS, NT_AUXV, NT_FILE = 1, 6, 0x46494C45
Segment = tuple[int, int, bytes, int]  # type, address, bytes in the file, size in memory


def note(kind: int, data: bytes, owner: bytes = b"CORE\0") -> bytes:
    return (
        struct.pack("<III", len(owner), len(data), kind)
        + owner.ljust(-(-len(owner) // 4) * 4, b"\0")
        + data.ljust(-(-len(data) // 4) * 4, b"\0")
    )


def prstatus(tid: int, **registers: int) -> bytes:
    names = (
        *(
            "r15",
            "r14",
            "r13",
            "r12",
            "rbp",
            "rbx",
            "r11",
            "r10",
            "r9",
            "r8",
            "rax",
            "rcx",
            "rdx",
            "rsi",
            "rdi",
        ),
        *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
    )
    head = bytes(32) + struct.pack("<I", tid) + bytes(76)
    return head + struct.pack("<27Q", *(registers.get(name, 0) for name in names)) + bytes(8)


def make_core(*segments: Segment, kind: int = 4) -> bytes:
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", kind, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    table, bodies, offset = b"", b"", 64 + 56 * len(segments)
    for type_, addr, data, size in segments:
        table += struct.pack("<IIQQQQQQ", type_, 6, offset + len(bodies), addr, 0, len(data), size, 1)
        bodies += data
    return header + table + bodies


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(4096) + b"from the file".ljust(4096, b"."))
    return path


@pytest.fixture
def core(tmp_path: Path, mapped: Path) -> Path:
    files = struct.pack("<QQ", 1, 4096) + struct.pack("<QQQ", 0x400000, 0x401000, 1) + bytes(mapped) + b"\0"
    notes = b"".join(
        [
            note(NT_PRSTATUS, prstatus(7, rip=0x400010, rsp=0x7000, r14=3)),
            note(NT_PRSTATUS, prstatus(8, rip=0x400020)),
            note(NT_AUXV, struct.pack("<4Q", 9, 0x400000, 0, 0)),
            note(NT_FILE, files),
            note(NT_PRSTATUS, b"someone else's", owner=b"LINUX\0"),
        ]
    )
    path = tmp_path / "core"
    path.write_bytes(
        make_core(
            (PT_NOTE, 0, notes, 0),
            (PT_LOAD, 0x400000, b"", 0x1000),
            (PT_LOAD, 0x7000, b"stack of the program", 0x1000),
            (PT_LOAD, 0x9000, b"more", 4),
        )
    )
    return path


def test_threads_files_and_entry(core: Path, mapped: Path) -> None:
    with CoreFile(core) as memory:
        assert list(memory.threads) == [7, 8]
        registers = memory.registers_of(7)
        assert registers is not None
        assert (registers["rip"], registers["rsp"], registers["r14"]) == (0x400010, 0x7000, 3)
        assert memory.registers_of(9) is None
        assert memory.entry == 0x400000
        assert memory.mapped_files == (MappedFile(0x400000, 0x401000, 4096, str(mapped)),)
        assert memory.executable == str(mapped)
        assert memory.arch.name == "amd64"


def test_memory_is_the_cores_else_the_files_else_the_fallbacks(core: Path) -> None:
    fallback = BytesMemory([(0x7014, b"fallback"), (0x400000, b"not asked")])
    with CoreFile(core, fallback) as memory:
        assert memory.read(0x7000, 5) == b"stack"
        assert memory.read(0x700D, 15) == b"programfallback"
        assert memory.read(0x400000, 8) == b"from the"
    with CoreFile(core, fallback, use_files=False) as memory:
        assert memory.read(0x400000, 3) == b"not"
    with CoreFile(core) as memory:
        # What was not dumped is not zero: it is not there.
        for addr in (0x7014, 0x8000, 0x9004, 0x100):
            with pytest.raises(MemoryFaultError, match="not in the core"):
                memory.read(addr, 1)


def test_core_cut_short_is_read_as_far_as_it_goes(core: Path) -> None:
    core.write_bytes(core.read_bytes()[:-10])
    with CoreFile(core) as memory:
        assert memory.read(0x7000, 14) == b"stack of the p"
        with pytest.raises(MemoryFaultError, match="cut short"):
            memory.read(0x9000, 1)


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        (note(NT_PRSTATUS, bytes(100)), "registers are cut short"),
        (note(NT_FILE, b"x" * 8), "mapped files is damaged"),
        (note(NT_FILE, struct.pack("<QQ", 1 << 60, 4096)), "mapped files is damaged"),
        (note(NT_FILE, struct.pack("<QQQQQ", 1, 4096, 0, 1, 2)), None),
        (b"", "no auxiliary vector"),
    ],
)
def test_bad_notes(tmp_path: Path, notes: bytes, words: str | None) -> None:
    path = tmp_path / "core"
    path.write_bytes(make_core((PT_NOTE, 0, notes, 0)))
    with CoreFile(path) as memory:
        if words is None:
            assert memory.mapped_files == (MappedFile(0, 1, 8192, ""),)
            return
        with pytest.raises(CoreError, match=words):
            _ = memory.threads, memory.mapped_files, memory.entry


def test_program_is_no_core(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(make_core((PT_LOAD, 0, b"x", 1), kind=2))
    with pytest.raises(WrongElfTypeError, match="core dump is needed"):
        CoreFile(path)


def with_sections(*sections: tuple[str, int, bytes]) -> bytes:
    """A program with sections of these names, flags and bytes."""
    image = bytearray(make_core((PT_LOAD, 0, b"x", 1), kind=2))
    names, headers = b"\0", bytes(64)
    for name, flags, data in sections:
        headers += struct.pack("<IIQQQQIIQQ", len(names), 1, flags, 0, len(image), len(data), 0, 0, 1, 0)
        names += name.encode() + b"\0"
        image += data
    headers += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, len(image), len(names), 0, 0, 1, 0)
    image += names
    image[40:48] = len(image).to_bytes(8, "little")
    image[60:64] = struct.pack("<HH", len(sections) + 2, len(sections) + 1)
    return bytes(image + headers)


def compressed(data: bytes, size: int | None = None, kind: int = 1) -> bytes:
    return struct.pack("<IIQQ", kind, 0, len(data) if size is None else size, 1) + zlib.compress(data)


def test_compressed_sections(tmp_path: Path) -> None:
    data = b"debugging " * 100
    path = tmp_path / "program"
    path.write_bytes(
        with_sections(
            (".debug_info", 0x800, compressed(data)),
            (".zdebug_line", 0, b"ZLIB" + len(data).to_bytes(8, "big") + zlib.compress(data)),
            (".plain", 0, b"as it is"),
            (".small", 0x800, compressed(data, size=7)),
            (".bomb", 0x800, compressed(data, size=1 << 50)),
            (".other", 0x800, compressed(data, kind=9)),
            (".bad", 0x800, compressed(data)[:24] + b"no zlib"),
            (".tiny", 0x800, b"x"),
        )
    )
    with ElfFile(path) as elf:
        assert elf.section_data(".debug_info") == data
        assert elf.section_data(".debug_line") == data
        assert elf.section_data(".plain") == b"as it is"
        assert elf.section_data(".none") is None
        for name in (".small", ".bomb", ".other", ".bad", ".tiny"):
            with pytest.raises(TruncatedElfError, match=rf"section \{name}"):
                elf.section_data(name)
