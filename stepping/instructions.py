"""What an instruction does to control and to memory, told from its text as a disassembler prints it.

`classify_amd64` and `classify_arm64` are pure functions over capstone's text (Intel syntax on amd64). They err
to one side only: what they call harmless is harmless. `Touch.MEMORY`, memory at a computed address, is what remains
when it is not certain that only the thread's stack or one known variable is touched.

Source: Intel SDM volume 2; Arm ARM (DDI 0487), part C; for what Unicorn 2.1 lacks: QEMU 5.0, target/i386.
"""

import re
from enum import IntEnum, IntFlag
from functools import cache
from typing import NamedTuple


class Flow(IntEnum):
    """Where execution goes after an instruction."""

    NEXT = 0  #: to the one behind it
    JUMP = 1  #: to `target`
    BRANCH = 2  #: to `target`, or to the one behind it
    CALL = 3  #: to `target`, which returns to the one behind it
    INDIRECT_JUMP = 4  #: to where a register or memory says
    INDIRECT_CALL = 5
    RETURN = 6
    SYSCALL = 7  #: into the kernel, and back behind it
    TRAP = 8  #: it raises an exception, on purpose


class Touch(IntFlag):
    """What an instruction may touch."""

    NOTHING = 0
    STACK = 1  #: the thread's stack near its stack pointer, or its thread-local storage at a fixed place
    GLOBAL = 2  #: memory at `target`, known from the instruction alone
    MEMORY = 4  #: memory at a computed address
    SYSCALL = 8  #: what a syscall touches
    ATOMIC = 16  #: memory, in one access that both reads and writes it, or part of such a sequence
    FOREIGN = 32  #: it is no instruction that Unicorn can execute

    @property
    def is_local(self) -> bool:
        """Whether nothing can be touched but the thread's stack and known variables."""
        return not self & (Touch.MEMORY | Touch.SYSCALL)


class Instruction(NamedTuple):
    """One instruction, *size* bytes at *address*. target: of a direct jump or call, or of `Touch.GLOBAL`; else 0."""

    address: int
    size: int
    flow: Flow
    touch: Touch
    target: int

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + self.size


class Traits(NamedTuple):
    """What `classify_*` says: an `Instruction` without its place."""

    flow: Flow
    touch: Touch
    target: int = 0


#: The mnemonic of bytes that are no instruction.
BAD = "(bad)"

_BAD = Traits(Flow.TRAP, Touch.FOREIGN)

# -- amd64 ----------------------------------------------------------------------------------------------------

_NO_ACCESS = frozenset({"lea", "nop", "prefetcht0", "prefetcht1", "prefetcht2", "prefetchnta", "prefetchw"})
_RETURNS = frozenset({"ret", "retf", "retfq", "iret", "iretd", "iretq"})
_TRAPS = frozenset({"int3", "int1", "ud0", "ud1", "ud2", "hlt", "into"})
_PUSHES = frozenset({"push", "pop", "pushfq", "popfq", "pushf", "popf", "enter"})
#: They touch memory that their operands do not name.
_HIDDEN_ACCESS = frozenset({"leave", "xlatb", "maskmovdqu", "maskmovq", "vmaskmovdqu", "monitor", "clzero"})
_LOOPS = frozenset({"loop", "loope", "loopne"})
#: Begin with a v and are no AVX.
_NO_AVX = frozenset({"verr", "verw"})
_FOREIGN_PREFIXES = ("v", "sha1", "sha256", "gf2p8", "kmov", "kand", "kor", "kxor", "kxnor", "kun", "ktest")
_FOREIGN = frozenset({"rdseed", "rdpid", "rdpkru", "wrpkru", "xsavec", "xsavec64", "tpause", "umwait"})
_RIP = re.compile(r"\[rip(?: ([+-]) (0x[0-9a-f]+|\d+))?\]")
#: Up to 64 KiB from the stack pointer: Go has functions whose frames are a gigabyte.
_STACK_OPERAND = re.compile(r"\[rsp(?: [+-] (?:0x[0-9a-f]{1,4}|\d))?\]|[fg]s:\[(?:0x[0-9a-f]+|\d+)\]")
_TARGET = re.compile(r"0x[0-9a-f]+")


def classify_amd64(mnemonic: str, operands: str, end: int) -> Traits:
    """Return what an instruction does. end: the address behind it, to which operands may be relative."""
    place, target = _place_amd64(operands, end)
    traits = _traits_amd64(mnemonic, place)
    if target and (traits.flow in _DIRECT or (traits.touch & Touch.GLOBAL and traits.flow is Flow.NEXT)):
        return Traits(traits.flow, traits.touch, target)
    return traits


_DIRECT = frozenset({Flow.JUMP, Flow.BRANCH, Flow.CALL})


class _Place(IntEnum):
    """What operands name: no memory, a target, memory on the stack, at a known or at a computed address."""

    NONE = 0
    TARGET = 1
    STACK = 2
    GLOBAL = 3
    MEMORY = 4


_TOUCHES = {_Place.STACK: Touch.STACK, _Place.GLOBAL: Touch.GLOBAL, _Place.MEMORY: Touch.MEMORY}


def _place_amd64(operands: str, end: int) -> tuple[_Place, int]:
    bracket = operands.find("[")
    if bracket < 0:
        return (_Place.TARGET, int(operands, 16)) if _TARGET.fullmatch(operands) else (_Place.NONE, 0)
    if operands.find("[", bracket + 1) >= 0:
        return _Place.MEMORY, 0
    base = operands[bracket + 1 : bracket + 4]
    if base == "rip":
        sign, distance = _RIP.search(operands).groups()  # type: ignore[union-attr]
        offset = int(distance, 0) if distance else 0
        return _Place.GLOBAL, (end - offset if sign == "-" else end + offset) & (1 << 64) - 1
    segment = operands[bracket - 1 : bracket] == ":"
    if (base == "rsp" or segment) and _STACK_OPERAND.search(operands):
        return _Place.STACK, 0
    # An absolute address, too: Go's runtime writes to such a one in order to crash.
    return _Place.MEMORY, 0


@cache
def _traits_amd64(mnemonic: str, place: _Place) -> Traits:
    """Return what is known without the numbers; there are some thousand combinations."""
    prefixes, _, name = mnemonic.rpartition(" ")
    if name == BAD:
        return _BAD
    touch = Touch.MEMORY if name in _HIDDEN_ACCESS else Touch.NOTHING
    if name not in _NO_ACCESS:
        touch |= _TOUCHES.get(place, Touch.NOTHING)
    if "lock" in prefixes or (name == "xchg" and touch):
        touch |= Touch.ATOMIC
    if name in _PUSHES or name in _RETURNS or name == "call":
        touch |= Touch.STACK
    if (name.startswith(_FOREIGN_PREFIXES) and name not in _NO_AVX) or name in _FOREIGN:
        touch |= Touch.FOREIGN
    direct = place is _Place.TARGET
    if name[0] == "j" or name in _LOOPS:
        if not direct:
            return Traits(Flow.INDIRECT_JUMP, touch)
        return Traits(Flow.JUMP if name == "jmp" else Flow.BRANCH, touch)
    if name == "call":
        return Traits(Flow.CALL if direct else Flow.INDIRECT_CALL, touch)
    if name in _RETURNS:
        return Traits(Flow.RETURN, touch)
    if name in ("syscall", "sysenter", "int"):
        return Traits(Flow.SYSCALL, touch | Touch.SYSCALL)
    return Traits(Flow.TRAP if name in _TRAPS else Flow.NEXT, touch)


# -- arm64 ----------------------------------------------------------------------------------------------------

_ARM_BRANCHES = frozenset({"cbz", "cbnz", "tbz", "tbnz"})
_ARM_INDIRECT_JUMPS = frozenset({"br", "braa", "brab", "braaz", "brabz"})
_ARM_INDIRECT_CALLS = frozenset({"blr", "blraa", "blrab", "blraaz", "blrabz"})
_ARM_RETURNS = frozenset({"ret", "retaa", "retab", "eret"})
_ARM_TRAPS = frozenset({"brk", "hlt", "udf", "hvc", "smc", "dcps1", "dcps2", "dcps3"})
_ARM_NO_ACCESS = frozenset({"prfm", "prfum"})
_ARM_ATOMIC = re.compile(
    r"(?:ld(?:a?x[rp]|add|clr|eor|set|[su]max|[su]min)|st(?:l?x[rp]|add|clr|eor|set|[su]max|[su]min)|cas|swp|clrex)"
)
_ARM_STACK_OPERAND = re.compile(r"\[sp(?:, #-?(?:0x[0-9a-f]+|\d+))?\]!?")


def classify_arm64(mnemonic: str, operands: str, end: int) -> Traits:
    """Return what an instruction does; see `classify_amd64`."""
    place = _Place.NONE
    if "[" in operands:
        place = _Place.STACK if _ARM_STACK_OPERAND.search(operands) else _Place.MEMORY
    traits = _traits_arm64(mnemonic, place)
    if traits.flow in _DIRECT or (traits.touch & Touch.GLOBAL and "#" in operands):
        return Traits(traits.flow, traits.touch, int(operands.rpartition("#")[2], 0))
    return traits


_ARM_FLOWS = {
    "b": Flow.JUMP,
    "bl": Flow.CALL,
    "svc": Flow.SYSCALL,
    **dict.fromkeys(_ARM_BRANCHES, Flow.BRANCH),
    **dict.fromkeys(_ARM_INDIRECT_JUMPS, Flow.INDIRECT_JUMP),
    **dict.fromkeys(_ARM_INDIRECT_CALLS, Flow.INDIRECT_CALL),
    **dict.fromkeys(_ARM_RETURNS, Flow.RETURN),
    **dict.fromkeys(_ARM_TRAPS, Flow.TRAP),
}


@cache
def _traits_arm64(mnemonic: str, place: _Place) -> Traits:
    """As `_traits_amd64`."""
    if mnemonic == BAD:
        return _BAD
    flow = Flow.BRANCH if mnemonic.startswith("b.") else _ARM_FLOWS.get(mnemonic, Flow.NEXT)
    if flow is not Flow.NEXT:
        return Traits(flow, Touch.SYSCALL if flow is Flow.SYSCALL else Touch.NOTHING)
    if mnemonic == "clrex":
        return Traits(flow, Touch.ATOMIC)
    if _ARM_ATOMIC.match(mnemonic):
        return Traits(flow, Touch.ATOMIC | Touch.MEMORY)
    if place is _Place.NONE and mnemonic in ("ldr", "ldrsw"):
        return Traits(flow, Touch.GLOBAL)
    if mnemonic in _ARM_NO_ACCESS:
        return Traits(flow, Touch.NOTHING)
    if mnemonic in ("dc", "ic", "at", "sys"):
        return Traits(flow, Touch.MEMORY)
    return Traits(flow, _TOUCHES.get(place, Touch.NOTHING))
