"""movs and stos on remote memory, many repetitions at once.

The emulator would ask for each element by itself, and a copy of some kilobytes would take as many round trips to a
server. So as many repetitions are made at once as stay on one page on either side; what remains is left in the
registers, as the processor itself leaves it when it is interrupted, and the program goes on there.

Source: Intel SDM volume 2, "REP", "MOVS", "STOS".
"""

from stepping.maps import PAGE_BYTES
from stepping.registers import Registers
from stepping.tracee_engine import READ, WRITE, EngineMemory, Fault
from stepping.x86_instructions import Instruction

_MOVS, _STOS = frozenset({0xA4, 0xA5}), frozenset({0xAA, 0xAB})
_DIRECTION_FLAG = 0x400
_U64 = 0xFFFF_FFFF_FFFF_FFFF


def execute_string(instruction: Instruction, registers: Registers, memory: EngineMemory) -> Registers | None:
    """Execute some repetitions of *instruction*, to which the program counter points; return the registers after.

    None: it is not one for this way; nothing has happened.

    Raises:
        Fault: the first repetition may not touch what it touches; nothing has happened.
        Whatever the memory raises.
    """
    is_move = instruction.opcode in _MOVS
    if not (is_move or instruction.opcode in _STOS) or registers["eflags"] & _DIRECTION_FLAG:
        return None
    prefixes = instruction.prefixes
    if any(byte in (0x64, 0x65, 0x67) for byte in prefixes):
        return None
    width = instruction.operand_bytes
    repeats = 0xF3 in prefixes or 0xF2 in prefixes
    count = registers["rcx"] if repeats else 1
    source, target = registers["rsi"], registers["rdi"]
    fits = min(count, _room(target) // width)
    if is_move:
        fits = min(fits, _room(source) // width)
        if 0 < target - source < fits * width:
            fits = (target - source) // width  # later elements are copies of earlier ones
    if fits == 0:
        return None
    size = fits * width
    if is_move:
        _check(memory, source, READ)
    _check(memory, target, WRITE)
    if is_move:
        memory.write(target, memory.read(source, size))
    else:
        memory.write(target, registers["rax"].to_bytes(8, "little")[:width] * fits)
    after = registers.copy()
    after["rdi"] = (target + size) & _U64
    if is_move:
        after["rsi"] = (source + size) & _U64
    if repeats:
        after["rcx"] = count - fits
    if not repeats or fits == count:
        after.pc = registers.pc + instruction.size
    return after


def _room(address: int) -> int:
    """How many bytes are left on the page of *address*."""
    return PAGE_BYTES - address % PAGE_BYTES


def _check(memory: EngineMemory, address: int, access: int) -> None:
    if not memory.allowed(address) & access:
        raise Fault(f"no access to {address:#x}", address, access)
