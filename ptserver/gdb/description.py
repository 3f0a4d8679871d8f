"""What gdb is told about a machine's registers: which there are, and where a target keeps them.

A register is one of the general ones, by the kernel's name, or bytes in what `Target.read_vectors` returns.

Source: GDB manual, appendix G ("Target Descriptions", "Standard Target Features"); Intel SDM volume 1, "FXSAVE area",
"XSAVE area"; arch/arm64/include/uapi/asm/ptrace.h (user_fpsimd_state).
"""

from collections.abc import Sequence
from typing import NamedTuple

from stepping.registers import Registers

_LEGACY_BYTES, _STATE_AT, _YMM_HIGH_AT = 512, 512, 576
_X87_SSE_AVX = 7


class Slot(NamedTuple):
    """A register of gdb's: *size* bytes. offset: in the vector registers' area; None for a general register."""

    name: str
    size: int
    type: str
    feature: str
    offset: int | None = None


def _general(feature: str, size: int, type_: str, names: str) -> list[Slot]:
    return [Slot(name, size, type_, feature) for name in names.split()]


_CORE, _SSE, _AVX = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse", "org.gnu.gdb.i386.avx"
_ARM_CORE, _ARM_FPU = "org.gnu.gdb.aarch64.core", "org.gnu.gdb.aarch64.fpu"

_AMD64 = [
    *_general(_CORE, 8, "int64", "rax rbx rcx rdx rsi rdi"),
    *_general(_CORE, 8, "data_ptr", "rbp rsp"),
    *_general(_CORE, 8, "int64", "r8 r9 r10 r11 r12 r13 r14 r15"),
    *_general(_CORE, 8, "code_ptr", "rip"),
    *_general(_CORE, 4, "int32", "eflags cs ss ds es fs gs"),
    *(Slot(f"st{i}", 10, "i387_ext", _CORE, 32 + 16 * i) for i in range(8)),
    Slot("fctrl", 4, "int", _CORE, 0),
    Slot("fstat", 4, "int", _CORE, 2),
    Slot("ftag", 4, "int", _CORE, 4),
    Slot("fiseg", 4, "int", _CORE, 12),
    Slot("fioff", 4, "int", _CORE, 8),
    Slot("foseg", 4, "int", _CORE, 20),
    Slot("fooff", 4, "int", _CORE, 16),
    Slot("fop", 4, "int", _CORE, 6),
    *(Slot(f"xmm{i}", 16, "vec128", _SSE, 160 + 16 * i) for i in range(16)),
    Slot("mxcsr", 4, "int", _SSE, 24),
    *_general("org.gnu.gdb.i386.linux", 8, "int", "orig_rax"),
    *_general("org.gnu.gdb.i386.segments", 8, "int", "fs_base gs_base"),
]
_AMD64_AVX = [Slot(f"ymm{i}h", 16, "uint128", _AVX, _YMM_HIGH_AT + 16 * i) for i in range(16)]
_ARM64 = [
    *_general(_ARM_CORE, 8, "int", " ".join(f"x{i}" for i in range(31))),
    *_general(_ARM_CORE, 8, "data_ptr", "sp"),
    *_general(_ARM_CORE, 8, "code_ptr", "pc"),
    *_general(_ARM_CORE, 4, "int", "cpsr"),
    *(Slot(f"v{i}", 16, "vec128", _ARM_FPU, 16 * i) for i in range(32)),
    Slot("fpsr", 4, "int", _ARM_FPU, 512),
    Slot("fpcr", 4, "int", _ARM_FPU, 516),
]
#: How many bytes of a slot are in the area, where that is less than gdb wants.
_STORED = {"fctrl": 2, "fstat": 2, "fop": 2, "ftag": 1, "fiseg": 2, "foseg": 2}
_KERNEL_NAMES = {"cpsr": "pstate"}
_ARCHITECTURES = {"amd64": "i386:x86-64", "arm64": "aarch64"}

_VECTOR_TYPES = """\
    <vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>
    <vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>
    <vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>
    <union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>
      <field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>
      <field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>
      <field name="uint128" type="uint128"/></union>
"""


def slots_of(arch: str, vector_bytes: int) -> list[Slot]:
    """Return gdb's registers of a machine in gdb's order. vector_bytes: size of its vector registers' area."""
    if arch == "arm64":
        return list(_ARM64)
    return _AMD64 + (_AMD64_AVX if vector_bytes >= _YMM_HIGH_AT + 256 else [])


def target_xml(arch: str, slots: Sequence[Slot]) -> bytes:
    """Return the description of the registers, as gdb reads it (qXfer:features:read:target.xml)."""
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        f'<target version="1.0"><architecture>{_ARCHITECTURES[arch]}</architecture><osabi>GNU/Linux</osabi>',
    ]
    feature = ""
    for slot in slots:
        if slot.feature != feature:
            if feature:
                lines.append("  </feature>")
            feature = slot.feature
            lines.append(f'  <feature name="{feature}">')
            if feature in (_SSE, _ARM_FPU):
                lines.append(_VECTOR_TYPES.rstrip("\n"))
        lines.append(f'    <reg name="{slot.name}" bitsize="{8 * slot.size}" type="{slot.type}"/>')
    return "\n".join([*lines, "  </feature>", "</target>", ""]).encode()


def read_slot(slot: Slot, registers: Registers, vectors: bytes) -> bytes:
    """Return a register's bytes, little-endian."""
    if slot.offset is None:
        value = registers[_KERNEL_NAMES.get(slot.name, slot.name)]
        return (value & (1 << 8 * slot.size) - 1).to_bytes(slot.size, "little")
    stored = vectors[slot.offset : slot.offset + _STORED.get(slot.name, slot.size)]
    if slot.name == "ftag":  # the area has a bit for each register that holds something
        tags = sum((0 if stored[0] >> i & 1 else 3) << 2 * i for i in range(8))
        return tags.to_bytes(4, "little")
    return stored.ljust(slot.size, b"\0")


def write_slot(slot: Slot, data: bytes, registers: Registers, vectors: bytearray) -> None:
    """Set a register in *registers* or *vectors*."""
    if slot.offset is None:
        registers[_KERNEL_NAMES.get(slot.name, slot.name)] = int.from_bytes(data, "little")
        return
    if slot.name == "ftag":
        tags = int.from_bytes(data, "little")
        vectors[slot.offset] = sum(1 << i for i in range(8) if tags >> 2 * i & 3 != 3)
        return
    size = _STORED.get(slot.name, slot.size)
    vectors[slot.offset : slot.offset + size] = data[:size]
    if len(vectors) > _LEGACY_BYTES and slot.feature.startswith("org.gnu.gdb.i386"):
        vectors[_STATE_AT] |= _X87_SSE_AVX  # these parts are no longer in their initial state
