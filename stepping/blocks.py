"""The disassembler, for amd64 and arm64: the one module that imports capstone.

`Decoder.iter_traits` classifies code, by way of `instructions`, at a megabyte or two a second: capstone's objects are
not used, only its records, and what each says is remembered by the instruction's bytes. `Decoder.iter_instructions`
and `Decoder.iter_text` tell more, and take longer.

A decoder belongs to one thread. Not trusted: the code. Bytes that are no instruction decode as `Flow.TRAP`, one byte
long (amd64) or four (arm64).
"""

import ctypes
import struct
from collections.abc import Iterator

import capstone

from stepping.instructions import (
    BAD,
    Flow,
    Instruction,
    Touch,
    Traits,
    classify_amd64,
    classify_arm64,
)
from stepping.syscalls.model import Arch

_MAX_REMEMBERED = 1 << 16

#: cs_insn: id, address, size, bytes, mnemonic, operands, detail; texts end with a NUL.
_RAW = struct.Struct("=8xQH24s32s160s6x8x")
#: The flows of instructions with a target, as numbers.
_FIRST_DIRECT, _LAST_DIRECT = int(Flow.JUMP), int(Flow.CALL)


#: An instruction as it is written, in Intel's or Arm's syntax: address, size in bytes, mnemonic, operands.
Text = tuple[int, int, str, str]


class Decoder:
    """Decodes code of *arch*."""

    def __init__(self, arch: Arch) -> None:
        self.arch: Arch = arch
        if arch == "amd64":
            self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
            self._classify, self._quantum = classify_amd64, 1
        else:
            self._capstone = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
            self._classify, self._quantum = classify_arm64, 4
        self._remembered: dict[bytes, Traits] = {}

    def iter_text(self, code: bytes, address: int) -> Iterator[Text]:
        """Yield the instructions of *code*, which begins at *address*; what is none is `BAD`."""
        offset = 0
        while offset < len(code):
            at, size = address + offset, 0
            for text in self._capstone.disasm_lite(code[offset:], at):
                yield text
                at, size, _, _ = text
            offset = at + size - address
            if offset < len(code):
                size = min(self._quantum, len(code) - offset)
                yield address + offset, size, BAD, ""
                offset += size

    def iter_traits(self, code: bytes, address: int) -> Iterator[tuple[int, int, Traits]]:
        """Yield address, size and traits of the instructions of *code*, which begins at *address*.

        Traits are remembered by the bytes of the instruction, so the target of `Touch.GLOBAL` may be another one's.
        """
        remembered = self._remembered
        offset = 0
        while offset < len(code):
            at, size = address + offset, 0
            for text in self._iter_raw(code[offset:] if offset else code, at):
                at, size, raw, mnemonic, operands = text
                key = raw[:size]
                traits = remembered.get(key)
                if traits is None:
                    # What is behind the NULs is left over from other texts.
                    words = (
                        mnemonic[: mnemonic.index(0)].decode("ascii"),
                        operands[: operands.index(0)].decode("ascii"),
                    )
                    traits = self._classify(*words, at + size)
                    if len(remembered) >= _MAX_REMEMBERED:
                        remembered.clear()
                    remembered[key] = (
                        traits._replace(target=traits.target - at) if _is_direct(traits) else traits
                    )
                elif _FIRST_DIRECT <= traits[0] <= _LAST_DIRECT:
                    traits = Traits(
                        traits[0], traits[1], traits[2] + at
                    )  # targets are remembered as distances
                yield at, size, traits
            offset = at + size - address
            if offset < len(code):
                size = min(self._quantum, len(code) - offset)
                yield address + offset, size, self._classify(BAD, "", 0)
                offset += size

    def _iter_raw(self, code: bytes, address: int) -> Iterator[tuple[int, int, bytes, bytes, bytes]]:
        """Return instructions as capstone's C library lays them out: by far quicker than field by field."""
        found = ctypes.POINTER(capstone._cs_insn)()
        library = capstone._cs
        count = library.cs_disasm(self._capstone.csh, code, len(code), address, 0, ctypes.byref(found))
        if not count:
            return iter(())
        raw = ctypes.string_at(found, count * _RAW.size)
        library.cs_free(found, count)
        return _RAW.iter_unpack(raw)

    def iter_instructions(self, code: bytes, address: int) -> Iterator[Instruction]:
        """Yield the instructions of *code*, which begins at *address*, classified."""
        for at, size, mnemonic, operands in self.iter_text(code, address):
            yield Instruction(at, size, *self._classify(mnemonic, operands, at + size))

    def decode(self, code: bytes, address: int) -> Instruction:
        """Return the first instruction of *code*, which begins at *address*; empty code is no instruction."""
        for instruction in self.iter_instructions(code, address):
            return instruction
        return Instruction(address, self._quantum, Flow.TRAP, Touch.FOREIGN, 0)


def _is_direct(traits: Traits) -> bool:
    return _FIRST_DIRECT <= traits.flow <= _LAST_DIRECT
