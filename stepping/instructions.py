"""What an instruction does to control and to memory, told from its text as a disassembler prints it.

`classify_amd64` and `classify_arm64` are pure functions over capstone's text (Intel syntax on amd64). They err
to one side only: what they call harmless is harmless. `Touch.MEMORY`, memory at a computed address, is what remains
when it is not certain that only the thread's stack or one known variable is touched.

Source: Intel SDM volume 2; Arm ARM (DDI 0487), part C; for what Unicorn 2.1 lacks: QEMU 5.0, target/i386.
"""

import re
from enum import IntEnum, IntFlag
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
_NOTHING = Traits(Flow.NEXT, Touch.NOTHING)
_STACK = Traits(Flow.NEXT, Touch.STACK)
_MEMORY = Traits(Flow.NEXT, Touch.MEMORY)
_ATOMIC = Traits(Flow.NEXT, Touch.ATOMIC | Touch.MEMORY)

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
_ABSOLUTE = re.compile(r"(?<![fg]s:)\[(0x[0-9a-f]+|\d+)\]")


def classify_amd64(mnemonic: str, operands: str, end: int) -> Traits:
    """Return what an instruction does. end: the address behind it, to which operands may be relative."""
    name = mnemonic
    locked = False
    if " " in mnemonic:
        prefixes, _, name = mnemonic.rpartition(" ")
        locked = "lock" in prefixes
    touch, target = _touch_amd64(name, operands, end)
    if locked or (name == "xchg" and touch):
        touch |= Touch.ATOMIC
    if (name.startswith(_FOREIGN_PREFIXES) and name not in _NO_AVX) or name in _FOREIGN:
        touch |= Touch.FOREIGN
    if name == BAD:
        return _BAD
    first = name[0]
    if first == "j" or name in _LOOPS:
        if operands.startswith("0x"):
            return Traits(Flow.JUMP if name == "jmp" else Flow.BRANCH, touch, int(operands, 16))
        return Traits(Flow.INDIRECT_JUMP, touch)
    if name == "call":
        touch |= Touch.STACK
        if operands.startswith("0x"):
            return Traits(Flow.CALL, touch, int(operands, 16))
        return Traits(Flow.INDIRECT_CALL, touch)
    if name in _RETURNS:
        return Traits(Flow.RETURN, touch | Touch.STACK)
    if name in ("syscall", "sysenter", "int"):
        return Traits(Flow.SYSCALL, touch | Touch.SYSCALL)
    if name in _TRAPS:
        return Traits(Flow.TRAP, touch)
    return Traits(Flow.NEXT, touch, target)


def _touch_amd64(name: str, operands: str, end: int) -> tuple[Touch, int]:
    touch = Touch.STACK if name in _PUSHES else Touch.NOTHING
    if name in _HIDDEN_ACCESS:
        return touch | Touch.MEMORY, 0
    if "[" not in operands or name in _NO_ACCESS:
        return touch, 0
    if operands.count("[") > 1:
        return touch | Touch.MEMORY, 0
    if _STACK_OPERAND.search(operands):
        return touch | Touch.STACK, 0
    relative = _RIP.search(operands)
    if relative:
        sign, distance = relative.groups()
        offset = int(distance, 0) if distance else 0
        return touch | Touch.GLOBAL, (end - offset if sign == "-" else end + offset) & (1 << 64) - 1
    absolute = _ABSOLUTE.search(operands)
    if absolute:
        return touch | Touch.GLOBAL, int(absolute[1], 0)
    return touch | Touch.MEMORY, 0


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
_ARM_LITERAL = re.compile(r"#(0x[0-9a-f]+|\d+)$")


def classify_arm64(mnemonic: str, operands: str, end: int) -> Traits:
    """Return what an instruction does; see `classify_amd64`."""
    if mnemonic == BAD:
        return _BAD
    if mnemonic[0] in "bcrtshued":
        control = _control_arm64(mnemonic, operands)
        if control is not None:
            return control
    if _ARM_ATOMIC.match(mnemonic):
        return _ATOMIC if mnemonic != "clrex" else Traits(Flow.NEXT, Touch.ATOMIC)
    if "[" in operands:
        if mnemonic in _ARM_NO_ACCESS:
            return _NOTHING
        return _STACK if _ARM_STACK_OPERAND.search(operands) else _MEMORY
    if mnemonic in ("ldr", "ldrsw"):
        literal = _ARM_LITERAL.search(operands)
        return Traits(Flow.NEXT, Touch.GLOBAL, int(literal[1], 0)) if literal else _MEMORY
    if mnemonic in ("dc", "ic", "at", "sys"):
        return _MEMORY
    return _NOTHING


def _control_arm64(mnemonic: str, operands: str) -> Traits | None:
    if mnemonic == "b":
        return Traits(Flow.JUMP, Touch.NOTHING, _target_arm64(operands))
    if mnemonic == "bl":
        return Traits(Flow.CALL, Touch.NOTHING, _target_arm64(operands))
    if mnemonic.startswith("b.") or mnemonic in _ARM_BRANCHES:
        return Traits(Flow.BRANCH, Touch.NOTHING, _target_arm64(operands))
    if mnemonic in _ARM_INDIRECT_JUMPS:
        return Traits(Flow.INDIRECT_JUMP, Touch.NOTHING)
    if mnemonic in _ARM_INDIRECT_CALLS:
        return Traits(Flow.INDIRECT_CALL, Touch.NOTHING)
    if mnemonic in _ARM_RETURNS:
        return Traits(Flow.RETURN, Touch.NOTHING)
    if mnemonic == "svc":
        return Traits(Flow.SYSCALL, Touch.SYSCALL)
    if mnemonic in _ARM_TRAPS:
        return Traits(Flow.TRAP, Touch.NOTHING)
    return None


def _target_arm64(operands: str) -> int:
    return int(operands.rpartition("#")[2], 0)
