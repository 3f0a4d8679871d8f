"""Executes the instruction with which a thread has touched remote memory, on the memory as it really is.

The thread is stopped for the SIGSEGV that the inaccessible page has raised; nothing of the instruction has happened.
Afterwards it is complete (of a repeated one, a part), the signal is dropped, and the thread goes on natively behind
it. How an instruction is executed:

- plain moves and the usual atomic operations on one variable, without an emulator (`remote_plans`);
- movs and stos, many repetitions at once (`remote_strings`);
- general and SSE instructions by Unicorn (`tracee_engine`), which asks for each access;
- AVX, MMX, and what Unicorn's processor lacks, by the thread itself on a copy of the operand (`redirected_step`);
- locked ones: the operation on the memory is one call of the store (`remote_atomics`), or a compare-and-exchange of
  what the instruction makes of the old value; Unicorn, given the old value, makes registers and flags.

One thread at a time, on the tracer's thread.
"""

import contextlib
import signal
import struct
from dataclasses import dataclass

from stepping import ptrace_api
from stepping.errors import MemoryFaultError, SteppingError
from stepping.maps import PAGE_BYTES, read_maps
from stepping.ptrace_api import RegisterSet
from stepping.redirected_step import RedirectedStep
from stepping.registers import Registers
from stepping.remote_atomics import direct_operation, operand_bytes
from stepping.remote_memory import RemoteMap
from stepping.remote_plans import execute_plainly
from stepping.remote_strings import execute_string
from stepping.stops import decode_siginfo
from stepping.tracee import Tracee
from stepping.tracee_engine import EXEC, READ, VECTOR_SET_BYTES, WRITE, Fault, TraceeEngine
from stepping.wait_status import WaitKind
from stepping.x86_instructions import (
    MAX_INSTRUCTION_BYTES,
    Instruction,
    NotAnInstructionError,
    Unit,
    decode_instruction,
    is_narrow_exchange,
)

_SEGV_MAPERR, _SEGV_ACCERR = 1, 2
_ADDRESS_AT = 16
_ZERO_FLAG = 0x40


class UnsupportedAccessError(SteppingError):
    """An instruction touches remote memory in a way that neither the emulator nor a copied operand can do.

    tid, pc, code: of the thread; it is as it was before.
    """

    def __init__(self, tid: int, pc: int, code: bytes, why: str) -> None:
        super().__init__(
            f"cannot do what the instruction at {pc:#x} ({code.hex(' ')}) does to remote memory: {why}"
        )
        self.tid = tid
        self.pc = pc
        self.code = code
        self.why = why


@dataclass(slots=True)
class _Pinned:
    """What a locked instruction sees as its operand, and what it made of it."""

    address: int
    old: bytes
    new: bytearray

    def holds(self, address: int, size: int) -> bool:
        return self.address <= address and address + size <= self.address + len(self.old)


class RemoteAccess:
    """Serves the threads of one process that touch *remote*. scratch: see `RedirectedStep`."""

    def __init__(self, pid: int, remote: RemoteMap, scratch: int) -> None:
        self._pid = pid
        self._remote = remote
        self._view = _View(pid, remote)
        self._engine = TraceeEngine(self._view)
        self._redirected = RedirectedStep(remote.memory, scratch)

    def close(self) -> None:
        """Give up the emulator's memory."""
        self._engine.close()

    def fault_address(self, tracee: Tracee) -> int | None:
        """Return the remote address that the stopped *tracee* has touched; None if it stopped for anything else."""
        status = tracee.status
        if status is None or status.kind is not WaitKind.SIGNAL_DELIVERY or status.signo != signal.SIGSEGV:
            return None
        info = decode_siginfo(ptrace_api.getsiginfo(tracee.tid))
        if info.code not in (_SEGV_ACCERR, _SEGV_MAPERR) or info.address not in self._remote:
            return None
        return info.address

    def serve(self, tracee: Tracee, registers: Registers) -> bool:
        """Execute the instruction for which `fault_address` has told an address; the thread stays stopped.

        registers: the thread's.

        False: it may not touch its other operand. Its SIGSEGV tells that address then, and is the program's.

        Raises:
            UnsupportedAccessError: nothing has happened; the thread is as it was.
            TraceeGoneError: it was killed.
            Whatever the store raises.
        """
        pc = registers.pc
        code = self._read_code(pc)
        try:
            instruction = decode_instruction(code)
        except NotAnInstructionError as error:
            raise UnsupportedAccessError(
                tracee.tid, pc, code, "it is no instruction of 64-bit mode"
            ) from error
        try:
            after = self._execute(tracee, instruction, registers)
        except Fault as fault:
            if not fault.access:
                raise UnsupportedAccessError(tracee.tid, pc, instruction.code, str(fault)) from fault
            self._blame(tracee, fault.address)
            return False
        except MemoryFaultError as error:
            self._blame(tracee, error.address)
            return False
        tracee.write_registers(after)
        tracee.drop_signal()
        return True

    def _execute(self, tracee: Tracee, instruction: Instruction, registers: Registers) -> Registers:
        after = execute_plainly(instruction, registers, self._remote)
        if after is not None:
            return after
        if instruction.is_string:
            after = execute_string(instruction, registers, self._view)
            if after is not None:
                return after
        if instruction.is_locked:
            return self._execute_locked(tracee, instruction, registers)
        if instruction.unit is not Unit.OWN:
            try:
                return self._emulate(tracee, instruction, registers)
            except Fault as fault:
                if fault.access:
                    raise
                # An instruction that this make of emulated processor lacks.
        after = self._redirected.execute(tracee, instruction, registers, self._view)
        if after is None:
            raise UnsupportedAccessError(
                *(tracee.tid, registers.pc, instruction.code),
                "only the processor itself knows it, and its operand cannot be put elsewhere",
            )
        return after

    def _emulate(self, tracee: Tracee, instruction: Instruction, registers: Registers) -> Registers:
        engine = self._engine
        engine.load(registers)
        vectors = b""
        if instruction.unit is Unit.SSE:
            vectors = ptrace_api.getregset(tracee.tid, RegisterSet.FLOAT, VECTOR_SET_BYTES)
            engine.load_vectors(vectors)
        try:
            engine.execute(registers.pc, _unlocked(instruction))
        finally:
            engine.release(self._remote.pages)
        if vectors:
            changed = engine.read_vectors(vectors)
            if changed != vectors:
                ptrace_api.setregset(tracee.tid, changed, RegisterSet.FLOAT)
        return engine.read(registers)

    def _execute_locked(self, tracee: Tracee, instruction: Instruction, registers: Registers) -> Registers:
        """Execute a locked instruction, whose operand is on an inaccessible page: there is no other to fault for."""
        address = instruction.address(registers, registers.pc)
        size = operand_bytes(instruction)
        direct = direct_operation(instruction, registers)
        view, remote = self._view, self._remote
        old = remote.read(address, size) if direct is None else remote.atomic(address, *direct)
        while True:
            view.pinned = pinned = _Pinned(address, old, bytearray(old))
            try:
                after = self._emulate(tracee, instruction, registers)
            finally:
                view.pinned = None
            if is_narrow_exchange(instruction) and after["eflags"] & _ZERO_FLAG:
                after["rax"] = registers["rax"]
            if direct is not None:
                return after
            seen = remote.atomic(address, "compare_exchange", bytes(pinned.new), old)
            if seen == old:
                return after
            old = seen

    def _read_code(self, pc: int) -> bytes:
        memory = self._remote.memory
        with contextlib.suppress(MemoryFaultError):
            return memory.read(pc, MAX_INSTRUCTION_BYTES)
        return memory.read(pc, PAGE_BYTES - pc % PAGE_BYTES)

    def _blame(self, tracee: Tracee, address: int) -> None:
        """Let the signal that the thread is stopped for say that it touched *address*."""
        info = bytearray(ptrace_api.getsiginfo(tracee.tid))
        struct.pack_into("<Q", info, _ADDRESS_AT, address)
        ptrace_api.setsiginfo(tracee.tid, bytes(info))


def _unlocked(instruction: Instruction) -> bytes:
    """Return the instruction without its lock, at the same length: Unicorn gets the flags of a locked one wrong."""
    size = len(instruction.prefixes)
    return instruction.prefixes.replace(b"\xf0", b"\x3e") + instruction.code[size:]


class _View:
    """What an instruction sees: remote memory, the process's own, and the pinned operand of a locked one."""

    def __init__(self, pid: int, remote: RemoteMap) -> None:
        self.pinned: _Pinned | None = None
        self._pid = pid
        self._remote = remote

    def read(self, address: int, size: int) -> bytes:
        """See `EngineMemory.read`."""
        pinned = self.pinned
        if pinned is not None and pinned.holds(address, size):
            start = address - pinned.address
            return pinned.old[start : start + size]
        return self._remote.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """See `EngineMemory.write`."""
        pinned = self.pinned
        if pinned is not None and pinned.holds(address, len(data)):
            start = address - pinned.address
            pinned.new[start : start + len(data)] = data
            return
        self._remote.write(address, data)

    def allowed(self, address: int) -> int:
        """See `EngineMemory.allowed`: a remote page may be read and written."""
        if address in self._remote:
            return READ | WRITE
        vma = read_maps(self._pid).find(address)
        if vma is None:
            return 0
        letters = ((READ, "r"), (WRITE, "w"), (EXEC, "x"))
        return sum(access for access, letter in letters if letter in vma.perms[:3])
