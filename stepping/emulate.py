"""Runs a thread on an emulated processor, over the registers and memory of the stopped thread itself.

Nothing runs in the tracee meanwhile: its registers are taken at the start of a run and put back at its end, its
memory is read and written as the instructions touch it. So its syscalls are not made (a run ends before one, asked
to or not), and no signal is delivered: a thread that is stopped for one is returned at once.

What only the processor itself can execute (AVX, x87, cpuid, the clock), and what Unicorn does not know, ends a run as
`CannotExecute`. Whoever wants to go on runs that instruction by another executor.

Only amd64. An emulated instruction is not one access for other threads: those that share memory must be stopped, or
an atomic instruction is none.
"""

from stepping import ptrace_api
from stepping.blocks import Decoder
from stepping.breakpoints import Breakpoints
from stepping.errors import SteppingError
from stepping.executor import (
    AboutToCall,
    Access,
    CannotExecute,
    CountUsedUp,
    LeftRange,
    MemoryFault,
    Reached,
    RunResult,
    Signalled,
    Until,
)
from stepping.instructions import Flow
from stepping.maps import Maps, read_maps
from stepping.ptrace_api import RegisterSet
from stepping.stop_results import read_code
from stepping.tracee import Tracee
from stepping.tracee_engine import EXEC, READ, VECTOR_SET_BYTES, WRITE, Fault, TraceeEngine
from stepping.tracee_memory import TraceeMemory
from stepping.x86_instructions import NotAnInstructionError, Unit, decode_instruction

_ACCESSES: dict[int, Access] = {READ: "read", WRITE: "write", EXEC: "execute"}
_SYSCALL, _BREAKPOINT = b"\x0f\x05", b"\xcc"


class EmulateExecutor:
    """Emulates threads of one process. breakpoints: those in its memory. `close` gives up the emulator."""

    def __init__(self, breakpoints: Breakpoints, memory: TraceeMemory) -> None:
        self._breakpoints = breakpoints
        self._view = _View(breakpoints, memory)
        self._engine = TraceeEngine(self._view)
        self._decoder = Decoder("amd64")
        self._flows: dict[int, Flow] = {}

    def close(self) -> None:
        """Give up the emulator's memory."""
        self._engine.close()

    def run(self, tracee: Tracee, until: Until) -> RunResult:
        """See `executor.Executor.run`.

        Raises:
            SteppingError: the thread is not one of amd64.
        """
        if tracee.layout.arch != "amd64":
            raise SteppingError("only threads of amd64 can be run on the emulated processor")
        registers = tracee.read_registers()
        if tracee.pending_signal:
            return Signalled(registers.pc, tracee.pending_signal)
        self._view.maps = read_maps(tracee.pid)
        self._engine.load(registers)
        run = _Run(self, tracee, until)
        try:
            self._engine.run(registers.pc, run.goes_on)
            result = run.result
        except Fault as fault:
            result = self._result_of(fault)
        finally:
            self._engine.forget()
            self._flows.clear()
        assert result is not None
        tracee.write_registers(self._engine.read(registers))
        run.put_vectors_back()
        return result

    def flow_at(self, pc: int) -> Flow:
        """Return where execution goes after the instruction at *pc*."""
        flow = self._flows.get(pc)
        if flow is None:
            flow = self._flows[pc] = self._decoder.decode(read_code(self._breakpoints, pc), pc).flow
        return flow

    def _result_of(self, fault: Fault) -> RunResult:
        pc = self._engine.pc
        if fault.access:
            return MemoryFault(pc, fault.address, _ACCESSES[fault.access])
        return CannotExecute(pc, read_code(self._breakpoints, pc), str(fault))


class _Run:
    """One run: decides before each instruction whether it is to be executed."""

    def __init__(self, executor: EmulateExecutor, tracee: Tracee, until: Until) -> None:
        self.result: RunResult | None = None
        self._executor = executor
        self._engine = executor._engine
        self._tracee = tracee
        self._until = until
        self._instructions = until.instructions or 0
        self._blocks = until.blocks or 0
        self._previous: int | None = None
        self._vectors = b""

    def goes_on(self, pc: int) -> bool:
        """Whether the instruction at *pc* is to be executed; otherwise `result` says why not."""
        if self._previous is not None:
            if pc == self._previous and self._repeats(pc):
                return True
            self.result = self._ending(pc)
        if self.result is None:
            self.result = self._refusal(pc)
        self._previous = pc
        return self.result is None

    def put_vectors_back(self) -> None:
        """Give the thread the vector registers that the run has changed."""
        if self._vectors:
            changed = self._engine.read_vectors(self._vectors)
            if changed != self._vectors:
                ptrace_api.setregset(self._tracee.tid, changed, RegisterSet.FLOAT)

    def _repeats(self, pc: int) -> bool:
        """Whether *pc*, executed last, is a string instruction in the midst of its repetitions."""
        code = read_code(self._executor._breakpoints, pc)
        return code[:1] in (b"\xf2", b"\xf3") and decode_instruction(code).is_string

    def _ending(self, pc: int) -> RunResult | None:
        until = self._until
        self._instructions -= 1
        ends_block = False
        if until.blocks is not None:
            assert self._previous is not None
            ends_block = self._executor.flow_at(self._previous) is not Flow.NEXT
            self._blocks -= ends_block
        if pc in until.addresses or pc in self._executor._breakpoints:
            return Reached(pc)
        if until.is_outside(pc):
            return LeftRange(pc)
        if self._instructions == 0 or (ends_block and self._blocks == 0):
            return CountUsedUp(pc)
        return None

    def _refusal(self, pc: int) -> RunResult | None:
        code = read_code(self._executor._breakpoints, pc)
        try:
            instruction = decode_instruction(code)
        except NotAnInstructionError:
            return CannotExecute(pc, code, "it is no instruction") if code else None  # fetching it faults
        if instruction.unit is Unit.GENERAL:
            return None
        if instruction.unit is Unit.SSE:
            if not self._vectors:
                tid = self._tracee.tid
                self._vectors = ptrace_api.getregset(tid, RegisterSet.FLOAT, VECTOR_SET_BYTES)
                self._engine.load_vectors(self._vectors)
            return None
        if instruction.code == _SYSCALL:
            return self._about_to_call(pc)
        if instruction.code == _BREAKPOINT:
            return Reached(pc)
        return CannotExecute(pc, code, "only the processor itself can execute it")

    def _about_to_call(self, pc: int) -> AboutToCall:
        registers = self._engine.read(self._tracee.read_registers())
        a0, a1, a2, a3, a4, a5 = (registers[name] for name in registers.layout.args)
        return AboutToCall(pc, registers[registers.layout.sysno], (a0, a1, a2, a3, a4, a5))


class _View:
    """A tracee's memory as the engine wants it, without the breakpoints that are in it."""

    def __init__(self, breakpoints: Breakpoints, memory: TraceeMemory) -> None:
        self.maps = Maps(())
        self._breakpoints = breakpoints
        self._memory = memory

    def read(self, address: int, size: int) -> bytes:
        """Return what is there. Raises: MemoryFaultError."""
        return self._breakpoints.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Put *data* there. Raises: MemoryFaultError."""
        self._memory.write(address, data)

    def allowed(self, address: int) -> int:
        """Return what the thread itself may do with the page at *address*."""
        vma = self.maps.find(address)
        if vma is None:
            return 0
        letters = ((READ, "r"), (WRITE, "w"), (EXEC, "x"))
        return sum(access for access, letter in letters if letter in vma.perms[:3])
