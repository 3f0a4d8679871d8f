"""Runs a thread on the processor, at its full speed, up to the next thing that stops it.

Breakpoints make it stop where it must. A run that is to stay within a range of addresses has them where the range
is left: behind its direct jumps and calls, and at the instructions that may lead anywhere (returns, indirect jumps),
which are stepped. A run of so many blocks has them at the blocks' ends, or asks the processor to stop after the next
jump (PTRACE_SINGLEBLOCK), if it does that: processors of virtual machines may take it for a single step, which is
found out by trying. Only instructions can be counted no other way than one by one (`singlestep`).

Source: ptrace(2); Intel SDM volume 3, "Single-Stepping on Branches".
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from stepping.blocks import Decoder
from stepping.breakpoints import Breakpoints
from stepping.errors import MemoryFaultError
from stepping.executor import AboutToCall, CountUsedUp, Execed, Exited, LeftRange, Reached, RunResult, Until
from stepping.instructions import Flow, Traits
from stepping.maps import PAGE_BYTES
from stepping.singlestep import StepExecutor, about_to_call
from stepping.stop_results import MAX_INSTRUCTION_BYTES, result_of_stop
from stepping.tracee import Resume, Tracee
from stepping.tracee_group import TraceeGroup

_ONE = Until(instructions=1)
#: As many instructions are looked at in order to know where a range is left, or a block ends.
_MOST_DECODED = 4096
_CODE_BYTES = 256
_LEADS_ANYWHERE = frozenset({Flow.INDIRECT_JUMP, Flow.INDIRECT_CALL, Flow.RETURN})
#: What ends a block by a jump in any case.
_ALWAYS_JUMPS = _LEADS_ANYWHERE | {Flow.JUMP, Flow.CALL}


class NativeExecutor:
    """Runs threads of *group*. breakpoints: those in its memory, to which it adds its own while it runs."""

    def __init__(self, group: TraceeGroup, breakpoints: Breakpoints) -> None:
        self._group = group
        self._breakpoints = breakpoints
        self._stepper = StepExecutor(group, breakpoints)
        self._decoder: Decoder | None = None
        self._has_block_steps = True

    def run(self, tracee: Tracee, until: Until) -> RunResult:
        """See `executor.Executor.run`.

        Raises:
            stepping.errors.MemoryFaultError: one of the addresses of *until* is not mapped.
        """
        if self._decoder is None:
            self._decoder = Decoder(tracee.layout.arch)
        by_steps = until.instructions is not None or (
            until.blocks is not None and (until.within or until.syscalls)
        )
        if by_steps or (tracee.pending_signal and (until.is_counted or until.within)):
            return self._stepper.run(tracee, until)  # a signal's handler counts, and is out of range
        if until.blocks is not None:
            return self._run_blocks(tracee, until)
        if until.within is not None:
            return self._run_within(tracee, until)
        return self._run_to_addresses(tracee, until)

    def _run_to_addresses(self, tracee: Tracee, until: Until) -> RunResult:
        start = tracee.read_registers().pc
        if start in until.addresses or start in self._breakpoints:
            result = self._stepper.run(tracee, _ONE)
            if not isinstance(result, CountUsedUp):
                return result
            if result.pc in until.addresses:
                return Reached(result.pc)
            start = 0
        own = [address for address in until.addresses if address not in self._breakpoints]
        try:
            for address in own:
                self._breakpoints.insert(address)
            result = self._continue(tracee, start if until.syscalls else None)
            if isinstance(result, Execed | Exited):
                self._breakpoints.forget_all()
            return result
        finally:
            for address in own:
                self._breakpoints.remove(address)

    def _run_within(self, tracee: Tracee, until: Until) -> RunResult:
        step = replace(until, instructions=1)
        while True:
            result = self._stepper.run(tracee, step)
            if not isinstance(result, CountUsedUp):
                return result
            exits = self._exits(result.pc, until)
            if exits is None:
                return self._stepper.run(tracee, until)
            pc = result.pc
            if pc not in exits:
                reached = self._run_to_addresses(tracee, Until(until.addresses | exits))
                if not isinstance(reached, Reached):
                    return reached
                pc = reached.pc
                if pc in until.addresses or pc in self._breakpoints:
                    return reached
                if until.is_outside(pc):
                    return LeftRange(pc)
            if until.syscalls and self._end_of_block(pc) == (pc, Flow.SYSCALL):
                return about_to_call(tracee)

    def _exits(self, pc: int, until: Until) -> frozenset[int] | None:
        """Return where a thread that runs on from *pc* must be stopped lest it leave the range unseen.

        These are addresses outside, and inside those of instructions that may lead anywhere, and of syscalls if the
        run is to end before one. None: that is too much.
        """
        exits: set[int] = set()
        seen: set[int] = set()
        waiting = [pc]
        while waiting:
            address = waiting.pop()
            if until.is_outside(address):
                exits.add(address)
                continue
            for at, size, traits in self._iter_code(address):
                if at in seen:
                    break
                seen.add(at)
                flow = traits.flow
                if flow in _LEADS_ANYWHERE or (flow is Flow.SYSCALL and until.syscalls):
                    exits.add(at)
                    break
                if flow in (Flow.JUMP, Flow.BRANCH, Flow.CALL):
                    waiting.append(traits.target)
                if flow in (Flow.BRANCH, Flow.SYSCALL) or (flow is Flow.NEXT and until.is_outside(at + size)):
                    waiting.append(at + size)
                if flow is not Flow.NEXT or until.is_outside(at + size):
                    break
            if len(seen) > _MOST_DECODED:
                return None
        return frozenset(exits)

    def _run_blocks(self, tracee: Tracee, until: Until) -> RunResult:
        """Execute whole blocks, each up to its last instruction, and that one by itself."""
        step = Until(until.addresses, instructions=1)
        result: RunResult = CountUsedUp(tracee.read_registers().pc)
        for _ in range(until.blocks or 0):
            assert isinstance(result, CountUsedUp)
            last, flow = self._end_of_block(result.pc)
            ended = None
            if self._has_block_steps and last != result.pc and flow in _ALWAYS_JUMPS and not until.addresses:
                ended = self._stepper.step_block(tracee, result.pc, last)
                self._has_block_steps = ended is not None
            if ended is None and last != tracee.read_registers().pc:
                reached = self._run_to_addresses(tracee, Until(until.addresses | {last}))
                if reached != Reached(last) or last in until.addresses or last in self._breakpoints:
                    return reached
            result = ended or self._stepper.run(tracee, step)
            if not isinstance(result, CountUsedUp):
                return result
        return result

    def _end_of_block(self, pc: int) -> tuple[int, Flow]:
        """Return the address of the last instruction of the block that *pc* is in, and where that leads.

        Of one that is very long, an instruction in it.
        """
        last = pc
        for count, (at, _, traits) in enumerate(self._iter_code(pc)):
            last = at
            if traits.flow is not Flow.NEXT or count == _MOST_DECODED:
                return at, traits.flow
        return last, Flow.NEXT

    def _iter_code(self, address: int) -> Iterator[tuple[int, int, Traits]]:
        """Yield the program's instructions from *address* on, up to where memory ends."""
        decoder = self._decoder
        assert decoder is not None
        while code := self._read_code(address):
            start = address
            for at, size, traits in decoder.iter_traits(code, start):
                if at > start and at + MAX_INSTRUCTION_BYTES > start + len(code):
                    break  # it may be cut off
                yield at, size, traits
                address = at + size

    def _read_code(self, address: int) -> bytes:
        for size in (_CODE_BYTES, min(_CODE_BYTES, PAGE_BYTES - address % PAGE_BYTES)):
            with contextlib.suppress(MemoryFaultError):
                return self._breakpoints.read(address, size)
        return b""

    def _continue(self, tracee: Tracee, first_call: int | None) -> RunResult:
        """Run up to a result; first_call: stop at syscalls, but at that address only after it was left."""
        how = Resume.FREE if first_call is None else Resume.SYSCALL
        while True:
            tracee.resume(how)
            status = self._group.wait_for(tracee)
            result = result_of_stop(tracee, status, self._breakpoints)
            if isinstance(result, AboutToCall) and result.pc == first_call:
                first_call = 0
            elif result is not None:
                return result
