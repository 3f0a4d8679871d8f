"""Controls a program for a person: breakpoints by name, steps by instruction, block, line and function.

Everything follows one goroutine, that of the thread which stopped last. A single step runs its thread alone (see
`target`), and what takes longer than a step, a call that is stepped over, lets all threads run: the goroutine may
then go on in another thread, which becomes the current one. Breakpoints that other goroutines hit meanwhile end it.
"""

import contextlib
from dataclasses import dataclass, field

from ptserver.debugger.program import ProgramView
from ptserver.debugger.target import Stop, Target
from ptserver.errors import PtServerError
from stepping.blocks import Decoder
from stepping.errors import SteppingError
from stepping.instructions import Flow, Instruction
from stepping.stop_results import MAX_INSTRUCTION_BYTES
from stepping.watchpoints import Watchpoint

_CALLS = (Flow.CALL, Flow.INDIRECT_CALL)
_STEPPED_ALONE = (*_CALLS, Flow.SYSCALL, Flow.TRAP)
_NO_LINE = ("", 0)
#: As many instructions of a line are executed in one go.
_MOST_INSTRUCTIONS_OF_LINE = 64
#: A step by lines gives up after so many instructions without another line.
_MOST_STEPS = 200_000
_RUNTIME = ("runtime.", "internal/runtime/")


class DebuggerError(PtServerError):
    """What was asked for cannot be done now."""

    exit_status = 64


@dataclass
class Breakpoint:
    """A place where the program is to stop. number: the user's; hits: how often it did.

    watchpoint: instead of addresses of code, memory whose change is to stop it; value: what was there last.
    """

    number: int
    text: str
    addresses: list[int] = field(default_factory=list)
    hits: int = 0
    watchpoint: Watchpoint | None = None
    value: bytes = b""


@dataclass(frozen=True)
class _Place:
    """Where a goroutine is: its number (or minus the thread's), and how deep its stack is, in bytes."""

    who: int
    depth: int


class Debugger:
    """Controls *target*. `stop`: the last stop; `tid`: the thread that is looked at."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.view = ProgramView(target)
        first = target.tids[0]
        self.stop = Stop("step", first, target.read_registers(first).pc)
        self.tid = first
        self.breakpoints: dict[int, Breakpoint] = {}
        self.calls: frozenset[int] | None = frozenset()
        self._decoder = Decoder(target.layout.arch)
        self._next_number = 1

    @property
    def exited(self) -> bool:
        """Whether the program is gone."""
        return self.stop.reason == "exited"

    @property
    def pc(self) -> int:
        """Where the current thread is."""
        return self.target.read_registers(self.tid).pc

    # -- breakpoints ------------------------------------------------------------------------------------------

    def add_breakpoint(self, text: str) -> Breakpoint:
        """Stop where *text* says; see `ProgramView.resolve`.

        Raises:
            LocationError, SteppingError: there is no such place.
        """
        addresses = self.view.resolve(text, None if self.exited else self.pc)
        for address in addresses:
            self.target.insert_breakpoint(address)
        one = Breakpoint(self._next_number, text, addresses)
        self._next_number += 1
        self.breakpoints[one.number] = one
        return one

    def add_watchpoint(self, text: str, watchpoint: Watchpoint) -> Breakpoint:
        """Stop behind instructions that touch *watchpoint*, which *text* names.

        Raises:
            SteppingError: it cannot be watched.
        """
        value = self.target.read_memory(watchpoint.address, watchpoint.size)
        self.target.insert_watchpoint(watchpoint)
        one = Breakpoint(self._next_number, text, watchpoint=watchpoint, value=value)
        self._next_number += 1
        self.breakpoints[one.number] = one
        return one

    def remove_breakpoint(self, number: int) -> None:
        """Do not stop there any more.

        Raises:
            DebuggerError: there is no such breakpoint.
        """
        one = self.breakpoints.pop(number, None)
        if one is None:
            raise DebuggerError(f"there is no breakpoint {number}")
        if one.watchpoint is not None and one.watchpoint not in self._watched():
            self.target.remove_watchpoint(one.watchpoint)
        for address in one.addresses:
            if address not in self._addresses():
                self.target.remove_breakpoint(address)

    def hit(self) -> Breakpoint | None:
        """Return the breakpoint that the program has stopped at, if it has at one."""
        if self.stop.reason == "breakpoint":
            return next((one for one in self.breakpoints.values() if self.stop.pc in one.addresses), None)
        if self.stop.reason == "watchpoint":
            return next(
                (one for one in self.breakpoints.values() if one.watchpoint == self.stop.watchpoint), None
            )
        return None

    def catch_calls(self, numbers: frozenset[int] | None) -> None:
        """Stop before these syscalls; None: before all."""
        self.calls = numbers
        self.target.stop_at_calls(numbers)

    # -- running ----------------------------------------------------------------------------------------------

    def cont(self) -> Stop:
        """Let the program run until something happens."""
        return self._stopped(self.target.cont())

    def step_instruction(self, count: int = 1) -> Stop:
        """Execute *count* instructions of the current thread."""
        for _ in range(count):
            stop = self._stopped(self.target.step(self.tid))
            if stop.reason != "step" or stop.pc in self._addresses():
                break
        return self.stop

    def step_block(self) -> Stop:
        """Execute up to the end of the block: through the next jump, taken or not, call, return or syscall."""
        last = start = self.pc
        while (instruction := self.instruction_at(last)).flow is Flow.NEXT:
            last = instruction.end
        if last != start:
            stop = self._stopped(self.target.step_within(self.tid, start, last))
            if stop.reason != "step" or stop.pc != last or last in self._addresses():
                return stop
        return self._stopped(self.target.step(self.tid))

    def step_line(self, *, into: bool) -> Stop:
        """Execute up to another line of source. into: or up to the first line of a function that is called.

        Functions of Go's runtime are always stepped over.
        """
        start = self._line()
        frames = self.view.frames_at(self.pc)
        function = frames[0].function if frames else ""
        for _ in range(_MOST_STEPS):
            instruction = self.instruction_at(self.pc)
            if instruction.flow in _CALLS:
                stop = self._step_call(instruction, into=into)
            else:
                stop = self._stopped(self.target.step_within(self.tid, self.pc, self._end_of_line()))
            if stop.reason != "step" or stop.pc in self._addresses():
                return stop
            line = self._line()
            if line[1] and line != start and (into or not self._is_inlined_in(function)):
                return stop
        return self.stop

    def step_out(self) -> Stop:
        """Run until the function that the goroutine is in has returned.

        Raises:
            DebuggerError: it is not known where to.
        """
        stack = self.view.stack_of(self.tid)
        if stack is None or len(stack.frames) < 2:
            raise DebuggerError("it is not known where this function returns to")
        frame, caller = stack.frames[:2]
        place = self._place()
        deeper = frame.cfa - self.target.read_registers(self.tid).sp
        return self._run_to(caller.pc, _Place(place.who, place.depth - deeper))

    def instruction_at(self, address: int) -> Instruction:
        """Return the instruction at *address*."""
        return self._decoder.decode(self.read_code(address), address)

    def read_code(self, address: int, size: int = MAX_INSTRUCTION_BYTES) -> bytes:
        """Return at most *size* bytes of code at *address*; fewer where memory ends."""
        for wanted in (size, min(size, 4096 - address % 4096)):
            with contextlib.suppress(SteppingError):
                return self.target.read_memory(address, wanted)
        return b""

    def iter_text(self, address: int, count: int) -> list[tuple[int, int, str, str]]:
        """Return *count* instructions from *address* on: address, size, mnemonic, operands."""
        code = self.read_code(address, MAX_INSTRUCTION_BYTES * count)
        return [text for _, text in zip(range(count), self._decoder.iter_text(code, address), strict=False)]

    def _step_call(self, instruction: Instruction, *, into: bool) -> Stop:
        place = self._place()
        if into:
            stop = self._stopped(self.target.step(self.tid))
            function = self.view.function_at(stop.pc) if stop.reason == "step" else None
            if function is not None and not function.name.startswith(_RUNTIME):
                behind = self.view.behind_check(function) + self.view.bias
                if behind == stop.pc:
                    return stop
                return self._run_to(behind, None)
            if stop.reason != "step":
                return stop
        return self._run_to(instruction.end, place)

    def _run_to(self, address: int, place: _Place | None) -> Stop:
        """Run until the goroutine of *place* (or the current one) is at *address*, no deeper than there."""
        wanted = place or _Place(self._place().who, 1 << 62)
        existed = address in self._addresses()
        self.target.insert_breakpoint(address)
        try:
            while True:
                stop = self._stopped(self.target.cont())
                if stop.reason != "breakpoint" or stop.pc != address:
                    return stop
                now = self._place()
                if now.who == wanted.who and now.depth <= wanted.depth:
                    return self._stopped(stop._replace(reason="step"))
                if existed:
                    return stop
        finally:
            if not existed and not self.exited:
                self.target.remove_breakpoint(address)

    def _place(self) -> _Place:
        sp = self.target.read_registers(self.tid).sp
        goroutine = self.view.goroutine_of(self.tid)
        if goroutine is not None and goroutine.stack_lo <= sp <= goroutine.stack_hi:
            return _Place(goroutine.goid, goroutine.stack_hi - sp)
        return _Place(-self.tid, -sp)

    def _line(self) -> tuple[str, int]:
        return self._line_at(self.pc)

    def _line_at(self, address: int) -> tuple[str, int]:
        frames = self.view.frames_at(address)
        return (frames[0].file, frames[0].line) if frames else ("", 0)

    def _end_of_line(self) -> int:
        """Return up to where code is of the current line, or of none, from here on; calls are not in it."""
        line = self._line()
        address = self.instruction_at(self.pc).end
        for _ in range(_MOST_INSTRUCTIONS_OF_LINE):
            if self._line_at(address) not in (line, _NO_LINE):
                break
            instruction = self.instruction_at(address)
            if instruction.flow in _STEPPED_ALONE:
                break
            address = instruction.end
        return address

    def _is_inlined_in(self, function: str) -> bool:
        """Whether the thread is in a call that was inlined into *function*."""
        return any(frame.function == function for frame in self.view.frames_at(self.pc)[1:])

    def _addresses(self) -> set[int]:
        return {address for one in self.breakpoints.values() for address in one.addresses}

    def _watched(self) -> set[Watchpoint]:
        return {one.watchpoint for one in self.breakpoints.values() if one.watchpoint is not None}

    def _stopped(self, stop: Stop) -> Stop:
        self.stop = stop
        if stop.reason != "exited":
            self.tid = stop.tid
        if stop.reason == "exec":
            self.breakpoints.clear()
            self.view.close()
            self.view = ProgramView(self.target)
        one = self.hit()
        if one is not None:
            one.hits += 1
        return stop
