"""The linker's moduledata record: where code, types and the function table lie. Found without any symbol.

The function table begins with a magic number, and moduledata's first word points at it; whatever matches is
then checked field by field, for the record is the root of all else. Go's releases differ in a few words in the
middle; the variant is recognised by what follows them (the map of text sections), never by a version number.

Source: runtime/symtab.go and cmd/link/internal/ld/symtab.go, Go 1.21 to 1.27.
"""

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from goabi.elf import ElfFile
from goabi.errors import MemoryFaultError, ModuledataError, NotGoError
from goabi.memory import MemoryReader, read_words

PCLNTAB_MAGIC = 0xFFFFFFF1  # Go 1.20 and later
_OLD_MAGICS = {0xFFFFFFFB: "1.2", 0xFFFFFFFA: "1.16", 0xFFFFFFF0: "1.18"}
_PCLNTAB_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab")
_PCHEADER = struct.Struct("<IBBBBQQQQQQQQ")
_MAX_TEXT_SECTIONS = 64

# The words from the first on; a slice is its pointer, length and capacity.
_HEAD = (
    *("pc_header", "funcnametab", "funcnametab_len", "", "cutab", "cutab_len", "", "filetab", "filetab_len"),
    *("", "pctab", "pctab_len", "", "pclntable", "pclntable_len", "", "ftab", "ftab_len", "", "findfunctab"),
    *("minpc", "maxpc", "text", "etext", "noptrdata", "enoptrdata", "data", "edata", "bss", "ebss"),
    *("noptrbss", "enoptrbss", "covctrs", "ecovctrs", "end", "gcdata", "gcbss", "types"),
)
_VARIANTS = (
    # Since Go 1.27: types are followed by the itabs instead of being listed.
    (*_HEAD, "typedesclen", "etypes", "itaboffset", "itabsize", "rodata", "gofunc", "epclntab"),
    (*_HEAD, "etypes", "rodata", "gofunc", "epclntab"),  # Go 1.26
    (*_HEAD, "etypes", "rodata", "gofunc"),  # Go 1.21 to 1.25
)
_WORDS = max(len(variant) for variant in _VARIANTS) + 3


class TextSection(NamedTuple):
    """A piece of text: offsets `[vaddr, end)` as the table counts them lie at `base`."""

    vaddr: int
    end: int
    base: int


class PcHeader(NamedTuple):
    """The head of the function table. Offsets are from its own address, sizes in bytes."""

    addr: int
    pc_quantum: int
    function_count: int
    file_count: int
    funcname_offset: int
    cu_offset: int
    filetab_offset: int
    pctab_offset: int
    pcln_offset: int


class Moduledata(NamedTuple):
    """The checked record. Ranges are half-open link-time addresses; `pclntab_bytes` spans the whole table."""

    addr: int
    pc_header: PcHeader
    pclntab_bytes: int
    min_pc: int
    max_pc: int
    text: int
    end_text: int
    data: int
    end_data: int
    bss: int
    end_bss: int
    noptrdata: int
    end_noptrdata: int
    noptrbss: int
    end_noptrbss: int
    types: int
    end_types: int
    gofunc: int
    text_sections: tuple[TextSection, ...]


def decode_pc_header(addr: int, raw: bytes, quantum: int) -> PcHeader:
    """The table's head, checked. Raises: `ModuledataError`."""
    if len(raw) < _PCHEADER.size:
        raise ModuledataError(f"the function table at {addr:#x} is cut short")
    magic, pad1, pad2, min_lc, pointer_bytes, functions, files, _, *offsets = _PCHEADER.unpack_from(raw)
    if magic in _OLD_MAGICS:
        raise NotGoError(f"built by Go {_OLD_MAGICS[magic]} or little later; Go 1.21 or newer is needed")
    if magic != PCLNTAB_MAGIC or pad1 or pad2 or min_lc != quantum or pointer_bytes != 8:
        raise ModuledataError(f"no function table at {addr:#x}")
    if offsets != sorted(offsets) or offsets[0] < _PCHEADER.size or offsets[-1] > 1 << 32:
        raise ModuledataError(f"the function table at {addr:#x} has its parts out of order")
    return PcHeader(addr, min_lc, functions, files, *offsets)


def read_moduledata(reader: MemoryReader, addr: int, quantum: int) -> Moduledata:
    """The record at `addr`. `quantum` is the architecture's `pc_quantum`. Raises: `ModuledataError`."""
    try:
        words = read_words(reader, addr, _WORDS)
        header = decode_pc_header(words[0], reader.read(words[0], _PCHEADER.size), quantum)
        for variant in _VARIANTS:
            module = _match_variant(
                reader, addr, dict(zip(variant, words, strict=False)), words, variant, header
            )
            if module is not None:
                return module
    except MemoryFaultError as error:
        raise ModuledataError(f"moduledata at {addr:#x} points outside of memory ({error})") from error
    raise ModuledataError(
        f"moduledata at {addr:#x} is of no known form; this Go is too new, or it is damaged"
    )


def _match_variant(
    reader: MemoryReader,
    addr: int,
    field: dict[str, int],
    words: tuple[int, ...],
    variant: tuple[str, ...],
    header: PcHeader,
) -> Moduledata | None:
    sections_at, count, capacity = words[len(variant) : len(variant) + 3]
    ordered = (
        ("text", "minpc", "maxpc"),
        ("noptrdata", "enoptrdata"),
        ("data", "edata"),
        ("bss", "ebss"),
        ("noptrbss", "enoptrbss"),
        ("types", "etypes"),
    )
    tables = (
        ("funcnametab", header.funcname_offset),
        ("cutab", header.cu_offset),
        ("filetab", header.filetab_offset),
        ("pctab", header.pctab_offset),
        ("pclntable", header.pcln_offset),
    )
    if not (
        count == capacity
        and 1 <= count <= _MAX_TEXT_SECTIONS
        and all(field[low] <= field[high] for names in ordered for low, high in itertools.pairwise(names))
        and all(field[name] == header.addr + offset for name, offset in tables)
        and field["ftab"] == field["pclntable"]
        and field["ftab_len"] == header.function_count + 1
    ):
        return None
    raw = read_words(reader, sections_at, 3 * count)
    sections = tuple(TextSection(*raw[at : at + 3]) for at in range(0, 3 * count, 3))
    # The first section is all of the text but for what C code a linker put around it.
    if sections[0].vaddr != 0 or sections[0].base != field["text"] or any(s.vaddr > s.end for s in sections):
        return None
    return Moduledata(
        addr=addr,
        pc_header=header,
        pclntab_bytes=header.pcln_offset + field["pclntable_len"],
        min_pc=field["minpc"],
        max_pc=field["maxpc"],
        text=field["text"],
        end_text=field["etext"],
        data=field["data"],
        end_data=field["edata"],
        bss=field["bss"],
        end_bss=field["ebss"],
        noptrdata=field["noptrdata"],
        end_noptrdata=field["enoptrdata"],
        noptrbss=field["noptrbss"],
        end_noptrbss=field["enoptrbss"],
        types=field["types"],
        end_types=field["etypes"],
        gofunc=field["gofunc"],
        text_sections=sections,
    )


def find_moduledata(elf: ElfFile) -> Moduledata:
    """The program's moduledata. Raises: `NotGoError` when no function table is there, `ModuledataError`."""
    problem: ModuledataError | None = None
    for header_addr in _iter_pclntab_candidates(elf):
        for addr in _iter_pointers_to(elf, header_addr):
            try:
                return read_moduledata(elf, addr, elf.arch.pc_quantum)
            except ModuledataError as error:
                problem = problem or error
    if problem is not None:
        raise problem
    raise NotGoError(f"{elf.path}: not a Go program (it has no Go function table)")


def _iter_pclntab_candidates(elf: ElfFile) -> Iterator[int]:
    for name in _PCLNTAB_SECTIONS:
        section = elf.sections.get(name)
        if section is not None and section.addr:
            # Raises for a table of an old Go, which no search could put better.
            try:
                decode_pc_header(section.addr, elf.read(section.addr, _PCHEADER.size), elf.arch.pc_quantum)
            except (ModuledataError, MemoryFaultError):
                continue
            yield section.addr
    magic = struct.pack("<IBBBB", PCLNTAB_MAGIC, 0, 0, elf.arch.pc_quantum, elf.arch.pointer_bytes)
    for segment in elf.load_segments:
        addr = elf.find_in_segment(segment, magic, 8)
        while addr is not None:
            yield addr
            addr = elf.find_in_segment(segment, magic, 8, addr + 8)


def _iter_pointers_to(elf: ElfFile, target: int) -> Iterator[int]:
    section = elf.sections.get(".go.module")  # Since Go 1.26
    if section is not None and section.addr:
        yield section.addr
    if elf.header.is_pie:
        yield from (place for place, pointer in elf.relocations[1].items() if pointer == target)
    needle = target.to_bytes(8, "little")
    for segment in elf.writable_segments:
        addr = elf.find_in_segment(segment, needle, 8)
        while addr is not None:
            yield addr
            addr = elf.find_in_segment(segment, needle, 8, addr + 8)
