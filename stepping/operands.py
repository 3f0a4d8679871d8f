"""Which memory an instruction of amd64 touches, told from its text and the registers before it.

`find_accesses` is pure. It knows the operands, and the stack that push, pop, call and return use.

Source: Intel SDM volume 2.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_OPERAND = re.compile(r"(?:(\w+) ptr )?(?:([fg]s):)?\[([^\]]*)\]")
_SIZES = {
    "byte": 1,
    "word": 2,
    "dword": 4,
    "qword": 8,
    "tbyte": 10,
    "xword": 10,
    "xmmword": 16,
    "ymmword": 32,
}
_NO_ACCESS = frozenset({"lea", "nop"})
#: Instructions whose first operand is only read.
_ONLY_READ = (
    "cmp",
    "test",
    "bt",
    "push",
    "call",
    "jmp",
    "mul",
    "imul",
    "div",
    "idiv",
    "comis",
    "ucomis",
    "ptest",
)
#: Instructions whose first operand is only written.
_ONLY_WRITTEN = ("mov", "set", "pop", "stos", "vmov", "fst", "cvt", "pextr", "lods")
_PUSHES = frozenset({"push", "call", "pushfq"})
_POPS = frozenset({"pop", "ret", "popfq"})
_U64 = (1 << 64) - 1


class MemoryAccess(NamedTuple):
    """*size* bytes at *address* are read, written, or both (`kind`: ``r``, ``w`` or ``rw``); size 0 if it varies."""

    kind: str
    address: int
    size: int


def find_accesses(mnemonic: str, operands: str, end: int, registers: Mapping[str, int]) -> list[MemoryAccess]:
    """Return what an instruction touches. end: the address behind it; registers: before it, by the kernel's names."""
    name = mnemonic.rpartition(" ")[2]
    found = []
    if name not in _NO_ACCESS and not name.startswith("prefetch"):
        for match in _OPERAND.finditer(operands):
            kind, segment, inside = match.groups()
            address = _address(inside, end, registers)
            if segment is not None:
                address += registers[f"{segment}_base"]
            first = operands[: match.start()].count(",") == 0
            found.append(MemoryAccess(_kind(name, first), address & _U64, _SIZES.get(kind or "", 0)))
    sp = registers["rsp"]
    if name in _PUSHES:
        found.append(MemoryAccess("w", (sp - 8) & _U64, 8))
    elif name in _POPS:
        found.append(MemoryAccess("r", sp, 8))
    elif name == "leave":
        found.append(MemoryAccess("r", registers["rbp"], 8))
    return found


def _kind(name: str, first: bool) -> str:
    if name == "xchg":
        return "rw"
    if not first or name in _ONLY_READ:
        return "r"
    return "w" if name.startswith(_ONLY_WRITTEN) else "rw"


def _address(inside: str, end: int, registers: Mapping[str, int]) -> int:
    total = 0
    for sign, term in re.findall(r"([+-]?)\s*([^+\-\s]+)", inside):
        name, _, scale = term.partition("*")
        if name == "rip":
            value = end
        elif name in registers:
            value = registers[name]
        elif name[0].isdigit():
            value = int(name, 0)
        else:  # with the prefix for 32-bit addresses
            value = (
                registers["r" + name[1:]] & 0xFFFFFFFF
                if name[0] == "e"
                else registers[name.rstrip("d")] & 0xFFFFFFFF
            )
        value *= int(scale, 0) if scale else 1
        total += -value if sign == "-" else value
    return total
