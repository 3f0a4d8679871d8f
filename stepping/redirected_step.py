"""Has a thread execute one instruction itself, with its memory operand somewhere else: what Unicorn does not know.

A copy of the instruction whose operand is a buffer in the process is put next to that buffer, the thread steps over
the copy, and what it left in the buffer is the result. Registers, flags and vectors are the processor's own work,
and no other thread is stopped or sees anything.

How large an operand is, is known for what Go's compiler and assembly have of AVX, AVX2 and AVX-512. For others as
many bytes are read as a vector has; only what the instruction changed is written.

Source: Intel SDM volume 2; ptrace(2).
"""

import os
import signal

from stepping import ptrace_api
from stepping.errors import SteppingError, TraceeGoneError
from stepping.registers import Registers
from stepping.remote_memory import LocalMemory
from stepping.stop_results import is_step_trap
from stepping.tracee import Resume, Tracee
from stepping.tracee_engine import EngineMemory
from stepping.wait_status import WaitKind
from stepping.x86_instructions import Instruction, Unit

#: How many bytes the code and the buffer need; the code is on a page that can be executed, the buffer on the next.
SCRATCH_BYTES = 2 * 4096

_PAGE = 4096
_ALL_BUT_TRAP = (1 << 64) - 1 & ~(1 << signal.SIGTRAP - 1)
_RESUME_FLAG = 1 << 16

_SCALAR_1 = frozenset({0x10, 0x11, 0x2A, 0x2C, 0x2D, 0x51, *range(0x58, 0x60), 0xC2})
_EIGHT_1 = frozenset({0x12, 0x13, 0x16, 0x17, 0xD6})
_SIXTEEN_1 = frozenset({0xD1, 0xD2, 0xD3, 0xE1, 0xE2, 0xF1, 0xF2, 0xF3})  # shifts by a vector's lower half
_FIXED_2 = {0x18: 4, 0x19: 8, 0x1A: 16, 0x58: 4, 0x59: 8, 0x5A: 16, 0x78: 1, 0x79: 2}
_FRACTION_2 = {0: 2, 1: 4, 2: 8, 3: 2, 4: 4, 5: 2}  # vpmovsx, vpmovzx: 20 to 25, 30 to 35
_FIXED_3 = {0x14: 1, 0x15: 2, 0x17: 4, 0x18: 16, 0x19: 16, 0x20: 1, 0x21: 4, 0x38: 16, 0x39: 16}
_STORES_1 = frozenset({0x11, 0x13, 0x17, 0x29, 0x2B, 0x7F, 0xE7, 0xD6})


class RedirectedStep:
    """Steps threads of one process over redirected instructions.

    scratch: where `SCRATCH_BYTES` of its *memory* are at its disposal: a page of code, and one that can be written.
    """

    def __init__(self, memory: LocalMemory, scratch: int) -> None:
        self._memory = memory
        self._code = scratch
        self._buffer = scratch + _PAGE

    def execute(
        self, tracee: Tracee, instruction: Instruction, registers: Registers, view: EngineMemory
    ) -> Registers | None:
        """Execute *instruction*, to which *registers* of the stopped *tracee* point, on the memory *view*.

        Return the registers after it; the thread itself has other ones, and the vectors that the instruction made.
        None: its operand cannot be redirected; nothing has happened.

        Raises:
            TraceeGoneError: the thread was killed.
            Whatever the memory raises.
        """
        copy = instruction.redirected(self._code, self._buffer)
        if copy is None or instruction.is_locked or _saves_state(instruction):
            return None
        address = instruction.address(registers, registers.pc)
        size = memory_bytes(instruction)
        before = bytes(size) if is_store(instruction) else view.read(address, size)
        self._memory.write(self._buffer, before)
        self._memory.write(self._code, copy)
        after = self._step(tracee, registers, len(copy))
        changed = self._memory.read(self._buffer, size)
        if is_store(instruction):
            view.write(address, changed)
        elif changed != before:
            view.write(*_changed_span(address, before, changed))
        after.pc = registers.pc + instruction.size
        return after

    def _step(self, tracee: Tracee, registers: Registers, size: int) -> Registers:
        moved = registers.copy()
        moved.pc = self._code
        moved["eflags"] &= ~_RESUME_FLAG
        tracee.drop_signal()
        mask = ptrace_api.getsigmask(tracee.tid)
        tracee.write_registers(moved)
        ptrace_api.setsigmask(tracee.tid, _ALL_BUT_TRAP)
        stopped = False
        while True:
            tracee.resume(Resume.STEP)
            status = tracee.wait()
            if status is None or not status.is_stop:
                raise TraceeGoneError(tracee.tid)
            if is_step_trap(tracee, status):
                break
            if status.kind is WaitKind.SIGNAL_DELIVERY and status.signo != signal.SIGSTOP:
                raise SteppingError(
                    f"thread {tracee.tid} did not step over the copy of an instruction: {status}"
                )
            # SIGSTOP cannot be blocked; it is for later.
            stopped = stopped or status.kind is WaitKind.SIGNAL_DELIVERY
            tracee.drop_signal()
        tracee.drop_signal()
        ptrace_api.setsigmask(tracee.tid, mask)
        if stopped:
            os.kill(tracee.pid, signal.SIGSTOP)
        after = tracee.read_registers()
        if after.pc != self._code + size:
            raise SteppingError(f"the copy of an instruction at {registers.pc:#x} led to {after.pc:#x}")
        return after


def memory_bytes(instruction: Instruction) -> int:
    """Return the size of an instruction's memory operand, in bytes; rather more than too few."""
    full, opcode, wide = instruction.vector_bytes, instruction.opcode, instruction.wide
    word = 8 if wide else 4
    if not full:
        return {Unit.GENERAL: instruction.operand_bytes, Unit.SSE: 16, Unit.OWN: 8}[instruction.unit]
    match instruction.map:
        case 1:
            if opcode in _SCALAR_1 and instruction.pp >= 2:
                return 4 if instruction.pp == 2 else 8
            if opcode in (0x2E, 0x2F):
                return 8 if instruction.pp == 1 else 4
            if opcode in _EIGHT_1 and not (opcode in (0x12, 0x16) and instruction.pp >= 2):
                return 8
            if opcode == 0x6E or opcode == 0x7E:
                return 8 if instruction.pp == 2 else word
            if opcode in (0x90, 0x91) and instruction.encoding == "vex":  # kmov
                return {(0, False): 2, (0, True): 8, (1, False): 1, (1, True): 4}[(instruction.pp, wide)]
            if opcode == 0xC4:
                return 2
            return 16 if opcode in _SIXTEEN_1 else full
        case 2:
            if opcode & 0xE8 == 0x20 and opcode & 7 in _FRACTION_2 and opcode & 0x0F < 6:
                return full // _FRACTION_2[opcode & 7]
            if (
                opcode & 0xF0 in (0x90, 0xA0, 0xB0) and opcode & 0x0F >= 9 and opcode & 1
            ):  # one of FMA's scalar
                return word
            return _FIXED_2.get(opcode, full)
        case 3:
            return word if opcode in (0x16, 0x22) else _FIXED_3.get(opcode, full)
    return full


def is_store(instruction: Instruction) -> bool:
    """Whether the instruction only writes its memory operand, all `memory_bytes` of it."""
    if instruction.encoding == "evex":
        masked = instruction.code[len(instruction.prefixes) + 3] & 7
        if masked:
            return False
    elif instruction.encoding != "vex":
        return False
    if instruction.map == 1:
        is_move_of_word = instruction.opcode == 0x7E and instruction.pp == 1
        return instruction.opcode in _STORES_1 or is_move_of_word or instruction.opcode == 0x91
    return instruction.map == 3 and instruction.opcode in (0x14, 0x15, 0x16, 0x17, 0x19, 0x39)


def _saves_state(instruction: Instruction) -> bool:
    """Whether it is x87, or saves or restores the processor's state: operands of many sizes."""
    if instruction.map == 0:
        return 0xD8 <= instruction.opcode <= 0xDF
    return (
        instruction.map == 1
        and instruction.opcode in (0x01, 0x0D, 0xAE, 0xC7)
        and not instruction.vector_bytes
    )


def _changed_span(address: int, before: bytes, after: bytes) -> tuple[int, bytes]:
    """Return where the first changed byte is, and all up to the last one."""
    places = [index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    return address + places[0], after[places[0] : places[-1] + 1]
