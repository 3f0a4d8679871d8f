"""Breakpoints in the code of a traced process: instructions replaced so that whoever gets there stops.

A thread that hits one reports a signal-delivery-stop with SIGTRAP. `take_hit` recognises it and sets the thread's
program counter back to the breakpoint's address, as if the thread had stopped before the instruction there.
To go on it must be stepped over the breakpoint: the instruction is put back for one step, during which all other
threads must be stopped, or they would run past it unseen.

The bytes belong to the process's memory, which all its threads and its vfork children share; a child after
fork has a copy with the breakpoints in it. Detaching must be preceded by `remove_all`.

All methods are called on the tracer's thread, with the tracees that they touch stopped.

Source: Intel SDM volume 3, "Breakpoint exception"; ptrace(2).
"""

import contextlib
import signal
from collections.abc import Iterator

from stepping import ptrace_api
from stepping.errors import MemoryFaultError, SteppingError, TraceeGoneError
from stepping.registers import RegisterLayout
from stepping.tracee import Resume, Tracee
from stepping.tracee_memory import TraceeMemory
from stepping.wait_status import Event, WaitKind

_ALL_BUT_TRAP = ~(1 << (signal.SIGTRAP - 1)) & (1 << 64) - 1


class Breakpoints:
    """The breakpoints in the memory of one process."""

    def __init__(self, memory: TraceeMemory, layout: RegisterLayout) -> None:
        self._memory = memory
        self._layout = layout
        self._originals: dict[int, bytes] = {}

    def __contains__(self, address: int) -> bool:
        return address in self._originals

    def __len__(self) -> int:
        return len(self._originals)

    def insert(self, address: int) -> None:
        """Put a breakpoint at *address*, the first byte of an instruction; nothing happens if there is one.

        Raises:
            MemoryFaultError: no memory is there.
        """
        if address not in self._originals:
            instruction = self._layout.breakpoint_instruction
            original = self._memory.read(address, len(instruction))
            self._memory.write(address, instruction)
            self._originals[address] = original

    def remove(self, address: int) -> None:
        """Put back the instruction at *address*; nothing happens if there is no breakpoint.

        A thread that has hit it already is still to be asked about by `take_hit`: do that first.
        """
        original = self._originals.pop(address, None)
        if original is not None:
            self._memory.write(address, original)

    def remove_all(self) -> None:
        """Put back all instructions."""
        for address in list(self._originals):
            self.remove(address)

    def forget_all(self) -> None:
        """Forget about all breakpoints: the memory that they were in is gone, after an exec or an exit."""
        self._originals.clear()

    def take_hit(self, tracee: Tracee) -> int | None:
        """Return the breakpoint that the stopped *tracee* has hit, None if it is stopped for anything else.

        Its program counter is at that address afterwards, and its SIGTRAP is dropped. Resume it by `step_over`, or
        within `lifted`.
        """
        status = tracee.status
        if status is None or status.kind is not WaitKind.SIGNAL_DELIVERY or status.signo != signal.SIGTRAP:
            return None
        registers = tracee.read_registers()
        address = registers.pc - self._layout.breakpoint_advance
        if address not in self._originals:
            return None
        if self._layout.breakpoint_advance:
            registers.pc = address
            tracee.write_registers(registers)
        tracee.drop_signal()
        return address

    @contextlib.contextmanager
    def lifted(self, address: int) -> Iterator[None]:
        """Put back the instruction at *address* within a ``with`` block, if there is a breakpoint.

        All threads of the process that could come there unseen must be stopped.
        """
        original = self._originals.get(address)
        if original is None:
            yield
            return
        self._memory.write(address, original)
        try:
            yield
        finally:
            # The thread that was let over it may have ended the process, or replaced its program.
            with contextlib.suppress(MemoryFaultError):
                self._memory.write(address, self._layout.breakpoint_instruction)

    def read(self, address: int, size: int) -> bytes:
        """Return memory as the program has it, without the breakpoints in it.

        Raises:
            MemoryFaultError: not all of it can be read.
        """
        return self.unmask(address, self._memory.read(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Put *data* into memory, under the breakpoints that are there.

        Raises:
            MemoryFaultError: not all of it can be written.
        """
        self._memory.write(address, data)
        for at, original in self._originals.items():
            kept = bytearray(original)
            for index in range(len(kept)):
                if 0 <= at + index - address < len(data):
                    kept[index] = data[at + index - address]
            if bytes(kept) != original or address <= at < address + len(data):
                self._originals[at] = bytes(kept)
                self._memory.write(at, self._layout.breakpoint_instruction)

    def remove_from_copy(self, memory: TraceeMemory) -> None:
        """Put back all instructions in *memory*, a copy of this memory that fork(2) has made.

        Nothing changes if it is no copy but this memory itself (vfork).
        """
        instruction = self._layout.breakpoint_instruction
        for address, original in self._originals.items():
            if memory.read(address, len(original)) == instruction:
                memory.write(address, original)
                if self._memory.read(address, len(original)) != instruction:
                    self._memory.write(address, instruction)
                    return

    def unmask(self, address: int, data: bytes) -> bytes:
        """Return *data*, which was read from memory at *address*, as the program has it: without breakpoints."""
        size = len(self._layout.breakpoint_instruction)
        hidden = [at for at in self._originals if address - size < at < address + len(data)]
        if not hidden:
            return data
        shown = bytearray(data)
        for at in hidden:
            for index, byte in enumerate(self._originals[at][:size]):
                if 0 <= at + index - address < len(shown):
                    shown[at + index - address] = byte
        return bytes(shown)

    def step_over(self, tracee: Tracee) -> None:
        """Let *tracee* execute the instruction at its program counter, under the breakpoint there if there is one.

        It is stopped again afterwards, by a SIGTRAP that must not be delivered. Signals sent meanwhile remain
        pending. All other threads of the process must be stopped.

        Raises:
            TraceeGoneError: it died.
            SteppingError: the instruction faulted; the tracee is stopped for that signal.
        """
        address = tracee.read_registers().pc
        mask = ptrace_api.getsigmask(tracee.tid)
        with self.lifted(address):
            # A blocked SIGTRAP would cost the program its handler: the kernel resets what it must force.
            ptrace_api.setsigmask(tracee.tid, _ALL_BUT_TRAP)
            while True:
                tracee.resume(Resume.STEP, deliver=False)
                status = tracee.wait()
                if status is None or not status.is_stop:
                    raise TraceeGoneError(tracee.tid)
                if status.event is not Event.STOP:
                    break  # otherwise an interrupt was still to be reported, and nothing was executed
            ptrace_api.setsigmask(tracee.tid, mask)
        if status.kind is not WaitKind.SIGNAL_DELIVERY or status.signo != signal.SIGTRAP:
            raise SteppingError(f"thread {tracee.tid} did not step from {address:#x}: {status}")
