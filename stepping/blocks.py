"""The disassembler, for amd64 and arm64: the one module that imports capstone.

`Decoder.iter_instructions` classifies code, by way of `instructions`, at a megabyte or two a second: capstone's
objects are not used, only the text that it prints, and what that says is remembered. `Decoder.iter_text` gives
the text itself.

A decoder belongs to one thread. Not trusted: the code. Bytes that are no instruction decode as `Flow.TRAP`, one byte
long (amd64) or four (arm64).
"""

from collections.abc import Iterator
from typing import NamedTuple

import capstone

from stepping.instructions import Flow, Instruction, Touch, Traits, classify_amd64, classify_arm64
from stepping.syscalls.model import Arch

_MAX_REMEMBERED = 1 << 16
_INVALID = Traits(Flow.TRAP, Touch.FOREIGN)


class Text(NamedTuple):
    """An instruction as it is written, in Intel's or Arm's syntax."""

    address: int
    size: int
    mnemonic: str
    operands: str


class Decoder:
    """Decodes code of *arch*."""

    def __init__(self, arch: Arch) -> None:
        if arch == "amd64":
            self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
            self._classify, self._quantum = classify_amd64, 1
        else:
            self._capstone = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
            self._classify, self._quantum = classify_arm64, 4
        self._remembered: dict[tuple[str, str], Traits] = {}

    def iter_text(self, code: bytes, address: int) -> Iterator[Text]:
        """Yield the instructions of *code*, which begins at *address*; what is none is called ``(bad)``."""
        offset = 0
        while offset < len(code):
            for at, size, mnemonic, operands in self._capstone.disasm_lite(code[offset:], address + offset):
                yield Text(at, size, mnemonic, operands)
                offset = at + size - address
            if offset < len(code):
                size = min(self._quantum, len(code) - offset)
                yield Text(address + offset, size, "(bad)", "")
                offset += size

    def iter_instructions(self, code: bytes, address: int) -> Iterator[Instruction]:
        """Yield the instructions of *code*, which begins at *address*, classified."""
        remembered, classify = self._remembered, self._classify
        for at, size, mnemonic, operands in self.iter_text(code, address):
            key = (mnemonic, operands)
            traits = remembered.get(key)
            if traits is None:
                traits = _INVALID if mnemonic == "(bad)" else classify(mnemonic, operands, at + size)
                if "rip" not in operands and len(remembered) < _MAX_REMEMBERED:
                    remembered[key] = traits
            yield Instruction(at, size, *traits)

    def decode(self, code: bytes, address: int) -> Instruction:
        """Return the first instruction of *code*, which begins at *address*; empty code is no instruction."""
        for instruction in self.iter_instructions(code, address):
            return instruction
        return Instruction(address, self._quantum, *_INVALID)
