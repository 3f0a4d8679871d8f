"""Lets a thread execute a run of blocks at a time, where nobody wants to see its instructions: by debug registers.

A stop costs as much as some ten thousand instructions, so fewer stops are all that makes stepping faster.
PTRACE_SINGLEBLOCK would be the means, but most virtual machines do not have it, and step by instruction instead. The
debug registers do more: they belong to one thread, so no other one meets its breakpoints, nothing is written into the
program, and there are four. A run is a piece of code that is entered at one place and left at four at most, and in
which no instruction can be executed twice: direct jumps and calls are followed, branches are taken for ways out, of
which those that lead back into the piece further on are none. At each way out, and nowhere else, the thread stops.
So it stops at least once in each turn of a loop, and in front of indirect jumps and calls, which are stepped over, of
returns, of syscalls and of traps. Where a return leads is read from the stack, as it is about to be read by the
processor: the run goes on from there.

Only on amd64. Code that is changed after it was decoded here may run on unstopped; the program does the same then.

Source: ptrace(2) (PTRACE_POKEUSER); Intel SDM volume 3, chapter "Debug, Branch Profile..." (DR0 to DR7, RF).
"""

from collections.abc import Callable
from typing import NamedTuple

from stepping import ptrace_api
from stepping.decoded_code import DecodedCode
from stepping.exit_breakpoints import BREAKPOINTS_OF_A_THREAD, ExitBreakpoints
from stepping.instructions import Flow
from stepping.registers import RegisterLayout
from stepping.stop_results import is_processors_trap

#: Longer runs are cut.
_MOST_INSTRUCTIONS = 128
_MOST_EXITS = BREAKPOINTS_OF_A_THREAD
_LAST_ADDRESS = 1 << 47
_DIRECT = frozenset({Flow.JUMP, Flow.CALL})
_LEADS_ANYWHERE = frozenset({Flow.INDIRECT_JUMP, Flow.INDIRECT_CALL, Flow.RETURN})
_NOT_STEPPED = frozenset({Flow.SYSCALL, Flow.TRAP})


class Run(NamedTuple):
    """What may be executed at once: where the thread is stopped, and how many instructions at least that takes.

    No exits: a single step. is_return: a return, by which a thread may go on into another run.
    """

    exits: dict[int, int]
    is_return: bool = False


_STEP = Run({})
_RETURN = Run({}, is_return=True)


class BlockSteps:
    """The runs of one program.

    code: its instructions; wait_for: as of `ptrace_api.step_through`.
    """

    def __init__(self, code: DecodedCode, wait_for: Callable[[int], int]) -> None:
        self._code = code
        self._wait_for = wait_for
        self._runs: dict[int, Run | None] = {}

    def run(self, tid: int, pc: int, layout: RegisterLayout, stops: int) -> tuple[int, int] | None:
        """Let *tid*, at *pc*, go on for so many *stops*; return its instructions, at least, and last wait status.

        None: it is in front of a syscall or a trap, or nothing can be executed there.

        Raises:
            TraceeGoneError: it is dead.
            SteppingError: this machine has no such breakpoints to spare; nothing was executed.
        """
        if self.run_at(pc) is None:
            return None
        sp_offset = layout.offset_of(layout.sp)
        with ExitBreakpoints(tid, layout.offset_of(layout.pc), self._wait_for) as breakpoints:
            done = 0
            for _ in range(stops):
                run = self.run_at(pc)
                if run is None:
                    break
                before = 0
                if run.is_return:
                    returns_to = ptrace_api.peek_data(tid, ptrace_api.peek_user(tid, sp_offset))
                    behind = self.run_at(returns_to) if returns_to else None
                    if behind is not None and behind.exits:
                        run, before = behind, 1
                status, reached = breakpoints.go_on(run.exits, pc)
                if status != ptrace_api.STEP_STATUS:
                    return done, status
                if reached == pc and not is_processors_trap(tid, layout.arch):
                    return done, status  # sent by somebody, before anything was executed
                if breakpoints.stepped:
                    done += 1
                elif reached in run.exits:
                    done += before + run.exits[reached]
                elif reached in breakpoints.armed:
                    done += 1
                else:
                    return done, status  # a trap of the program's own
                pc = reached
            return done, ptrace_api.STEP_STATUS

    def run_at(self, pc: int) -> Run | None:
        """Return what may be executed at once at *pc*; None if that is a call or a trap, or nothing is there."""
        try:
            return self._runs[pc]
        except KeyError:
            found = self._runs[pc] = self._look(pc)
            return found

    def _look(self, pc: int) -> Run | None:
        """Follow the code from *pc* on. Each way on leads to what was not passed yet, out, or back to *pc*."""
        exits: dict[int, int] = {}
        inside: set[int] = set()
        at, count = pc, 0
        while len(inside) < _MOST_INSTRUCTIONS:
            decoded = self._code.at(at)
            if decoded is None or decoded.flow in _NOT_STEPPED:
                break
            end, flow, target, is_near_return = decoded
            if flow in _LEADS_ANYWHERE:
                if not inside:
                    return _RETURN if is_near_return else _STEP
                break
            next_at = target if flow in _DIRECT else end
            leads_to = (next_at, target) if flow is Flow.BRANCH else (next_at,)
            if any((to in inside and to != pc) or not 0 < to < _LAST_ADDRESS for to in leads_to):
                break  # a loop that does not begin here
            if flow is Flow.BRANCH and target not in exits and target != next_at:
                if len(exits) == _MOST_EXITS - 1:
                    break
                exits[target] = count + 1
            inside.add(at)
            at, count = next_at, count + 1
            if at == pc:
                break
            if at in exits:  # a way out that leads here as well
                count = min(count, exits.pop(at))
        if not inside:
            return _STEP if decoded is not None and decoded.flow not in _NOT_STEPPED else None
        exits[at] = min(count, exits.get(at, count))
        return Run(exits)
