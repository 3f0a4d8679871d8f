"""Puts a program into an empty address space, as execve(2) does: its segments, then its first stack.

The stack, from its top down: the strings (program's name, environment, arguments), 16 random bytes, the
auxiliary vector, envp, argv, argc. There is no vDSO: every clock call is a syscall, which can be served.

Source: fs/binfmt_elf.c; System V ABI.
"""

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from goabi.elf_header import PF_R, PF_W, PF_X, PT_LOAD, ElfHeader, ProgramHeader, read_elf_header
from goabi.errors import GoAbiError
from stepping.emulation.abi import Abi
from stepping.emulation.address_space import (
    PAGE_BYTES,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    AddressSpace,
    map_file,
)
from stepping.emulator import ADDRESS_LIMIT
from stepping.errors import SteppingError

#: Where a position-independent program is put.
_PIE_BASE = 0x555_5555_4000
_LINKER_BASE = 0x7F0_0000_0000
_STACK_BYTES = 8 << 20
_STACK_TOP = ADDRESS_LIMIT - (1 << 24)

_AT_PHDR, _AT_PHENT, _AT_PHNUM, _AT_PAGESZ, _AT_BASE, _AT_ENTRY = 3, 4, 5, 6, 7, 9
_AT_UID, _AT_EUID, _AT_GID, _AT_EGID, _AT_PLATFORM, _AT_HWCAP, _AT_CLKTCK = 11, 12, 13, 14, 15, 16, 17
_AT_SECURE, _AT_RANDOM, _AT_EXECFN = 23, 25, 31
_PHDR_BYTES = 56


class LoadError(SteppingError):
    """The program cannot be emulated; the text says why."""


class Loaded(NamedTuple):
    """A program ready to start: the first instruction, the stack pointer, where its heap (brk) begins, and what is
    added to the addresses in its file.
    """

    entry: int
    sp: int
    brk: int
    bias: int


def load(
    header: ElfHeader,
    path: str,
    space: AddressSpace,
    abi: Abi,
    argv: Sequence[bytes],
    env: Sequence[bytes],
    random: bytes,
    linker_path: str | None = None,
) -> Loaded:
    """Load the program at *path*, whose header is *header*, its dynamic linker if it has one, and build its stack.

    random: 16 bytes for AT_RANDOM; linker_path: where the dynamic linker is, if not where the program says.

    Raises:
        LoadError: segments lie where none can be, arguments and environment are too long, or the dynamic linker is
            missing or none.
    """
    bias = _PIE_BASE if header.is_pie else 0
    end = _load_segments(header, bias, path, space)
    entry, linker_base = header.entry + bias, 0
    if header.interpreter is not None:
        linker_path = linker_path or header.interpreter
        linker = _read_linker(header, path, linker_path)
        linker_base = _LINKER_BASE
        _load_segments(linker, linker_base, linker_path, space)
        entry = linker.entry + linker_base
    if not space.is_free(_STACK_TOP - _STACK_BYTES, _STACK_BYTES):
        raise LoadError(f"{path}: a segment lies where the stack must be")
    space.map(_STACK_TOP - _STACK_BYTES, _STACK_BYTES, PROT_READ | PROT_WRITE)
    sp = _build_stack(header, bias, linker_base, path, space, abi, argv, env, random)
    return Loaded(entry, sp, end, bias)


def _read_linker(header: ElfHeader, path: str, linker_path: str) -> ElfHeader:
    try:
        linker = read_elf_header(linker_path)
    except (OSError, GoAbiError) as error:
        raise LoadError(
            f"{path}: needs the dynamic linker {header.interpreter}, which is not there for {header.arch}; build the "
            "program with CGO_ENABLED=0"
        ) from error
    if linker.arch != header.arch or not linker.is_pie or linker.is_dynamic:
        raise LoadError(f"{path}: {header.interpreter} is no dynamic linker for {header.arch}")
    return linker


def _load_segments(header: ElfHeader, bias: int, path: str, space: AddressSpace) -> int:
    """Map all segments; return the page-aligned address after the last."""
    end = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for segment in header.program_headers:
            if segment.type == PT_LOAD and segment.memsz:
                end = max(end, _load_segment(segment, bias, fd, space, path))
    finally:
        os.close(fd)
    return end


def _load_segment(segment: ProgramHeader, bias: int, fd: int, space: AddressSpace, path: str) -> int:
    """Map one segment; return the page-aligned address after it."""
    protection = 0
    for flag, allowed in ((PF_R, PROT_READ), (PF_W, PROT_WRITE), (PF_X, PROT_EXEC)):
        protection |= allowed if segment.flags & flag else 0
    start = bias + segment.vaddr
    lead = start % PAGE_BYTES
    first, file_end = start - lead, start + segment.filesz
    file_pages_end = -(-file_end // PAGE_BYTES) * PAGE_BYTES
    end = -(-(start + segment.memsz) // PAGE_BYTES) * PAGE_BYTES
    if not space.is_free(first, end - first) or segment.offset % PAGE_BYTES != lead:
        raise LoadError(f"{path}: cannot place the segment at {start:#x}")
    if segment.filesz:
        file_offset = segment.offset - lead
        error = space.map(
            first,
            file_pages_end - first,
            protection,
            lambda address, size: map_file(address, size, fd, file_offset, False),
        )
        if error:
            raise LoadError(f"{path}: cannot map the segment at {start:#x}: {os.strerror(error)}")
        if segment.memsz > segment.filesz:
            space.view[file_end:file_pages_end] = bytes(file_pages_end - file_end)
    else:
        file_pages_end = first
    if end > file_pages_end:
        space.map(file_pages_end, end - file_pages_end, protection)
    return end


def _build_stack(
    header: ElfHeader,
    bias: int,
    linker_base: int,
    path: str,
    space: AddressSpace,
    abi: Abi,
    argv: Sequence[bytes],
    env: Sequence[bytes],
    random: bytes,
) -> int:
    """Fill the stack; return the stack pointer, a multiple of 16."""
    top = _STACK_TOP - 8
    addresses: list[int] = []
    for text in (os.fsencode(path), *env, *argv, abi.platform, random[:16]):
        data = text + b"\0"
        top -= len(data)
        if top < _STACK_TOP - _STACK_BYTES // 4:
            raise LoadError("the arguments and the environment are too long")
        space.view[top : top + len(data)] = data
        addresses.append(top)
    name, env_at = addresses[0], addresses[1 : 1 + len(env)]
    argv_at = addresses[1 + len(env) : 1 + len(env) + len(argv)]
    platform_at, random_at = addresses[-2:]
    auxv = [
        (_AT_PHDR, _headers_address(header, bias)),
        (_AT_PHENT, _PHDR_BYTES),
        (_AT_PHNUM, len(header.program_headers)),
        (_AT_PAGESZ, PAGE_BYTES),
        (_AT_BASE, linker_base),
        (_AT_ENTRY, header.entry + bias),
        (_AT_UID, os.getuid()),
        (_AT_EUID, os.geteuid()),
        (_AT_GID, os.getgid()),
        (_AT_EGID, os.getegid()),
        (_AT_PLATFORM, platform_at),
        (_AT_HWCAP, abi.hwcap),
        (_AT_CLKTCK, 100),
        (_AT_SECURE, 0),
        (_AT_RANDOM, random_at),
        (_AT_EXECFN, name),
        (0, 0),
    ]
    words = [len(argv), *argv_at, 0, *env_at, 0]
    for key, value in auxv:
        words += (key, value)
    sp = (top - 8 * len(words)) & ~15
    struct.pack_into(f"<{len(words)}Q", space.view, sp, *words)
    return sp


def _headers_address(header: ElfHeader, bias: int) -> int:
    """Return where the program finds its own program headers, 0 if no segment holds them."""
    for segment in header.program_headers:
        if segment.type == PT_LOAD and segment.offset == 0:
            return bias + segment.vaddr + 64  # right after the ELF header, as every linker puts them
    return 0
