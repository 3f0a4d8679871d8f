"""Executes the instruction with which a thread has touched remote memory, on the memory as it really is.

The thread is stopped for the SIGSEGV that the inaccessible page has raised; nothing of the instruction has happened.
Afterwards it is complete (of a repeated one, a part), the signal is dropped, and the thread goes on natively behind
it. How an instruction is executed:

- plain moves, additions, comparisons and the usual atomic operations, without an emulator (`remote_plans`);
- movs and stos, many repetitions at once (`remote_strings`);
- general and SSE instructions by Unicorn (`tracee_engine`), which asks for each access;
- AVX, MMX, and what Unicorn's processor lacks, by the thread itself on a copy of the operand (`redirected_step`);
- locked ones: the operation on the memory is one call of the store (`remote_atomics`), or a compare-and-exchange of
  what the instruction makes of the old value; Unicorn, given the old value, makes registers and flags.

Where its block touches remote memory again, all up to the last access is executed at once (`remote_rest`).

One thread at a time, on the tracer's thread.
"""

import contextlib
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stepping import ptrace_api
from stepping.errors import MemoryFaultError, SteppingError
from stepping.maps import PAGE_BYTES, read_maps
from stepping.ptrace_api import RegisterSet
from stepping.redirected_step import RedirectedStep
from stepping.registers import Registers
from stepping.remote_atomics import direct_operation, operand_bytes
from stepping.remote_memory import RemoteMap
from stepping.remote_plans import Plan, plan_of
from stepping.remote_quick import Known
from stepping.remote_rest import Rest, RestFinder, Step
from stepping.remote_strings import execute_string
from stepping.stops import FAULT_CODES, decode_siginfo
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

_ADDRESS_AT = 16
_ZERO_FLAG = 0x40
_MOST_REMEMBERED = 4096
_NOT_PLAIN = Known(b"", ())


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


class _Decoded(NamedTuple):
    """What is known of an instruction from its bytes."""

    instruction: Instruction
    plan: Plan | None


class RemoteAccess:
    """Serves the threads of one process that touch *remote*. scratch: see `RedirectedStep`."""

    def __init__(self, pid: int, remote: RemoteMap, scratch: int) -> None:
        self._pid = pid
        self._remote = remote
        self._view = _View(pid, remote)
        self._engine = TraceeEngine(self._view)
        self._redirected = RedirectedStep(remote.memory, scratch)
        self._rest = RestFinder(remote, self._read_code)
        self._decoded: dict[bytes, _Decoded] = {}
        self._quick: dict[int, Known] = {}
        self._quick_generation = 0

    def close(self) -> None:
        """Give up the emulator's memory."""
        self._engine.close()

    def fault_address(self, tracee: Tracee) -> int | None:
        """Return the remote address that the stopped *tracee* has touched; None if it stopped for anything else."""
        status = tracee.status
        if status is None or status.kind is not WaitKind.SIGNAL_DELIVERY or status.signo != signal.SIGSEGV:
            return None
        info = decode_siginfo(ptrace_api.getsiginfo(tracee.tid))
        if info.code not in FAULT_CODES or info.address not in self._remote:
            return None
        return info.address

    def serve(
        self, tracee: Tracee, registers: Registers, tell: Callable[[int], None] = lambda pc: None
    ) -> bool:
        """Execute the instruction for which `fault_address` has told an address; the thread stays stopped.

        registers: the thread's. What follows in its block may be executed, too. tell: is called with the address of
        each instruction that is about to access remote memory.

        False: it may not touch its other operand. Its SIGSEGV tells that address then, and is the program's.

        Raises:
            UnsupportedAccessError: nothing has happened; the thread is as it was.
            TraceeGoneError: it was killed.
            Whatever the store raises; the thread is in front of the instruction whose access was not made.
        """
        pc = registers.pc
        decoded = self._decode(tracee, pc)
        tell(pc)
        try:
            after = self._execute(tracee, decoded.instruction, decoded.plan, registers)
        except Fault as fault:
            if not fault.access:
                raise UnsupportedAccessError(tracee.tid, pc, decoded.instruction.code, str(fault)) from fault
            self._blame(tracee, fault.address)
            return False
        except MemoryFaultError as error:
            self._blame(tracee, error.address)
            return False
        tracee.drop_signal()
        self._rest.note_trap(pc)
        rest = self._rest.find(after.pc) if after.pc != pc else None
        if rest is None or not rest.steps:
            tracee.write_registers(after)
            return True
        progress = _Progress(after)
        try:
            self._execute_rest(tracee, rest, progress, tell)
        finally:
            tracee.write_registers(progress.registers)
        return True

    def look_up(self, pc: int) -> Known | None:
        """Return what is known of the instruction at *pc*, which has trapped before; None if it has not.

        Raises:
            MemoryFaultError: its code cannot be read.
        """
        rest = self._rest
        if self._quick_generation != rest.generation:
            self._quick_generation = rest.generation
            self._quick.clear()
        known = self._quick.get(pc)
        if known is None and rest.has_trapped(pc):
            known = self._quick[pc] = self._learn(pc)
        return known

    def _learn(self, pc: int) -> Known:
        decoded = self._decoded.get(self._read_code(pc, MAX_INSTRUCTION_BYTES))
        if decoded is None or decoded.plan is None:
            return _NOT_PLAIN
        code = decoded.instruction.code
        rest = self._rest.find(pc + len(code))
        if not rest.is_plain:
            return _NOT_PLAIN
        return Known(code + rest.code, (decoded.plan, *(step.plan for step in rest.steps if step.plan)))

    def _decode(self, tracee: Tracee, pc: int) -> _Decoded:
        code = self._read_code(pc, MAX_INSTRUCTION_BYTES)
        decoded = self._decoded.get(code)
        if decoded is None:
            try:
                instruction = decode_instruction(code)
            except NotAnInstructionError as error:
                raise UnsupportedAccessError(
                    tracee.tid, pc, code, "it is no instruction of 64-bit mode"
                ) from error
            if len(self._decoded) >= _MOST_REMEMBERED:
                self._decoded.clear()
            decoded = self._decoded[code] = _Decoded(instruction, plan_of(instruction))
        return decoded

    def _execute(
        self, tracee: Tracee, instruction: Instruction, plan: Plan | None, registers: Registers
    ) -> Registers:
        if plan is not None:
            after = plan.execute(registers, self._remote)
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

    def _execute_rest(
        self, tracee: Tracee, rest: Rest, progress: "_Progress", tell: Callable[[int], None]
    ) -> None:
        """Execute *rest* as far as that is possible; what is not is left to the thread itself."""
        steps = rest.steps
        at = 0
        # What touches a variable and its neighbour at once may fault, or be none that can be emulated.
        with contextlib.suppress(Fault, MemoryFaultError, UnsupportedAccessError):
            while at < len(steps):
                step = steps[at]
                if rest.is_plain or step.instruction.is_locked:
                    tell(step.pc)
                    progress.registers = self._execute(
                        tracee, step.instruction, step.plan, progress.registers
                    )
                    at += 1
                    continue
                end = at
                while end < len(steps) and not steps[end].instruction.is_locked:
                    end += 1
                self._emulate_all(tracee, steps[at:end], progress, tell)
                at = end

    def _emulate_all(
        self, tracee: Tracee, steps: Sequence[Step], progress: "_Progress", tell: Callable[[int], None]
    ) -> None:
        """Execute *steps*, one behind the other; also when it fails, *progress* is up to what was complete."""
        engine = self._engine
        for step in steps:
            engine.put_code(step.pc, step.instruction.code)
        remote = {step.pc for step in steps if step.is_remote}
        end = steps[-1].pc + steps[-1].instruction.size
        before: Registers | None = None  # an instruction whose access is under way

        def goes_on(pc: int) -> bool:
            nonlocal before
            before = None
            if pc in remote:
                before = engine.read(progress.registers)
                tell(pc)
            return pc != end

        with self._engine_at(tracee, progress.registers, any(_uses_vectors(step) for step in steps)):
            try:
                engine.run(progress.registers.pc, goes_on)
            finally:
                progress.registers = before or engine.read(progress.registers)

    def _emulate(self, tracee: Tracee, instruction: Instruction, registers: Registers) -> Registers:
        with self._engine_at(tracee, registers, instruction.unit is Unit.SSE):
            self._engine.execute(registers.pc, _unlocked(instruction))
        return self._engine.read(registers)

    @contextlib.contextmanager
    def _engine_at(self, tracee: Tracee, registers: Registers, has_vectors: bool) -> Iterator[None]:
        """Let the engine be where the thread is, and the thread have the vectors that the engine made of its own."""
        engine = self._engine
        engine.load(registers)
        vectors = b""
        if has_vectors:
            vectors = ptrace_api.getregset(tracee.tid, RegisterSet.FLOAT, VECTOR_SET_BYTES)
            engine.load_vectors(vectors)
        try:
            yield
        finally:
            engine.release(self._remote.pages)
            if vectors:
                changed = engine.read_vectors(vectors)
                if changed != vectors:
                    ptrace_api.setregset(tracee.tid, changed, RegisterSet.FLOAT)

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

    def _read_code(self, pc: int, size: int) -> bytes:
        """Return *size* bytes of code, or those up to the end of the page."""
        memory = self._remote.memory
        with contextlib.suppress(MemoryFaultError):
            return memory.read(pc, size)
        return memory.read(pc, min(size, PAGE_BYTES - pc % PAGE_BYTES))

    def _blame(self, tracee: Tracee, address: int) -> None:
        """Let the signal that the thread is stopped for say that it touched *address*."""
        info = bytearray(ptrace_api.getsiginfo(tracee.tid))
        struct.pack_into("<Q", info, _ADDRESS_AT, address)
        ptrace_api.setsiginfo(tracee.tid, bytes(info))


@dataclass(slots=True)
class _Progress:
    """The registers of a thread behind what is complete."""

    registers: Registers


def _uses_vectors(step: Step) -> bool:
    return step.instruction.unit is Unit.SSE


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
