"""Forms of instructions: lengths and operands against capstone on real code, and what is refused."""

import pytest
from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from capstone.x86 import X86_OP_MEM
from hypothesis import given
from hypothesis import strategies as st

from stepping.registers import AMD64
from stepping.x86_instructions import NotAnInstructionError, Unit, decode_instruction

PC = 0x401000
REGISTERS = {name: 0x1000_0000 + 0x1_0000 * index for index, name in enumerate(AMD64.names)}


def unit_of(code: str) -> Unit:
    return decode_instruction(bytes.fromhex(code)).unit


@pytest.mark.parametrize(
    ("code", "unit"),
    [
        ("48 8b 05 00 00 00 00", Unit.GENERAL),  # mov rax, [rip]
        ("f0 48 0f c1 0d 00 00 00 00", Unit.GENERAL),  # lock xadd
        ("48 0f c7 08", Unit.GENERAL),  # cmpxchg16b [rax]
        ("c4 e2 f9 f7 00", Unit.GENERAL),  # shlx
        ("f3 48 0f b8 00", Unit.GENERAL),  # popcnt
        ("0f ae f0", Unit.GENERAL),  # mfence
        ("0f 11 00", Unit.SSE),  # movups
        ("f2 0f 10 00", Unit.SSE),  # movsd
        ("66 0f 38 00 00", Unit.SSE),  # pshufb
        ("c5 fe 6f 00", Unit.OWN),  # vmovdqu ymm0, [rax]
        ("62 f1 7e 48 6f 00", Unit.OWN),  # vmovdqu32 zmm0, [rax]
        ("0f 6f 00", Unit.OWN),  # movq mm0, [rax]
        ("dd 00", Unit.OWN),  # fld qword [rax]
        ("0f a2", Unit.OWN),  # cpuid
        ("0f 31", Unit.OWN),  # rdtsc
        ("0f ae 20", Unit.OWN),  # xsave
        ("0f 05", Unit.OWN),  # syscall
        ("0f b1 0f", Unit.OWN),  # cmpxchg of 32 bits
        ("48 0f b1 0f", Unit.GENERAL),
    ],
)
def test_units(code: str, unit: Unit) -> None:
    assert unit_of(code) is unit


def test_locks() -> None:
    assert decode_instruction(bytes.fromhex("f0 48 ff 00")).is_locked  # lock inc
    assert decode_instruction(bytes.fromhex("48 87 00")).is_locked  # xchg [rax], rax
    assert not decode_instruction(bytes.fromhex("48 87 c0")).is_locked  # xchg rax, rax
    assert not decode_instruction(bytes.fromhex("48 ff 00")).is_locked


@pytest.mark.parametrize("code", ["", "48", "66 66", "06", "c4 e2", "48 8b 05 00 00", "c4 e0 f9 f7 00"])
def test_what_is_no_instruction(code: str) -> None:
    with pytest.raises(NotAnInstructionError):
        decode_instruction(bytes.fromhex(code))


@given(st.binary(max_size=20))
def test_any_bytes_are_an_instruction_or_refused(code: bytes) -> None:
    try:
        instruction = decode_instruction(code)
    except NotAnInstructionError:
        return
    assert 0 < instruction.size <= 15
    assert code.startswith(instruction.code)


FORMS = """
48 8b 04 25 10 20 30 00 | 48 8b 44 8a f0 | 4a 8b 84 a3 00 01 00 00 | 41 0f b6 45 00 | 67 8b 04 08
64 48 8b 04 25 f8 ff ff ff | 48 c7 05 10 00 00 00 2a 00 00 00 | 66 c7 00 34 12 | c5 fe 6f 44 24 20
c4 c1 7e 7f 04 0c | 62 f1 7e 48 6f 00 | 66 0f 3a 0f 05 00 01 00 00 08 | f0 4c 0f b1 3d 00 00 00 00
80 3d 00 00 00 00 05 | 48 8d 05 78 56 34 12 | 43 8b 04 3f | 42 8b 04 65 00 00 00 00 | f3 0f 7e 03
"""


@pytest.mark.parametrize(
    "form", [form.strip() for line in FORMS.split("\n") for form in line.split("|") if form.strip()]
)
def test_operands_and_their_redirection(form: str) -> None:
    code = bytes.fromhex(form)
    disassembler = Cs(CS_ARCH_X86, CS_MODE_64)
    disassembler.detail = True
    (expected,) = disassembler.disasm(code, PC)
    instruction = decode_instruction(code + b"\x90" * 4)
    assert instruction.code == code
    memory = next(operand for operand in expected.operands if operand.type == X86_OP_MEM).mem
    names = {register: expected.reg_name(register) for register in (memory.base, memory.index) if register}
    address = (
        memory.disp + memory.scale * REGISTERS[wide(names[memory.index])] if memory.index else memory.disp
    )
    if memory.base:
        address += PC + len(code) if names[memory.base] == "rip" else REGISTERS[wide(names[memory.base])]
    if memory.segment:
        address += REGISTERS[expected.reg_name(memory.segment) + "_base"]
    assert instruction.address(REGISTERS, PC) == address % (1 << 64)

    redirected = instruction.redirected(PC + 0x1000, PC + 0x2000)
    assert redirected is not None
    (moved,) = disassembler.disasm(redirected, PC + 0x1000)
    assert moved.mnemonic == expected.mnemonic
    assert decode_instruction(redirected).static_target(PC + 0x1000) == PC + 0x2000
    others = [operand for operand in expected.operands if operand.type != X86_OP_MEM]
    for operand, other in zip(others, (o for o in moved.operands if o.type != X86_OP_MEM), strict=True):
        assert (operand.type, operand.reg, operand.imm) == (other.type, other.reg, other.imm)


@pytest.mark.parametrize(
    "code",
    [
        "62 f1 7e 48 6f 40 01",  # vmovdqu32 zmm0, [rax + 64]: a displacement of one vector
        "c4 e2 7d 90 04 08",  # vpgatherdd
        "48 01 c0",  # add rax, rax
    ],
)
def test_what_cannot_be_redirected(code: str) -> None:
    assert decode_instruction(bytes.fromhex(code)).redirected(PC, PC) is None


def wide(name: str) -> str:
    """The 64-bit register that a 32-bit address register is part of."""
    return "r" + name[1:] if name.startswith("e") else name
