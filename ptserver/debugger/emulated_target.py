"""A program on the emulated processor, under the debugger: of this architecture or another.

Threads share one processor and run one at a time, so a single step is one for all of them. Breakpoints are
instructions in the program's memory, as they are natively. There are no AVX registers.

Its descriptors, working directory and children are this process's; it ends with it and cannot be detached.
"""

import os
from collections.abc import Callable

from goabi.elf_header import read_elf_header
from ptserver.debugger.target import Stop
from ptserver.emulated.host import EmulatedResources
from ptserver.emulated.processes import SignalRelay
from ptserver.emulated.thread_state import (
    GENERAL_ORDERS,
    XMM_AT,
    find_auxv,
    read_registers,
    read_vectors,
)
from stepping.emulation.machine import Machine
from stepping.emulation.threads import Thread
from stepping.emulator import Trap, TrapKind
from stepping.errors import MemoryFaultError, TraceeGoneError
from stepping.registers import LAYOUTS, Registers
from stepping.watchpoints import NoWatchpointError, Watchpoint

_SIGNALS = {TrapKind.MEMORY: 11, TrapKind.INSTRUCTION: 4, TrapKind.BREAKPOINT: 5, TrapKind.ARITHMETIC: 8}


class EmulatedTarget:
    """See `target.Target`.

    seed: makes the run repeatable, single steps aside.

    Raises:
        LoadError, OSError, GoAbiError: the program cannot be run.
    """

    def __init__(self, path: str, argv: list[bytes], env: list[bytes], seed: int | None = None) -> None:
        arch = read_elf_header(path).arch
        resources = EmulatedResources(arch, path, None, None)
        self.pid = os.getpid()
        self.path = path
        self.layout = LAYOUTS[arch]
        self._machine = Machine(path, argv, env, resources, pid=self.pid, seed=seed)
        self._machine.on_trap = self._on_trap
        self._machine.on_call = self._on_call
        self._relay = SignalRelay(self._machine)
        self._space = self._machine.space
        self._originals: dict[int, bytes] = {}
        self._calls: frozenset[int] | None = frozenset()
        self._passed_call: tuple[int, int] | None = None
        self._stop: Stop | None = None
        self._signalled: dict[int, int] = {}
        self._interrupted = False
        self._auxv = find_auxv(self._space, self._machine.threads[self.pid].context.sp)

    @property
    def tids(self) -> list[int]:
        """See `Target.tids`."""
        return sorted(self._machine.threads)

    def read_registers(self, tid: int) -> Registers:
        """See `Target.read_registers`."""
        return read_registers(self._thread(tid), self.layout)

    def write_registers(self, tid: int, registers: Registers) -> None:
        """See `Target.write_registers`."""
        context = self._thread(tid).context
        context.write_general([registers[name] for name in GENERAL_ORDERS[self.layout.arch]])
        if self.layout.arch == "amd64":
            context.set_tls(registers["fs_base"])

    def read_vectors(self, tid: int) -> bytes:
        """See `Target.read_vectors`."""
        return read_vectors(self._thread(tid), self.layout)

    def write_vectors(self, tid: int, data: bytes) -> None:
        """See `Target.write_vectors`."""
        vectors = data[:512] if self.layout.arch == "arm64" else data[XMM_AT : XMM_AT + 256]
        self._thread(tid).context.write_vectors(vectors)

    def read_memory(self, address: int, size: int) -> bytes:
        """See `Target.read_memory`."""
        data = bytearray(self._space.read(address, size))
        for at, original in self._originals.items():
            for index, byte in enumerate(original):
                if address <= at + index < address + size:
                    data[at + index - address] = byte
        return bytes(data)

    def write_memory(self, address: int, data: bytes) -> None:
        """See `Target.write_memory`."""
        self._poke(address, data)
        for at in list(self._originals):
            if at < address + len(data) and address < at + len(self._originals[at]):
                del self._originals[at]
                self.insert_breakpoint(at)

    def read_auxv(self) -> bytes:
        """See `Target.read_auxv`."""
        return self._auxv

    def insert_breakpoint(self, address: int) -> None:
        """See `Target.insert_breakpoint`."""
        if address not in self._originals:
            instruction = self.layout.breakpoint_instruction
            original = self._space.read(address, len(instruction))
            self._poke(address, instruction)
            self._originals[address] = original

    def remove_breakpoint(self, address: int) -> None:
        """See `Target.remove_breakpoint`."""
        original = self._originals.pop(address, None)
        if original is not None:
            self._poke(address, original)

    def insert_watchpoint(self, watchpoint: Watchpoint) -> None:
        """See `Target.insert_watchpoint`: an emulated processor has none."""
        raise NoWatchpointError(
            "an emulated program has no watchpoints; step --trace=mem logs what it touches"
        )

    def remove_watchpoint(self, watchpoint: Watchpoint) -> None:
        """See `Target.remove_watchpoint`."""

    def stop_at_calls(self, numbers: frozenset[int] | None) -> None:
        """See `Target.stop_at_calls`."""
        self._calls = numbers

    def drop_signal(self, tid: int) -> None:
        """See `Target.drop_signal`: the instruction is tried again."""
        self._signalled.pop(tid, None)

    def interrupt(self) -> None:
        """See `Target.interrupt`."""
        self._interrupted = True
        self._machine.pause()

    def observe(
        self,
        on_instruction: Callable[[int, int], None],
        on_access: Callable[[int, bool, int, int], None] | None = None,
    ) -> None:
        """Call *on_instruction* (thread, address) before each instruction, and *on_access* (thread, written, address,
        size) for each access to memory. To be called before the program runs.
        """
        machine = self._machine

        def tid() -> int:
            return machine.current.tid if machine.current is not None else 0

        def tell(written: bool, address: int, size: int) -> None:
            assert on_access is not None
            on_access(tid(), written, address, size)

        machine.processor.observe(
            lambda pc: on_instruction(tid(), pc), tell if on_access is not None else None
        )

    def step(self, tid: int) -> Stop:
        """See `Target.step`."""
        thread = self._thread(tid)
        pc = thread.context.pc
        self._passed_call = (tid, pc)
        original = self._originals.get(pc)
        if original is not None:
            self._poke(pc, original)
        try:
            self._machine.step(thread)
        finally:
            if original is not None and self._machine.status is None:
                self._poke(pc, self.layout.breakpoint_instruction)
        self._passed_call = None
        return self._finished(thread)

    def step_within(self, tid: int, low: int, high: int) -> Stop:
        """See `Target.step_within`."""
        self._interrupted = False
        while True:
            stop = self.step(tid)
            if stop.reason != "step" or stop.tid != tid or not low <= stop.pc < high:
                return stop
            if stop.pc in self._originals:
                return stop._replace(reason="breakpoint")

    def cont(self) -> Stop:
        """See `Target.cont`."""
        self._interrupted = False
        for thread in list(self._machine.threads.values()):
            at = thread.context.pc
            if thread.wait is None and at in self._originals and not self._is_elsewhere(thread):
                stop = self.step(thread.tid)
                if stop.reason != "step":
                    return stop
        while True:
            self._machine.run_until_paused()
            stop = self._finished(None)
            if stop.reason != "step":
                return stop

    def detach(self) -> None:
        """See `Target.detach`: an emulated program has nowhere to go, so it ends."""
        self.kill()

    def kill(self) -> None:
        """See `Target.kill`."""
        if self._machine.status is None:
            self._machine.status = 9
        self._relay.close()
        self._machine.close()

    # -- what the machine tells -------------------------------------------------------------------------------

    def _is_elsewhere(self, thread: Thread) -> bool:
        """Whether a thread has yet to deliver a signal, so that it does not go on where it is."""
        return bool(thread.pending) or thread.interrupted is not None

    def _on_trap(self, thread: Thread, trap: Trap) -> bool:
        pc = thread.context.pc
        if trap.kind is TrapKind.BREAKPOINT:
            at = pc - self.layout.breakpoint_advance
            if at in self._originals:
                thread.context.pc = at
                self._pause(Stop("breakpoint", thread.tid, at))
                return True
            if pc in self._originals:
                self._pause(Stop("breakpoint", thread.tid, pc))
                return True
        signo = _SIGNALS.get(trap.kind, 0)
        if self._signalled.pop(thread.tid, 0) == signo or not signo:
            return False  # the second time it is delivered
        self._signalled[thread.tid] = signo
        self._pause(Stop("signal", thread.tid, pc, signo))
        return True

    def _on_call(self, thread: Thread, call: list[int]) -> bool:
        number, *args = call
        if self._calls is not None and number not in self._calls:
            return False
        thread.context.save()
        at = thread.context.pc - self._machine.abi.syscall_bytes
        if self._passed_call == (thread.tid, at):
            self._passed_call = None
            return False
        self._passed_call = (thread.tid, at)
        self._pause(Stop("syscall", thread.tid, at, number=number, args=tuple(args)))
        return True

    def _pause(self, stop: Stop) -> None:
        self._stop = stop
        self._machine.pause()

    def _finished(self, thread: Thread | None) -> Stop:
        machine = self._machine
        stop, self._stop = self._stop, None
        interrupted, self._interrupted = self._interrupted, False
        if machine.status is not None:
            return Stop("exited", self.pid, status=machine.status)
        if stop is not None:
            return stop
        alive = (
            thread
            if thread is not None and thread.tid in machine.threads
            else next(iter(machine.threads.values()))
        )
        return Stop("interrupt" if interrupted else "step", alive.tid, alive.context.pc)

    # -- memory -----------------------------------------------------------------------------------------------

    def _thread(self, tid: int) -> Thread:
        thread = self._machine.threads.get(tid)
        if thread is None:
            raise TraceeGoneError(tid)
        return thread

    def _poke(self, address: int, data: bytes) -> None:
        if not self._space.allows(address, len(data), 0):
            raise MemoryFaultError(address)
        self._space.view[address : address + len(data)] = data
        self._machine.processor.forget_code(address, len(data))
