"""The plainest accesses to remote memory without an emulator: moves of general registers, xadd, xchg, cmpxchg.

That is what Go's compiler makes of reads and writes of numbers and of sync/atomic, and an emulator costs as much as
most of an access. Everything else is left alone: other sizes than 4 and 8 bytes, operands that are not wholly one
variable's. A test holds this to what the emulator does, another one both to the processor.

Source: Intel SDM volume 2 (MOV, XADD, XCHG, CMPXCHG), volume 1 (EFLAGS).
"""

from stepping.registers import Registers
from stepping.remote_atomics import direct_operation
from stepping.remote_memory import RemoteMap
from stepping.x86_instructions import GENERAL_REGISTERS, Instruction

_LOAD, _STORE, _EXCHANGE = 0x8B, 0x89, 0x87
_XADD, _CMPXCHG = 0xC1, 0xB1
_CARRY, _PARITY, _ADJUST, _ZERO, _SIGN, _OVERFLOW = 0x1, 0x4, 0x10, 0x40, 0x80, 0x800
_ALL_FLAGS = _CARRY | _PARITY | _ADJUST | _ZERO | _SIGN | _OVERFLOW
_RESUME_FLAG = 1 << 16


def execute_plainly(instruction: Instruction, registers: Registers, remote: RemoteMap) -> Registers | None:
    """Execute *instruction*, to which *registers* point; return the registers after it, None if it is not so plain.

    Raises:
        Whatever the store raises.
    """
    opcode, is_plain_map = instruction.opcode, instruction.map == 0
    if is_plain_map and opcode not in (_LOAD, _STORE, _EXCHANGE):
        return None
    if not is_plain_map and (
        instruction.map != 1 or opcode not in (_XADD, _CMPXCHG) or not instruction.is_locked
    ):
        return None
    if instruction.operand is None or 0x66 in instruction.prefixes or instruction.encoding not in ("", "rex"):
        return None
    size = 8 if instruction.wide else 4
    address = instruction.address(registers, registers.pc)
    variable = remote.find(address)
    if variable is None or address + size > variable.end:
        return None
    offset = address - variable.address
    name = GENERAL_REGISTERS[instruction.reg]
    after = registers.copy()
    if is_plain_map and opcode == _STORE:
        value = registers[name] & (1 << 8 * size) - 1
        remote.store.set(variable, offset, value.to_bytes(size, "little"))
    elif is_plain_map and opcode == _LOAD:
        after[name] = int.from_bytes(remote.store.get(variable, offset, size), "little")
    else:
        direct = direct_operation(instruction, registers)
        assert direct is not None
        old = int.from_bytes(remote.store.atomic(variable, offset, *direct), "little")
        mask = (1 << 8 * size) - 1
        if opcode == _CMPXCHG:
            wanted = registers["rax"] & mask
            after["eflags"] = _flags_after(
                registers["eflags"], wanted, old, wanted - old, size, subtracts=True
            )
            if old != wanted:
                after["rax"] = old
        else:
            if opcode == _XADD:
                added = registers[name] & mask
                after["eflags"] = _flags_after(
                    registers["eflags"], old, added, old + added, size, subtracts=False
                )
            after[name] = old
    after["eflags"] &= ~_RESUME_FLAG
    after.pc = registers.pc + instruction.size
    return after


def _flags_after(flags: int, a: int, b: int, result: int, size: int, *, subtracts: bool) -> int:
    """Return *flags* after an addition or subtraction of *a* and *b* with *result*, which may be out of range."""
    top = 1 << 8 * size - 1
    value = result & (top << 1) - 1
    found = 0
    if not 0 <= result < top << 1:
        found |= _CARRY
    if not (value & 0xFF).bit_count() & 1:
        found |= _PARITY
    if (a ^ b ^ value) & 0x10:
        found |= _ADJUST
    if not value:
        found |= _ZERO
    if value & top:
        found |= _SIGN
    if (a ^ value) & ((a ^ b) if subtracts else (b ^ value)) & top:
        found |= _OVERFLOW
    return flags & ~_ALL_FLAGS | found
