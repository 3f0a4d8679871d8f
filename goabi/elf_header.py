"""The ELF header and program headers of a file, read in some 50 microseconds and without any library.

Who only has to know whether a file can be run (a launcher) or where its segments lie asks here; sections,
symbols and notes are `goabi.elf`'s. Nothing of the file is trusted: every offset is checked against the
file's size before it is used. Layout, all little-endian:

    file           = e_ident e_type:u16 e_machine:u16 e_version:u32 e_entry:u64 e_phoff:u64 e_shoff:u64
                     e_flags:u32 e_ehsize:u16 e_phentsize:u16 e_phnum:u16 e_shentsize:u16 e_shnum:u16
                     e_shstrndx:u16 ...
    e_ident        = 7F "ELF" class:u8(2) data:u8(1) version:u8(1) pad[9]
    program header = p_type:u32 p_flags:u32 p_offset:u64 p_vaddr:u64 p_paddr:u64 p_filesz:u64 p_memsz:u64
                     p_align:u64

Source: elf(5); System V ABI, chapters 4 and 5. Any thread may call these functions.
"""

import os
import stat
import struct
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

from goabi.errors import NotElfError, TruncatedElfError, WrongArchError, WrongElfTypeError

ArchName = Literal["amd64", "arm64"]
ElfType = Literal["EXEC", "DYN", "CORE"]

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
PF_X, PF_W, PF_R = 1, 2, 4

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR_INFO = struct.Struct("<I")
_SHDR_BYTES, _SH_INFO_OFFSET = 64, 44
_PN_XNUM = 0xFFFF
_MAX_PROGRAM_HEADERS = 1 << 20
_MAX_INTERPRETER_BYTES = 4096  # PATH_MAX

_MACHINES: dict[int, ArchName] = {62: "amd64", 183: "arm64"}
_OTHER_MACHINES = {
    2: "sparc", 3: "386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 243: "riscv64",
    258: "loong64",
}  # fmt: skip
_TYPES: dict[int, ElfType] = {2: "EXEC", 3: "DYN", 4: "CORE"}
_PROGRAM: tuple[ElfType, ...] = ("EXEC", "DYN")
_TYPE_NAMES = {
    0: "no type",
    1: "an object file",
    2: "a program",
    3: "a program or shared object",
    4: "a core dump",
}

Pread = Callable[[int, int], bytes]
"""`pread(size, offset)`: up to `size` bytes of the file, fewer at its end."""


class ProgramHeader(NamedTuple):
    """One segment: `type` (PT_*), `flags` (PF_*), its place in file and memory, in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int
    align: int


class ElfHeader(NamedTuple):
    """What the kernel looks at before it runs a file.

    `entry` and the segments' `vaddr` are as linked: add the load bias when `type` is "DYN". `interpreter` is
    the dynamic linker's path, None when the kernel runs the file alone (a plain Go binary). `shoff`, `shnum`
    and `shstrndx` are the raw section fields, unchecked: a stripped or cut section table is no error here.
    """

    arch: ArchName
    type: ElfType
    entry: int
    interpreter: str | None
    program_headers: tuple[ProgramHeader, ...]
    shoff: int
    shnum: int
    shstrndx: int
    file_size_bytes: int

    @property
    def is_pie(self) -> bool:
        """Whether the kernel chooses where the file is loaded."""
        return self.type == "DYN"

    @property
    def is_dynamic(self) -> bool:
        """Whether a dynamic linker runs first (cgo binaries, and Go's PIE when linked externally)."""
        return self.interpreter is not None


def read_elf_header(path: str | os.PathLike[str]) -> ElfHeader:
    """The header of the program at `path`, after all checks that can be made without its sections.

    Raises: `OSError` when it cannot be opened or read; `NotElfError`, `TruncatedElfError`,
    `WrongArchError`, `WrongElfTypeError` (not an executable or PIE).
    """
    name = os.fspath(path)
    # O_NONBLOCK: a fifo's open must not wait for a writer.
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotElfError(name, "not a regular file, so not a program; name an ELF executable")
        return decode_elf_header(name, lambda size, offset: os.pread(fd, size, offset), status.st_size)
    finally:
        os.close(fd)


def decode_elf_header(
    name: str, pread: Pread, size_bytes: int, types: Collection[ElfType] = _PROGRAM
) -> ElfHeader:
    """The header of an ELF image of `size_bytes` that `pread` reads.

    `name` is for messages, `types` are those allowed.

    Raises: `NotElfError`, `TruncatedElfError`, `WrongArchError`, `WrongElfTypeError`.
    """
    raw = pread(_EHDR.size, 0)
    if raw[:4] != b"\x7fELF":
        raise NotElfError(name, f"not an ELF file (it {_beginning(raw)}); name a compiled program")
    if len(raw) >= 6:
        if raw[4] != 2:
            raise WrongArchError(name, "a 32-bit ELF file; only amd64 and arm64 programs are supported")
        if raw[5] != 1:
            raise WrongArchError(name, "a big-endian ELF file; only amd64 and arm64 programs are supported")
    if len(raw) < _EHDR.size:
        raise TruncatedElfError(name, f"cut short: {len(raw)} bytes, less than an ELF header; copy it again")
    fields = _EHDR.unpack(raw)
    _, e_type, e_machine, _, entry, phoff, shoff, _, _, phentsize, phnum, _, shnum, shstrndx = fields
    arch = _MACHINES.get(e_machine)
    if arch is None:
        machine = _OTHER_MACHINES.get(e_machine, f"machine number {e_machine}")
        raise WrongArchError(name, f"built for {machine}; only amd64 and arm64 programs are supported")
    elf_type = _TYPES.get(e_type)
    if elf_type is None or elf_type not in types:
        what = _TYPE_NAMES.get(e_type, f"ELF type {e_type}")
        wanted = "a core dump" if "EXEC" not in types else "an executable"
        raise WrongElfTypeError(name, f"an ELF file, but {what}, where {wanted} is needed")
    if phnum == _PN_XNUM:
        phnum = _extended_phnum(name, pread, shoff)
    headers = _decode_program_headers(name, pread, size_bytes, phoff, phentsize, phnum)
    if elf_type != "CORE":
        # A core cut short can still be read in part; a program cut short cannot be run.
        _check_inside_file(name, headers, size_bytes)
    interpreter = _decode_interpreter(name, pread, headers)
    return ElfHeader(arch, elf_type, entry, interpreter, headers, shoff, shnum, shstrndx, size_bytes)


def _beginning(raw: bytes) -> str:
    if not raw:
        return "is empty"
    if raw[:2] == b"#!":
        return "is a script"
    return f"begins with {raw[:4].hex(' ')}"


def _extended_phnum(name: str, pread: Pread, shoff: int) -> int:
    """The count of program headers when it does not fit 16 bits (cores of programs with many mappings)."""
    raw = pread(_SHDR_INFO.size, shoff + _SH_INFO_OFFSET) if 0 < shoff < 1 << 62 else b""
    if len(raw) != _SHDR_INFO.size:
        raise TruncatedElfError(name, "cut short: the section header with the count of segments is missing")
    count = int(_SHDR_INFO.unpack(raw)[0])
    if count > _MAX_PROGRAM_HEADERS:
        raise TruncatedElfError(name, f"damaged: {count} program headers")
    return count


def _decode_program_headers(
    name: str, pread: Pread, size_bytes: int, phoff: int, phentsize: int, phnum: int
) -> tuple[ProgramHeader, ...]:
    if phnum == 0:
        raise TruncatedElfError(name, "damaged: it has no program headers, so nothing to load")
    if phentsize != _PHDR.size:
        raise TruncatedElfError(
            name, f"damaged: program headers of {phentsize} bytes instead of {_PHDR.size}"
        )
    table_bytes = phnum * _PHDR.size
    raw = pread(table_bytes, phoff) if phoff + table_bytes <= size_bytes else b""
    if len(raw) != table_bytes:
        raise TruncatedElfError(
            name, f"cut short: program headers at {phoff:#x}, file of {size_bytes} bytes; copy it again"
        )
    return tuple(
        ProgramHeader(kind, flags, offset, vaddr, filesz, memsz, align)
        for kind, flags, offset, vaddr, _, filesz, memsz, align in _PHDR.iter_unpack(raw)
    )


def _check_inside_file(name: str, headers: tuple[ProgramHeader, ...], size_bytes: int) -> None:
    for number, header in enumerate(headers):
        if header.filesz and header.offset + header.filesz > size_bytes:
            raise TruncatedElfError(
                name,
                f"cut short: segment {number} ends at byte {header.offset + header.filesz}, "
                f"the file has {size_bytes}; copy it again",
            )
        if header.type == PT_LOAD and (header.filesz > header.memsz or header.vaddr + header.memsz > 1 << 64):
            raise TruncatedElfError(name, f"damaged: segment {number} contradicts itself")


def _decode_interpreter(name: str, pread: Pread, headers: tuple[ProgramHeader, ...]) -> str | None:
    for header in headers:
        if header.type == PT_INTERP:
            if not 2 <= header.filesz <= _MAX_INTERPRETER_BYTES:
                raise TruncatedElfError(name, f"damaged: an interpreter path of {header.filesz} bytes")
            raw = pread(header.filesz, header.offset)
            path, end, _ = raw.partition(b"\0")
            if not end:
                raise TruncatedElfError(name, "damaged: the interpreter's path does not end")
            return os.fsdecode(path)
    return None
