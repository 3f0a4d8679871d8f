"""Lets a thread execute a block at a time, where nobody wants to see its instructions: by debug registers.

A stop costs as much as a few thousand instructions, so one for each block is five times as fast as one for each
instruction. PTRACE_SINGLEBLOCK would be the means, but most virtual machines do not have it, and step by instruction
instead. The debug registers do the same: they belong to one thread, so no other one meets its breakpoints, and
nothing is written into the program. Two of them are set to where the block may go, which only its last instruction
decides; in front of an indirect jump or a return the thread stops, and that instruction is stepped over. It also
stops in front of a syscall or a trap.

Only on amd64. Code that is changed after it was decoded here may run on unstopped; the program does the same then.

Source: ptrace(2) (PTRACE_POKEUSER); Intel SDM volume 3, chapter "Debug, Branch Profile..." (DR0 to DR7, RF).
"""

from collections.abc import Callable
from typing import NamedTuple

from stepping import ptrace_api
from stepping.blocks import Decoder
from stepping.instructions import Flow
from stepping.x86_instructions import MAX_INSTRUCTION_BYTES

#: Longer blocks are cut.
_MOST_BYTES = 256
_LAST_ADDRESS = 1 << 47
_DIRECT = frozenset({Flow.JUMP, Flow.CALL})
_NOT_STEPPED = frozenset({Flow.SYSCALL, Flow.TRAP})


class Run(NamedTuple):
    """What may be executed at once: so many instructions, up to one of *exits*; without exits, a single step."""

    instructions: int
    exits: tuple[int, ...]


_STEP = Run(1, ())


class BlockSteps:
    """The runs of one program.

    read: returns its code (address, size), or less; wait_for: as of `ptrace_api.step_through`.
    """

    def __init__(
        self,
        decoder: Decoder,
        read: Callable[[int, int], bytes],
        wait_for: Callable[[int], int],
    ) -> None:
        self._decoder = decoder
        self._read = read
        self._wait_for = wait_for
        self._runs: dict[int, Run | None] = {}

    def run(self, tid: int, pc: int, pc_offset: int, count: int) -> tuple[int, int] | None:
        """Let *tid*, at *pc*, execute some *count* instructions; return how many, and its last raw wait status.

        None: it is in front of a syscall or a trap, or nothing can be executed there. pc_offset: as of
        `ptrace_api.step_through`.

        Raises:
            TraceeGoneError: it is dead.
            SteppingError: this machine has no such breakpoints to spare; nothing was executed.
        """
        if self.run_at(pc) is None:
            return None
        with ptrace_api.ExitBreakpoints(tid, self._wait_for) as breakpoints:
            done = 0
            armed: tuple[int, ...] = ()
            while True:
                run = self.run_at(pc)
                if run is None or done >= count:
                    return done, ptrace_api.STEP_STATUS
                status, reached = breakpoints.go_on(run.exits, pc_offset)
                if status != ptrace_api.STEP_STATUS:
                    return done, status
                if run.exits and reached not in run.exits:
                    return done, status  # a trap of the program's own
                # A breakpoint that is put where the thread is already stops it at once.
                if reached != pc or not run.exits or run.exits == armed:
                    done += run.instructions
                pc, armed = reached, run.exits or armed

    def run_at(self, pc: int) -> Run | None:
        """Return what may be executed at once at *pc*; None if that is a call or a trap, or nothing is there."""
        try:
            return self._runs[pc]
        except KeyError:
            found = self._runs[pc] = self._look(pc)
            return found

    def _look(self, pc: int) -> Run | None:
        code = self._read(pc, _MOST_BYTES)
        count = 0
        end = pc
        for at, size, traits in self._decoder.iter_traits(code, pc):
            flow = traits.flow
            if len(code) == _MOST_BYTES and at + MAX_INSTRUCTION_BYTES > pc + len(code):
                break  # it may go on behind what was read
            if flow in _NOT_STEPPED:
                return _to(count, at) if count else None
            count, end = count + 1, at + size
            if flow is Flow.NEXT:
                continue
            if flow in _DIRECT:
                return _to(count, traits.target)
            if flow is Flow.BRANCH:
                return _to(count, traits.target, end)
            return _to(count - 1, at) if count > 1 else _STEP
        return _to(count, end) if count else None


def _to(count: int, *exits: int) -> Run:
    if count == 1 or any(not 0 < address < _LAST_ADDRESS for address in exits):
        return _STEP
    return Run(count, exits)
