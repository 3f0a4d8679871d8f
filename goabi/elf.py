"""An ELF file as the rest of the package wants it: segments as memory, sections, symbols and notes on request.

The file is mapped, not read, so that opening one of 100 MB costs nothing until a part is used. Nothing in it
is trusted. Addresses are those of the link; the file's image applies the relocations that a loader would
(a position-independent binary has no pointers in its file otherwise), so pointers read from it are link-time
addresses too. The mapping is read-only and may be shared by threads; the lazy tables are not locked.

Source: elf(5); cmd/link/internal/ld/elf.go (notes), Go 1.27.
"""

import mmap
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import NamedTuple

from goabi.arch import Arch
from goabi.arches import ARCHES
from goabi.elf_header import (
    PF_W,
    PT_DYNAMIC,
    PT_LOAD,
    PT_NOTE,
    ElfHeader,
    ElfType,
    ProgramHeader,
    decode_elf_header,
)
from goabi.errors import MemoryFaultError, NotElfError, TruncatedElfError
from goabi.memory import check_range

_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
_DYN = struct.Struct("<qQ")
_NOTE = struct.Struct("<III")
_CHDR = struct.Struct("<IIQQ")
_SHT_NOTE, _SHT_NOBITS = 7, 8
_SHF_COMPRESSED = 0x800
_ELFCOMPRESS_ZLIB = 1
_DT_RELA, _DT_RELASZ = 7, 8
_NT_GNU_BUILD_ID, _NT_GO_BUILD_ID = 3, 4
_MAX_SECTIONS = 1 << 16
_MAX_EXPANSION = 1032  # deflate cannot make more of a byte


class Section(NamedTuple):
    """A section header; `addr` is 0 when the section is not loaded, sizes are in bytes."""

    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int


class Symbol(NamedTuple):
    """A symbol of .symtab; `addr` as linked, `size` in bytes, `type` STT_* (1 object, 2 function)."""

    name: str
    addr: int
    size: int
    type: int


class Note(NamedTuple):
    """An ELF note: the owner's name, its type, and the bytes."""

    owner: str
    type: int
    data: bytes


class ElfFile:
    """An ELF program or core, mapped. Use as a context manager, or `close()` it.

    `path` is as given; `header` as `read_elf_header` returns it; `arch` the architecture's data. With `copied` the
    file is read at once, and no descriptor is kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        types: tuple[ElfType, ...] = ("EXEC", "DYN"),
        *,
        copied: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if status.st_size == 0:
                raise NotElfError(self.path, "not an ELF file (it is empty); name a compiled program")
            try:
                if copied:
                    self._map = mmap.mmap(-1, status.st_size)
                    os.preadv(fd, [self._map], 0)
                else:
                    self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise NotElfError(self.path, "not a regular file; name an ELF file") from error
        finally:
            os.close(fd)
        try:
            self.header: ElfHeader = decode_elf_header(self.path, self._pread, len(self._map), types)
        except BaseException:
            self._map.close()
            raise
        self._views: list[memoryview] = []
        self.arch: Arch = ARCHES[self.header.arch]

    def __enter__(self) -> "ElfFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file. What was returned as bytes stays valid."""
        for view in self._views:
            view.release()
        self._views.clear()
        self._map.close()

    def _pread(self, size: int, offset: int) -> bytes:
        return self._map[offset : offset + size]

    # -- segments -----------------------------------------------------------------------------------------

    @cached_property
    def load_segments(self) -> tuple[ProgramHeader, ...]:
        """The PT_LOAD segments by address."""
        return tuple(
            sorted((ph for ph in self.header.program_headers if ph.type == PT_LOAD), key=lambda ph: ph.vaddr)
        )

    @property
    def writable_segments(self) -> tuple[ProgramHeader, ...]:
        """Those segments that a loader maps writable (relocated constants among them)."""
        return tuple(ph for ph in self.load_segments if ph.flags & PF_W)

    def segment_bytes(self, segment: ProgramHeader) -> bytes:
        """The file's bytes of a segment, unrelocated. A copy: ask for small ones, or use `find_in_segment`."""
        return self._map[segment.offset : segment.offset + segment.filesz]

    def segment_slice(self, segment: ProgramHeader, offset: int, size: int) -> bytes:
        """Up to `size` of a segment's file bytes from `offset` on; fewer only where the file is cut short."""
        start = segment.offset + offset
        return self._map[start : min(start + size, segment.offset + segment.filesz)]

    def find_in_segment(
        self, segment: ProgramHeader, needle: bytes, align: int, start: int = 0
    ) -> int | None:
        """The address, a multiple of `align` and at or after `start`, of `needle` in a segment's file bytes."""
        end = segment.offset + segment.filesz
        position = segment.offset + max(0, start - segment.vaddr)
        while (position := self._map.find(needle, position, end)) >= 0:
            addr = segment.vaddr + position - segment.offset
            if addr % align == 0:
                return addr
            position += 1
        return None

    def read(self, addr: int, size: int, /) -> bytes:
        """The image's bytes at link-time address `addr`, relocated; zeros in .bss. See `MemoryReader.read`."""
        check_range(addr, size)
        data = b""
        while size > 0:
            piece = self._read_piece(addr + len(data), size)
            data += piece
            size -= len(piece)
        return data

    def _read_piece(self, addr: int, size: int) -> bytes:
        for segment in self.load_segments:
            offset = addr - segment.vaddr
            if 0 <= offset < segment.memsz:
                size = min(size, segment.memsz - offset)
                start = segment.offset + offset
                data = self._map[start : min(start + size, segment.offset + segment.filesz)]
                data = data.ljust(size, b"\0")
                if self.header.type == "DYN" and segment.flags & PF_W:
                    data = self._relocated(addr, data)
                return data
        raise MemoryFaultError(addr, size, "not in the file's image")

    @cached_property
    def relocations(self) -> tuple[list[int], dict[int, int]]:
        """The relative relocations: sorted addresses, and the link-time pointer that each will hold."""
        table: dict[int, int] = {}
        dynamic = dict(self._dynamic_entries())
        addr, size = dynamic.get(_DT_RELA, 0), dynamic.get(_DT_RELASZ, 0)
        if addr and size:
            try:
                raw = self._read_unrelocated(addr, size - size % _RELA.size)
            except MemoryFaultError as error:
                raise TruncatedElfError(self.path, "damaged: its relocations lie outside of it") from error
            wanted = self.arch.relative_relocation
            table = {
                place: addend & 0xFFFFFFFFFFFFFFFF
                for place, info, addend in _RELA.iter_unpack(raw)
                if info & 0xFFFFFFFF == wanted
            }
        return sorted(table), table

    def _relocated(self, addr: int, data: bytes) -> bytes:
        places, table = self.relocations
        index = bisect_left(places, addr - 7)
        if index == len(places) or places[index] >= addr + len(data):
            return data
        # Patch within eight bytes of margin, since a pointer may straddle the range's ends.
        patched = bytearray(8) + bytearray(data) + bytearray(8)
        while index < len(places) and places[index] < addr + len(data):
            offset = places[index] - addr + 8
            patched[offset : offset + 8] = table[places[index]].to_bytes(8, "little")
            index += 1
        return bytes(patched[8:-8])

    def _read_unrelocated(self, addr: int, size: int) -> bytes:
        for segment in self.load_segments:
            offset = addr - segment.vaddr
            if offset >= 0 and offset + size <= segment.filesz:
                return self._map[segment.offset + offset : segment.offset + offset + size]
        raise MemoryFaultError(addr, size, "not in the file's image")

    def _dynamic_entries(self) -> Iterator[tuple[int, int]]:
        for segment in self.header.program_headers:
            if segment.type == PT_DYNAMIC:
                raw = self.segment_bytes(segment)
                yield from _DYN.iter_unpack(raw[: len(raw) - len(raw) % _DYN.size])

    def view_at(self, addr: int, size: int) -> memoryview:
        """The file's own bytes at `addr`, unrelocated and not copied; valid until `close()`.

        Raises: `MemoryFaultError` when the range is not within one segment's file bytes.
        """
        for segment in self.load_segments:
            offset = addr - segment.vaddr
            if offset >= 0 and offset + size <= segment.filesz:
                start = segment.offset + offset
                view = memoryview(self._map)[start : start + size]
                self._views.append(view)
                return view
        raise MemoryFaultError(addr, size, "not in the file's image")

    def load_bias(self, runtime_entry: int) -> int:
        """What to add to link-time addresses, given where the program really starts (AT_ENTRY of auxv)."""
        return runtime_entry - self.header.entry

    # -- sections, symbols, notes ---------------------------------------------------------------------------

    @cached_property
    def sections(self) -> dict[str, Section]:
        """The sections by name; empty when the file has none or they are cut off (they are not needed to run)."""
        header = self.header
        table_bytes = header.shnum * _SHDR.size
        if not header.shoff or header.shnum > _MAX_SECTIONS or header.shoff + table_bytes > len(self._map):
            return {}
        rows = list(_SHDR.iter_unpack(self._map[header.shoff : header.shoff + table_bytes]))
        if header.shstrndx >= len(rows):
            return {}
        names = self._map[rows[header.shstrndx][4] :][: rows[header.shstrndx][5]]
        sections: dict[str, Section] = {}
        for name, kind, flags, addr, offset, size, *_ in rows:
            text = names[name : names.find(b"\0", name)].decode("utf-8", "replace")
            sections.setdefault(text, Section(text, kind, flags, addr, offset, size))
        return sections

    def section_data(self, name: str) -> bytes | None:
        """A section's bytes, decompressed (both the ELF way and .zdebug's); None when there is none.

        Raises: `TruncatedElfError` when the section is damaged.
        """
        section = self.sections.get(name)
        if section is not None:
            return self._decompress(section, bool(section.flags & _SHF_COMPRESSED))
        old = self.sections.get(name.replace(".debug_", ".zdebug_", 1))
        return self._decompress(old, False) if old is not None else None

    def _decompress(self, section: Section, by_header: bool) -> bytes:
        if section.type == _SHT_NOBITS:
            return b""
        raw = self._map[section.offset : section.offset + section.size]
        if len(raw) != section.size:
            raise TruncatedElfError(self.path, f"cut short: section {section.name} ends after the file")
        if by_header:
            if len(raw) < _CHDR.size:
                raise TruncatedElfError(
                    self.path, f"damaged: section {section.name} has no compression header"
                )
            kind, _, size, _ = _CHDR.unpack_from(raw)
            if kind != _ELFCOMPRESS_ZLIB:
                raise TruncatedElfError(
                    self.path, f"section {section.name} is compressed in unknown way {kind}"
                )
            body = raw[_CHDR.size :]
        elif section.name.startswith(".zdebug_") and raw[:4] == b"ZLIB":
            size, body = int.from_bytes(raw[4:12], "big"), raw[12:]
        else:
            return raw
        if size > len(body) * _MAX_EXPANSION + 64:
            raise TruncatedElfError(self.path, f"damaged: section {section.name} claims {size} bytes")
        try:
            data = zlib.decompressobj().decompress(body, size + 1)
        except zlib.error as error:
            raise TruncatedElfError(
                self.path, f"damaged: section {section.name} does not decompress"
            ) from error
        if len(data) != size:
            raise TruncatedElfError(self.path, f"damaged: section {section.name} is not of its stated size")
        return data

    @property
    def has_symbols(self) -> bool:
        """Whether there is a symbol table (`-ldflags=-s` leaves none)."""
        return ".symtab" in self.sections

    def find_symbol(self, name: str) -> Symbol | None:
        """The symbol of that exact name, found by search and not by reading the whole table."""
        symtab, strtab = self.sections.get(".symtab"), self.sections.get(".strtab")
        if symtab is None or strtab is None:
            return None
        end = min(strtab.offset + strtab.size, len(self._map))
        at = self._map.find(b"\0" + name.encode() + b"\0", min(strtab.offset, len(self._map)), end)
        if at < 0:
            return None
        needle = (at + 1 - strtab.offset).to_bytes(4, "little")
        end = min(symtab.offset + symtab.size, len(self._map) - _SYM.size + 1)
        position = min(symtab.offset, len(self._map))
        while (position := self._map.find(needle, position, end)) >= 0:
            if (position - symtab.offset) % _SYM.size == 0:
                _, info, _, _, addr, size = _SYM.unpack_from(self._map, position)
                return Symbol(name, addr, size, info & 0xF)
            position += 1
        return None

    def iter_symbols(self) -> Iterator[Symbol]:
        """All symbols with a name, in the table's order."""
        symtab, strtab = self.sections.get(".symtab"), self.sections.get(".strtab")
        if symtab is None or strtab is None:
            return
        strings = self._map[strtab.offset : strtab.offset + strtab.size]
        raw = self._map[symtab.offset : symtab.offset + symtab.size]
        for name, info, _, _, addr, size in _SYM.iter_unpack(raw[: len(raw) - len(raw) % _SYM.size]):
            if name:
                text = strings[name : strings.find(b"\0", name)].decode("utf-8", "replace")
                yield Symbol(text, addr, size, info & 0xF)

    def find_symbol_over(self, addr: int) -> Symbol | None:
        """The symbol of a function or variable that *addr* lies in, of those with a size."""
        return next((one for one in self.iter_symbols() if one.addr <= addr < one.addr + one.size), None)

    def iter_notes(self) -> Iterator[Note]:
        """The notes of all segments and sections; some come twice. Raises: `TruncatedElfError`."""
        for segment in self.header.program_headers:
            if segment.type == PT_NOTE:
                yield from self._decode_notes(self.segment_bytes(segment))
        # Go's linker puts but one of its notes into the segment.
        for section in self.sections.values():
            if section.type == _SHT_NOTE:
                yield from self._decode_notes(self._map[section.offset : section.offset + section.size])

    def _decode_notes(self, raw: bytes) -> Iterator[Note]:
        position = 0
        while position + _NOTE.size <= len(raw):
            name_bytes, data_bytes, kind = _NOTE.unpack_from(raw, position)
            name_at = position + _NOTE.size
            data_at = name_at + (name_bytes + 3 & -4)
            position = data_at + (data_bytes + 3 & -4)
            if data_at + data_bytes > len(raw):
                raise TruncatedElfError(self.path, "damaged: a note ends after its segment")
            owner = raw[name_at : name_at + name_bytes].rstrip(b"\0").decode("utf-8", "replace")
            yield Note(owner, kind, raw[data_at : data_at + data_bytes])

    @cached_property
    def gnu_build_id(self) -> str | None:
        """The GNU build id in hexadecimal. Go's own linker writes one since 1.24; before, external linkers did."""
        return next(
            (n.data.hex() for n in self.iter_notes() if n.owner == "GNU" and n.type == _NT_GNU_BUILD_ID), None
        )

    @cached_property
    def go_build_id(self) -> str | None:
        """Go's build id (`go tool buildid`), a text of four parts."""
        for note in self.iter_notes():
            if note.owner == "Go" and note.type == _NT_GO_BUILD_ID:
                return note.data.decode("utf-8", "replace")
        return None
