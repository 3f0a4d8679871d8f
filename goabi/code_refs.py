"""Which static variables a function's machine code refers to: how package-level variables are found when stripped.

This is no disassembler: it recognises the few ways in which Go's compilers address static data (amd64: an operand
relative to the instruction pointer; arm64: ADRP with an ADD, load or store). Whatever else happens to look so is
an address as well, so the result is a set of candidates for a caller that can tell which one it wants.
"""

import struct
from collections.abc import Iterator

from goabi.elf_header import ArchName


def iter_static_refs(arch: ArchName, code: bytes, addr: int) -> Iterator[int]:
    """The addresses that the instructions in `code`, which lies at `addr`, may refer to. Not in order,
    with repeats.
    """
    return _iter_amd64(code, addr) if arch == "amd64" else _iter_arm64(code, addr)


def _iter_amd64(code: bytes, addr: int) -> Iterator[int]:
    for position in range(len(code) - 4):
        if code[position] & 0xC7 == 0x05:  # ModRM: mod 00, rm 101
            (displacement,) = struct.unpack_from("<i", code, position + 1)
            target = addr + position + 5 + displacement
            # An immediate operand may stand between the displacement and the next instruction.
            yield from (target, target + 1, target + 4)


def _iter_arm64(code: bytes, addr: int) -> Iterator[int]:
    known: dict[int, int] = {}
    for position in range(0, len(code) - 3, 4):
        (word,) = struct.unpack_from("<I", code, position)
        target, base = word & 31, word >> 5 & 31
        if word & 0x9F000000 == 0x90000000:  # ADRP
            immediate = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
            immediate -= (immediate & 1 << 20) << 1
            known[target] = (addr + position & -4096) + (immediate << 12)
        elif word & 0xFFC00000 == 0x91000000 and base in known:  # ADD, 64 bits
            known[target] = known[base] + (word >> 10 & 0xFFF)
            yield known[target]
        elif word & 0xBF800000 == 0xB9000000 & 0xBF800000 and base in known:  # LDR, STR: 32 and 64 bits
            yield known[base] + ((word >> 10 & 0xFFF) << (word >> 30))
        elif word & 0xFF800000 == 0xA9000000 and base in known:  # LDP, STP, 64 bits
            immediate = word >> 15 & 0x7F
            immediate -= (immediate & 0x40) << 1
            yield known[base] + 8 * immediate
            yield known[base] + 8 * immediate + 8
