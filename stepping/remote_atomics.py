"""Which atomic operation of a store does what a locked instruction does to its memory operand.

`direct_operation` knows those for which a store has an operation of its own: xadd, xchg, cmpxchg, cmpxchg8b and
cmpxchg16b, and locked add, sub, inc, dec, and, or, xor. All others (bts, neg, adc, not...) take a
compare-and-exchange of what the instruction makes of the old value, again if another was faster.

The operation only says what happens to the memory. What the instruction does to registers and flags is found by
executing it on the old value.

Source: Intel SDM volume 2.
"""

from typing import NamedTuple

from stepping.registers import Registers
from stepping.remote_memory import AtomicOperation
from stepping.x86_instructions import GENERAL_REGISTERS, Instruction

#: Opcodes "operation memory, register", rounded down to the even one, which is for bytes.
_WITH_REGISTER: dict[int, AtomicOperation] = {0x00: "add", 0x28: "add", 0x20: "and", 0x08: "or", 0x30: "xor"}
#: The same by the extension of 80, 81 and 83, "operation memory, immediate".
_WITH_IMMEDIATE: dict[int, AtomicOperation] = {0: "add", 5: "add", 4: "and", 1: "or", 6: "xor"}
_SUBTRACTS_WITH_REGISTER, _SUBTRACTS_WITH_IMMEDIATE = 0x28, 5


class Direct(NamedTuple):
    """An operation of `RemoteStore.atomic`."""

    operation: AtomicOperation
    operand: bytes
    expected: bytes = b""


def operand_bytes(instruction: Instruction) -> int:
    """Return the size of a locked instruction's memory operand."""
    if instruction.map == 1 and instruction.opcode == 0xC7:
        return 16 if instruction.wide else 8
    return instruction.operand_bytes


def direct_operation(instruction: Instruction, registers: Registers) -> Direct | None:
    """Return the operation that does all of what the locked *instruction* does to memory; None if none does."""
    if instruction.map == 1:
        return _two_byte(instruction, registers)
    if instruction.map != 0:
        return None
    opcode, size = instruction.opcode, instruction.operand_bytes
    if instruction.is_exchange:
        return _with_register(instruction, registers, "exchange")
    even = opcode & 0xFE
    if even in _WITH_REGISTER:
        direct = _with_register(instruction, registers, _WITH_REGISTER[even])
        return _negated(direct) if even == _SUBTRACTS_WITH_REGISTER else direct
    if opcode in (0x80, 0x81, 0x83) and instruction.extension in _WITH_IMMEDIATE:
        length = 1 if opcode != 0x81 else min(size, 4)
        value = int.from_bytes(instruction.code[-length:], "little", signed=True)
        direct = Direct(_WITH_IMMEDIATE[instruction.extension], _number(value, size))
        return _negated(direct) if instruction.extension == _SUBTRACTS_WITH_IMMEDIATE else direct
    if opcode in (0xFE, 0xFF) and instruction.extension < 2:
        return Direct("add", _number(-1 if instruction.extension else 1, size))
    return None


def _two_byte(instruction: Instruction, registers: Registers) -> Direct | None:
    opcode, size = instruction.opcode, instruction.operand_bytes
    if opcode in (0xC0, 0xC1):
        return _with_register(instruction, registers, "add")
    if opcode in (0xB0, 0xB1):
        direct = _with_register(instruction, registers, "compare_exchange")
        return direct and direct._replace(expected=_number(registers["rax"], size))
    if opcode == 0xC7 and instruction.extension == 1:
        half = 8 if instruction.wide else 4
        new = _number(registers["rbx"], half) + _number(registers["rcx"], half)
        old = _number(registers["rax"], half) + _number(registers["rdx"], half)
        return Direct("compare_exchange", new, old)
    return None


def _with_register(
    instruction: Instruction, registers: Registers, operation: AtomicOperation
) -> Direct | None:
    size = instruction.operand_bytes
    if size == 1 and not instruction.encoding and instruction.reg >= 4:
        return None  # ah, ch, dh, bh
    return Direct(operation, _number(registers[GENERAL_REGISTERS[instruction.reg]], size))


def _negated(direct: Direct | None) -> Direct | None:
    if direct is None:
        return None
    return Direct("add", _number(-int.from_bytes(direct.operand, "little"), len(direct.operand)))


def _number(value: int, size: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
