"""The form of one amd64 instruction: how long it is, where its memory operand stands, who can execute it.

    instruction = prefix* (REX | VEX | EVEX)? opcode (ModRM SIB? displacement?)? immediate?

This is no disassembler: it knows forms, not meanings, of the instructions that user code has in 64-bit mode. What
needs the meanings asks `capstone` (`stepping.blocks`) or lets the instruction be executed. Pure functions.

Source: Intel SDM volume 2, chapter 2 and appendix A.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Protocol

#: No instruction is longer.
MAX_INSTRUCTION_BYTES = 15

_U64 = 0xFFFF_FFFF_FFFF_FFFF
_LEGACY_PREFIXES = frozenset(b"\x66\x67\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65")
#: General registers by their numbers in instructions.
GENERAL_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))
_SEGMENT_BASES = {0x64: "fs_base", 0x65: "gs_base"}


class Unit(Enum):
    """What of a processor an instruction needs."""

    GENERAL = "general"  #: the general registers alone
    SSE = "sse"  #: the XMM registers too
    OWN = "own"  #: what only the processor itself has: AVX, x87, MMX, its clock, its identity


class NotAnInstructionError(ValueError):
    """The bytes do not begin with a complete instruction of 64-bit mode."""


class Numbers(Protocol):
    """Registers by the kernel's names."""

    def __getitem__(self, name: str, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Operand:
    """The memory operand of a ModRM byte: base + index * scale + displacement, in a segment.

    base, index: names of registers, ``rip`` for the next instruction's address, or empty; segment: ``fs_base``,
    ``gs_base`` or empty. address_bits: 64, or 32 with the address-size prefix.
    """

    base: str
    index: str
    scale: int
    displacement: int
    segment: str
    address_bits: int


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    code: its bytes. map: 0 for one-byte opcodes, 1, 2, 3 for those after 0F, 0F38, 0F3A (EVEX has more). opcode: the
    last opcode byte. prefixes: the legacy ones. encoding: "", "rex", "vex" or "evex". wide: REX.W or VEX.W.
    vector_bytes: of VEX and EVEX. modrm_at: where the ModRM byte is, -1 without one. reg: its register field, with
    the extension bits. operand: its memory operand, if it has one. displacement_at, displacement_bytes: where that
    one's displacement is.
    """

    code: bytes
    map: int
    opcode: int
    prefixes: bytes
    encoding: str
    wide: bool
    pp: int
    vector_bytes: int
    modrm_at: int
    reg: int
    operand: Operand | None
    displacement_at: int
    displacement_bytes: int

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.code)

    @property
    def extension(self) -> int:
        """The register field where it selects among instructions: its lower three bits."""
        return self.reg & 7

    @property
    def is_locked(self) -> bool:
        """Whether it reads and writes its memory operand as one: a lock prefix, or an exchange, which implies it."""
        return 0xF0 in self.prefixes or self.is_exchange

    @property
    def is_exchange(self) -> bool:
        """Whether it is xchg with a memory operand."""
        return self.map == 0 and self.opcode in (0x86, 0x87) and self.operand is not None

    @property
    def is_string(self) -> bool:
        """Whether it is one of movs, cmps, stos, lods, scas: operands at rsi and rdi, a repeat prefix perhaps."""
        return self.map == 0 and self.opcode in _STRINGS and self.encoding in ("", "rex")

    @property
    def operand_bytes(self) -> int:
        """The size of a general operand: 1, 2, 4 or 8."""
        if (self.map == 0 or self.opcode in (0xB0, 0xC0)) and self.opcode & 1 == 0 and self.opcode != 0x0F:
            return 1
        return 8 if self.wide else 2 if 0x66 in self.prefixes else 4

    @property
    def unit(self) -> Unit:
        """Who can execute it."""
        return _unit_of(self)

    def address(self, registers: Numbers, pc: int) -> int:
        """Return the address of the memory operand, with *registers* by the kernel's names, at address *pc*."""
        operand = self.operand
        assert operand is not None
        total = operand.displacement
        if operand.base == "rip":
            total += pc + len(self.code)
        elif operand.base:
            total += registers[operand.base]
        if operand.index:
            total += registers[operand.index] * operand.scale
        if operand.address_bits == 32:
            total &= 0xFFFFFFFF
        if operand.segment:
            total += registers[operand.segment]
        return total & _U64

    def static_target(self, pc: int) -> int | None:
        """Return the address of an operand relative to the program counter, if it has one."""
        operand = self.operand
        if operand is None or operand.base != "rip" or operand.segment:
            return None
        return (pc + len(self.code) + operand.displacement) & _U64

    def redirected(self, pc: int, target: int) -> bytes | None:
        """Return the instruction, for address *pc*, with *target* as its memory operand; None if that cannot be.

        It cannot where `address` does not tell the operand: there is none, its index is a vector, or its displacement
        counts in units that depend on the instruction (EVEX). *target* is within 2 GiB of *pc*. Prefixes for the
        segment and the address size are replaced by no-ops.
        """
        is_scaled = self.encoding == "evex" and self.displacement_bytes == 1
        if self.operand is None or self._has_vector_index or (is_scaled and self.operand.displacement):
            return None
        at = self.modrm_at
        head = bytes(0x3E if byte in (0x64, 0x65, 0x67) else byte for byte in self.code[: len(self.prefixes)])
        modrm = bytes([self.code[at] & 0x38 | 5])
        tail = self.code[self.displacement_at + self.displacement_bytes :]
        size = at + 1 + 4 + len(tail)
        displacement = struct.pack("<i", target - pc - size)
        return head + self.code[len(self.prefixes) : at] + modrm + displacement + tail

    @property
    def _has_vector_index(self) -> bool:
        """Whether it gathers or scatters: its index is a vector."""
        return self.encoding in ("vex", "evex") and self.map == 2 and self.opcode in _VECTOR_INDEXED


_STRINGS = frozenset({0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF})
_VECTOR_INDEXED = frozenset({0x90, 0x91, 0x92, 0x93, 0xA0, 0xA1, 0xA2, 0xA3, 0xC6, 0xC7})


def _opcodes(*spans: int | tuple[int, int]) -> frozenset[int]:
    found: set[int] = set()
    for span in spans:
        first, last = span if isinstance(span, tuple) else (span, span)
        found.update(range(first, last + 1))
    return frozenset(found)


_ARITHMETIC = frozenset(8 * row + column for row in range(8) for column in range(4))
_MODRM_0 = _ARITHMETIC | _opcodes(
    *(
        0x63,
        0x69,
        0x6B,
        (0x80, 0x8F),
        0xC0,
        0xC1,
        0xC6,
        0xC7,
        (0xD0, 0xD3),
        (0xD8, 0xDF),
        0xF6,
        0xF7,
        0xFE,
        0xFF,
    )
)
_IMMEDIATE_8 = frozenset(8 * row + 4 for row in range(8)) | _opcodes(
    *(0x6A, 0x6B, (0x70, 0x80), 0x82, 0x83, 0xA8, (0xB0, 0xB7), 0xC0, 0xC1, 0xC6, 0xCD, (0xE0, 0xE7), 0xEB)
)
_IMMEDIATE_Z = frozenset(8 * row + 5 for row in range(8)) | _opcodes(0x68, 0x69, 0x81, 0xA9, 0xC7)
_RELATIVE_32 = _opcodes(0xE8, 0xE9)
_INVALID_0 = _opcodes(
    *(
        0x06,
        0x07,
        0x0E,
        0x16,
        0x17,
        0x1E,
        0x1F,
        0x27,
        0x2F,
        0x37,
        0x3F,
        0x60,
        0x61,
        0x82,
        0x9A,
        0xCE,
        0xD4,
        0xD5,
    ),
    *(0xD6, 0xEA),
)
_PLAIN_1 = _opcodes(
    *((0x05, 0x09), 0x0B, 0x0E, (0x30, 0x37), 0x77, (0x80, 0x8F), (0xA0, 0xA2), (0xA8, 0xAA), (0xC8, 0xCF))
)
_IMMEDIATE_1 = _opcodes(0x0F, (0x70, 0x73), 0xA4, 0xAC, 0xBA, 0xC2, (0xC4, 0xC6))
_IMMEDIATE_VEX_1 = _opcodes((0x70, 0x73), 0xC2, (0xC4, 0xC6))
_VEX_GENERAL = {2: _opcodes(0xF2, 0xF3, 0xF5, 0xF6, 0xF7), 3: _opcodes(0xF0)}  # BMI1 and BMI2
_VECTOR_1 = _opcodes((0x10, 0x17), (0x28, 0x2F), (0x50, 0x7F), 0xC2, (0xC4, 0xC6), (0xD0, 0xFF))
# The same with neither 66, F2 nor F3 work on the eight MMX registers.
_MMX_1 = _opcodes(0x2A, 0x2C, 0x2D, (0x60, 0x76), 0x77, 0x7E, 0x7F, 0xC4, 0xC5, (0xD0, 0xFE))
_OWN_1 = _opcodes(0x01, 0x05, 0x0E, 0x0F, 0x31, 0x33, 0x34, 0x77, 0xA2, 0xAE, 0xC7)
_OWN_0 = _opcodes(0x9B, 0xCC, 0xCD, (0xD8, 0xDF), 0xF1, 0xF4)


@lru_cache(maxsize=65536)
def decode_instruction(code: bytes) -> Instruction:
    """Return the first instruction in *code*, at most `MAX_INSTRUCTION_BYTES` of it.

    Raises:
        NotAnInstructionError: there is none, or it is cut off.
    """
    try:
        return _decode(code[:MAX_INSTRUCTION_BYTES])
    except (IndexError, struct.error):
        raise NotAnInstructionError(
            f"no complete instruction: {code[:MAX_INSTRUCTION_BYTES].hex(' ')}"
        ) from None


def _decode(code: bytes) -> Instruction:
    at = 0
    while code[at] in _LEGACY_PREFIXES:
        at += 1
    prefixes = code[:at]
    extensions = pp = vector_bytes = 0
    encoding, wide, opcode_map = "", False, 0
    first = code[at]
    if first in (0xC4, 0xC5, 0x62):
        encoding, at, opcode_map, extensions, wide, pp, vector_bytes = _vex(code, at)
    else:
        if first & 0xF0 == 0x40:
            encoding, extensions, wide = "rex", first & 7, bool(first & 8)
            at += 1
        if code[at] == 0x0F:
            at += 1
            opcode_map = {0x38: 2, 0x3A: 3}.get(code[at], 1)
            at += opcode_map > 1
    opcode = code[at]
    at += 1
    modrm_at, reg, operand, displacement_at, displacement_bytes = -1, 0, None, at, 0
    if _has_modrm(encoding, opcode_map, opcode):
        modrm_at = at
        reg = code[at] >> 3 & 7 | (extensions & 4) << 1
        operand, displacement_at, displacement_bytes = _operand(code, at, extensions, prefixes)
        at = displacement_at + displacement_bytes
    at += _immediate_bytes(encoding, opcode_map, opcode, reg & 7, wide=wide, prefixes=prefixes)
    if at > len(code):
        raise IndexError
    return Instruction(
        *(code[:at], opcode_map, opcode, prefixes, encoding, wide, pp, vector_bytes, modrm_at, reg, operand),
        *(displacement_at, displacement_bytes),
    )


def _vex(code: bytes, at: int) -> tuple[str, int, int, int, bool, int, int]:
    """Return encoding, where the opcode is, its map, R, X and B as in REX, W, the implied prefix, vector size."""
    first, second = code[at], code[at + 1]
    if first == 0xC5:
        return "vex", at + 2, 1, ~second >> 5 & 4, False, second & 3, 32 if second & 4 else 16
    third = code[at + 2]
    extensions = ~second >> 5 & 7
    if first == 0xC4:
        return "vex", at + 3, second & 31, extensions, bool(third & 0x80), third & 3, 32 if third & 4 else 16
    length = code[at + 3] >> 5 & 3
    return "evex", at + 4, second & 7, extensions, bool(third & 0x80), third & 3, 16 << min(length, 2)


def _has_modrm(encoding: str, opcode_map: int, opcode: int) -> bool:
    if encoding in ("vex", "evex"):
        if not 1 <= opcode_map <= (3 if encoding == "vex" else 6):
            raise IndexError
        return not (opcode_map == 1 and opcode == 0x77)
    if opcode_map == 0:
        if opcode in _INVALID_0:
            raise IndexError
        return opcode in _MODRM_0
    return opcode_map > 1 or opcode not in _PLAIN_1


def _operand(code: bytes, at: int, extensions: int, prefixes: bytes) -> tuple[Operand | None, int, int]:
    """Return the memory operand of the ModRM byte at *at*, and where its displacement is and how long."""
    modrm = code[at]
    mod, rm = modrm >> 6, modrm & 7
    at += 1
    if mod == 3:
        return None, at, 0
    base = index = ""
    scale = 1
    size = (0, 1, 4)[mod]
    if rm == 4:
        sib = code[at]
        at += 1
        number = sib >> 3 & 7 | (extensions & 2) << 2
        if number != 4:
            index, scale = GENERAL_REGISTERS[number], 1 << (sib >> 6)
        if sib & 7 == 5 and mod == 0:
            size = 4
        else:
            base = GENERAL_REGISTERS[sib & 7 | (extensions & 1) << 3]
    elif rm == 5 and mod == 0:
        base, size = "rip", 4
    else:
        base = GENERAL_REGISTERS[rm | (extensions & 1) << 3]
    raw = code[at : at + size]
    if len(raw) != size:
        raise IndexError
    segment = next((_SEGMENT_BASES[byte] for byte in reversed(prefixes) if byte in _SEGMENT_BASES), "")
    displacement = int.from_bytes(raw, "little", signed=True)
    return Operand(base, index, scale, displacement, segment, 32 if 0x67 in prefixes else 64), at, size


def _immediate_bytes(
    encoding: str, opcode_map: int, opcode: int, extension: int, *, wide: bool, prefixes: bytes
) -> int:
    if encoding in ("vex", "evex"):
        return int(opcode_map == 3 or (opcode_map == 1 and opcode in _IMMEDIATE_VEX_1))
    if opcode_map == 1:
        return 4 if opcode & 0xF0 == 0x80 else int(opcode in _IMMEDIATE_1)
    if opcode_map:
        return int(opcode_map == 3)
    word = 2 if 0x66 in prefixes and not wide else 4
    if opcode in _IMMEDIATE_8:
        return 1
    if opcode in _IMMEDIATE_Z:
        return word
    if opcode in _RELATIVE_32:
        return 4
    if opcode & 0xF8 == 0xB8:
        return 8 if wide else word
    if opcode & 0xFC == 0xA0:
        return 4 if 0x67 in prefixes else 8
    if opcode in (0xF6, 0xF7) and extension < 2:
        return 1 if opcode == 0xF6 else word
    return {0xC2: 2, 0xCA: 2, 0xC8: 3}.get(opcode, 0)


def _unit_of(instruction: Instruction) -> Unit:
    opcode_map, opcode = instruction.map, instruction.opcode
    if instruction.encoding in ("vex", "evex"):
        general = instruction.encoding == "vex" and opcode in _VEX_GENERAL.get(opcode_map, ())
        return Unit.GENERAL if general else Unit.OWN
    if opcode_map == 0:
        return Unit.OWN if opcode in _OWN_0 else Unit.GENERAL
    if opcode_map == 1:
        return _unit_of_0f(instruction)
    if opcode_map == 2:
        if opcode >= 0xF0:
            return Unit.GENERAL  # movbe, crc32, adcx, adox
        # sha1nexte and its kind are newer than Unicorn's processor.
        return Unit.OWN if 0xC8 <= opcode <= 0xCF or not _is_sse_prefixed(instruction) else Unit.SSE
    return Unit.SSE if _is_sse_prefixed(instruction) and opcode != 0xCC else Unit.OWN


def _unit_of_0f(instruction: Instruction) -> Unit:
    opcode = instruction.opcode
    if opcode in _OWN_1:
        # cmpxchg8b and cmpxchg16b share an opcode with rdrand; fences share one with the state's saving.
        shared = (opcode == 0xC7 and instruction.extension == 1) or (
            opcode == 0xAE and instruction.operand is None
        )
        return Unit.GENERAL if shared else Unit.OWN
    if opcode in _VECTOR_1:
        if opcode in _MMX_1 and not _is_sse_prefixed(instruction):
            return Unit.OWN
        return Unit.SSE
    return Unit.OWN if is_narrow_exchange(instruction) else Unit.GENERAL


def is_narrow_exchange(instruction: Instruction) -> bool:
    """Whether it is cmpxchg of 32 bits, after whose success Unicorn has cleared the upper half of rax, wrongly."""
    is_cmpxchg = instruction.map == 1 and instruction.opcode == 0xB1
    return is_cmpxchg and not instruction.wide and 0x66 not in instruction.prefixes


def _is_sse_prefixed(instruction: Instruction) -> bool:
    return any(byte in (0x66, 0xF2, 0xF3) for byte in instruction.prefixes)
