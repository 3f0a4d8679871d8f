"""What is executed together with an instruction that touches remote memory: the rest of its block, as far as it pays.

A trap costs as much as dozens of emulated instructions. So where a block touches remote memory again, all up to its
last access there is executed in the same stop. Which instructions do is known of static operands from the
code, and of computed addresses from the traps that they have caused before.

Between two accesses only instructions are taken that touch nothing else but the thread's own stack: what other
threads see of this one is touched by the processor itself, or is remote. Nothing is taken behind an instruction that
may go elsewhere. An atomic instruction of amd64 is one instruction, so no atomic sequence is ever left by half.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepping.blocks import Decoder
from stepping.instructions import Flow, Touch
from stepping.remote_memory import RemoteMap
from stepping.remote_plans import Plan, plan_of
from stepping.x86_instructions import Instruction, NotAnInstructionError, Unit, decode_instruction

#: As far as it is looked for further accesses: more would rather be run natively.
_MOST_INSTRUCTIONS, _MOST_BYTES = 32, 256
_MOST_REMEMBERED = 4096


class Step(NamedTuple):
    """An instruction at *pc*. plan: how to do it without an emulator; is_remote: whether it touches such memory."""

    pc: int
    instruction: Instruction
    plan: Plan | None
    is_remote: bool


class Rest(NamedTuple):
    """Instructions to execute, one behind the other, whose bytes are *code*; none if it does not pay.

    is_plain: whether all have plans.
    """

    code: bytes
    steps: Sequence[Step]
    is_plain: bool


_NOTHING = Rest(b"", (), is_plain=True)


class RestFinder:
    """Finds what to execute with an access. read: returns at most so many bytes of code (address, size).

    generation: changes when what was found before may be found otherwise now.
    """

    def __init__(self, remote: RemoteMap, read: Callable[[int, int], bytes]) -> None:
        self._remote = remote
        self._read = read
        self._decoder: Decoder | None = None
        self._trapped: set[int] = set()
        self._known: dict[int, Rest] = {}
        self.generation = 0

    def has_trapped(self, pc: int) -> bool:
        """Whether the instruction at *pc* is known to have touched remote memory."""
        return pc in self._trapped

    def note_trap(self, pc: int) -> None:
        """Hear that the instruction at *pc* has touched remote memory."""
        if pc not in self._trapped:
            if len(self._trapped) >= _MOST_REMEMBERED:
                self._trapped.clear()
            self._trapped.add(pc)
            self._known.clear()
            self.generation += 1

    def find(self, pc: int) -> Rest:
        """Return what to execute from *pc* on, the code being now what it was when that was found out."""
        rest = self._known.get(pc)
        if rest is None:
            rest = self._known[pc] = self._look(pc)
        if rest.steps and self._read(pc, len(rest.code)) != rest.code:
            rest = self._known[pc] = self._look(pc)
        return rest

    def _look(self, pc: int) -> Rest:
        if self._decoder is None:
            self._decoder = Decoder("amd64")
        code = self._read(pc, _MOST_BYTES)
        steps: list[Step] = []
        behind_last = 0
        for at, size, traits in self._decoder.iter_traits(code, pc):
            if traits.flow is not Flow.NEXT or len(steps) == _MOST_INSTRUCTIONS:
                break
            try:
                instruction = decode_instruction(code[at - pc :])
            except NotAnInstructionError:
                break
            if instruction.size != size or instruction.unit is Unit.OWN or instruction.is_string:
                break
            is_remote = self._is_remote(at, instruction)
            if not is_remote and traits.touch & ~Touch.STACK:
                break
            steps.append(Step(at, instruction, plan_of(instruction) if is_remote else None, is_remote))
            if is_remote:
                behind_last = len(steps)
        del steps[behind_last:]
        if not steps:
            return _NOTHING
        end = steps[-1].pc + steps[-1].instruction.size
        return Rest(code[: end - pc], tuple(steps), all(step.plan for step in steps))

    def _is_remote(self, pc: int, instruction: Instruction) -> bool:
        if pc in self._trapped:
            return True
        target = instruction.static_target(pc)
        # lea and nop have operands that they do not touch.
        return (
            target is not None and self._remote.find(target) is not None and not _is_address_only(instruction)
        )


def _is_address_only(instruction: Instruction) -> bool:
    return (instruction.map, instruction.opcode) in ((0, 0x8D), (1, 0x1F), (1, 0x0D), (1, 0x18))
