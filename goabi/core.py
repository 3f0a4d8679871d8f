"""An ELF core dump as memory and threads, so that all else in this package works on a program that is no more.

A core often leaves out what the files have that were mapped (code, constants); those bytes are taken from the
files that the core names, or from the binary that the caller brings. Nothing in the core is trusted. What it does
not hold faults: it is not zero. Any thread may read; the table of threads is made once.

    PRSTATUS  = siginfo[12] cursig:u16 pad[2] sigpend:u64 sighold:u64 pid:u32 ppid:u32 pgrp:u32 sid:u32
                times[64] registers:u64[] fpvalid:u32 pad[4]
    AUXV      = { type:u64 value:u64 }
    FILE      = count:u64 page_bytes:u64 { start:u64 end:u64 offset_pages:u64 } names, each ended by NUL

Source: core(5), elf(5); linux/elfcore.h, asm/user.h and asm/ptrace.h of both architectures.
"""

import os
import struct
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType

from goabi.arch import Arch
from goabi.elf import ElfFile
from goabi.elf_header import ProgramHeader
from goabi.errors import CoreError, MemoryFaultError
from goabi.memory import MemoryReader, check_range

_NT_PRSTATUS, _NT_AUXV, _NT_FILE = 1, 6, 0x46494C45
_PRSTATUS_PID = 32
_PRSTATUS_REGISTERS = 112
_AT_PHDR, _AT_ENTRY = 3, 9
_MAX_MAPPED = 1 << 20

_REGISTERS: dict[str, tuple[str, ...]] = {
    "amd64": (
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
    ),
    "arm64": (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"),
}


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file's range `[start, end)` in memory, from `offset` bytes on."""

    start: int
    end: int
    offset: int
    path: str


class CoreFile:
    """A core dump. `fallback` is asked for what neither the core nor the files it names hold.

    `use_files` allows to open those files. Use as a context manager, or `close()` it.
    Raises: `OSError`, `ElfError` (`WrongElfTypeError` when it is no core), `CoreError`.
    """

    def __init__(
        self, path: str | os.PathLike[str], fallback: MemoryReader | None = None, *, use_files: bool = True
    ) -> None:
        self._elf = ElfFile(path, types=("CORE",))
        self._fallback = fallback
        self._use_files = use_files
        self._segments = [ph for ph in self._elf.load_segments if ph.memsz]
        self._starts = [segment.vaddr for segment in self._segments]
        self._open_files: dict[str, int | None] = {}

    def __enter__(self) -> "CoreFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the core and whatever files were opened for it."""
        for fd in self._open_files.values():
            if fd is not None:
                os.close(fd)
        self._open_files.clear()
        self._elf.close()

    @property
    def arch(self) -> Arch:
        """The machine's architecture."""
        return self._elf.arch

    # -- memory -----------------------------------------------------------------------------------------------

    def read(self, addr: int, size: int, /) -> bytes:
        """See `MemoryReader.read`."""
        check_range(addr, size)
        pieces = []
        while size > 0:
            piece = self._read_piece(addr, size)
            pieces.append(piece)
            addr, size = addr + len(piece), size - len(piece)
        return b"".join(pieces)

    def _read_piece(self, addr: int, size: int) -> bytes:
        index = bisect_right(self._starts, addr) - 1
        segment = self._segments[index] if index >= 0 else None
        if segment is not None and addr < segment.vaddr + segment.memsz:
            offset = addr - segment.vaddr
            if offset < segment.filesz:
                data = self._elf.segment_slice(segment, offset, min(size, segment.filesz - offset))
                if data:
                    return data
                raise MemoryFaultError(addr, size, "the core is cut short before it")
            size = min(size, segment.memsz - offset)
        return self._read_elsewhere(addr, size, segment)

    def _read_elsewhere(self, addr: int, size: int, segment: ProgramHeader | None) -> bytes:
        mapped = self.find_mapped_file(addr)
        if mapped is not None and self._use_files and (segment is None or not segment.filesz):
            fd = self._file(mapped.path)
            if fd is not None:
                data = os.pread(fd, min(size, mapped.end - addr), mapped.offset + addr - mapped.start)
                if data:
                    return data
        if self._fallback is not None:
            return self._fallback.read(addr, size)
        raise MemoryFaultError(addr, size, "not in the core")

    def _file(self, path: str) -> int | None:
        if path not in self._open_files:
            try:
                self._open_files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                self._open_files[path] = None
        return self._open_files[path]

    # -- notes ------------------------------------------------------------------------------------------------

    @cached_property
    def threads(self) -> Mapping[int, dict[str, int]]:
        """Each thread's registers by tid, the one that died first. Raises: `CoreError`."""
        names = _REGISTERS[self._elf.header.arch]
        threads = {}
        for data in self._notes(_NT_PRSTATUS):
            if len(data) < _PRSTATUS_REGISTERS + 8 * len(names):
                raise CoreError(f"{self._elf.path}: a thread's registers are cut short")
            (tid,) = struct.unpack_from("<I", data, _PRSTATUS_PID)
            values = struct.unpack_from(f"<{len(names)}Q", data, _PRSTATUS_REGISTERS)
            threads[tid] = dict(zip(names, values, strict=True))
        return threads

    def registers_of(self, tid: int) -> dict[str, int] | None:
        """A thread's registers; None when the core has no such thread."""
        return self.threads.get(tid)

    @cached_property
    def auxv(self) -> Mapping[int, int]:
        """The auxiliary vector by type (AT_*); empty when the core has none."""
        for data in self._notes(_NT_AUXV):
            return dict(struct.iter_unpack("<QQ", data[: len(data) - len(data) % 16]))
        return {}

    @property
    def entry(self) -> int:
        """Where the program starts, for `ElfFile.load_bias`. Raises: `CoreError`."""
        try:
            return self.auxv[_AT_ENTRY]
        except KeyError:
            raise CoreError(f"{self._elf.path}: the core has no auxiliary vector") from None

    @cached_property
    def mapped_files(self) -> tuple[MappedFile, ...]:
        """The files that were mapped, by address. Raises: `CoreError`."""
        for data in self._notes(_NT_FILE):
            return tuple(sorted(self._decode_files(data), key=lambda mapped: mapped.start))
        return ()

    def find_mapped_file(self, addr: int) -> MappedFile | None:
        """The mapping of a file that holds `addr`."""
        files = self.mapped_files
        index = bisect_right(files, addr, key=lambda mapped: mapped.start) - 1
        return files[index] if index >= 0 and addr < files[index].end else None

    @property
    def executable(self) -> str | None:
        """The path of the program's file, as far as the core says."""
        mapped = self.find_mapped_file(self.auxv.get(_AT_PHDR, 0) or self.auxv.get(_AT_ENTRY, 0))
        return mapped.path if mapped is not None else None

    def _notes(self, kind: int) -> list[bytes]:
        return [note.data for note in self._elf.iter_notes() if note.type == kind and note.owner == "CORE"]

    def _decode_files(self, data: bytes) -> list[MappedFile]:
        problem = CoreError(f"{self._elf.path}: the list of mapped files is damaged")
        if len(data) < 16:
            raise problem
        count, page_bytes = struct.unpack_from("<QQ", data)
        table_end = 16 + 24 * count
        if count > _MAX_MAPPED or table_end > len(data) or page_bytes > 1 << 30:
            raise problem
        names = data[table_end:].split(b"\0")
        if len(names) < count:
            raise problem
        return [
            MappedFile(start, end, pages * page_bytes, os.fsdecode(name))
            for (start, end, pages), name in zip(
                struct.iter_unpack("<QQQ", data[16:table_end]), names[:count], strict=True
            )
        ]
