"""The disassembler, for amd64 and arm64: the one module that imports capstone.

`Decoder.scan` classifies code, by way of `instructions`, at a megabyte or two a second: capstone's objects are not
used, only its records, and what each says is remembered by the instruction's bytes. `Decoder.iter_traits` tells the
same as objects; `Decoder.iter_instructions` and `Decoder.iter_text` tell more, and take longer.

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
_RAW = struct.Struct("=8xQH24s206x")
_TEXTS = struct.Struct("=42x32s160s14x")
#: The flows of instructions with a target, as numbers.
_FIRST_DIRECT, _LAST_DIRECT = int(Flow.JUMP), int(Flow.CALL)
_FLOWS = {int(flow): flow for flow in Flow}
_TOUCHES = [Touch(value) for value in range(2 * max(Touch))]

#: What is remembered of an instruction, as plain numbers: flow, touch, target; of a direct jump or call the distance
#: from the instruction's address to the target.
Plain = tuple[int, int, int]

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
        self._remembered: dict[bytes, Plain] = {}
        self._bad: Plain = _plain(self._classify(BAD, "", 0))

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

    def scan(self, code: bytes, address: int) -> tuple[list[int], list[Plain]]:
        """Return the ends of all instructions of *code*, which begins at *address*, and what each is.

        Targets of `Touch.GLOBAL` may be another instruction's, of the same bytes.
        """
        ends: list[int] = []
        found: list[Plain] = []
        end_is, found_is, known = ends.append, found.append, self._remembered.get
        end, behind = address, address + len(code)
        while end < behind:
            records = self._records(code[end - address :] if end != address else code, end)
            for index, (at, size, raw) in enumerate(_RAW.iter_unpack(records)):
                key = raw[:size]
                plain = known(key)
                if plain is None:
                    plain = self._remember(key, records, index, at, size)
                end = at + size
                end_is(end)
                found_is(plain)
            if end < behind:
                end += min(self._quantum, behind - end)
                end_is(end)
                found_is(self._bad)
        return ends, found

    def iter_traits(self, code: bytes, address: int) -> Iterator[tuple[int, int, Traits]]:
        """Yield address, size and traits of the instructions of *code*, which begins at *address*; see `scan`."""
        at = address
        for end, (flow, touch, target) in zip(*self.scan(code, address), strict=True):
            if _FIRST_DIRECT <= flow <= _LAST_DIRECT:
                target += at
            yield at, end - at, Traits(_FLOWS[flow], _TOUCHES[touch], target)
            at = end

    def _remember(self, key: bytes, records: bytes, index: int, at: int, size: int) -> Plain:
        """Classify an instruction; return what is remembered of it from now on."""
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        alike = b""
        if self.arch == "amd64":
            plain = _direct_amd64(key)
            if plain is not None:
                self._remembered[key] = plain
                return plain
            alike = _without_displacement(key)
            if alike in self._remembered:
                return self._remembered[alike]
        mnemonic, operands = _TEXTS.unpack_from(records, index * _RAW.size)
        # What is behind the NULs is left over from other texts.
        words = (
            mnemonic[: mnemonic.index(0)].decode("ascii"),
            operands[: operands.index(0)].decode("ascii"),
        )
        flow, touch, target = _plain(self._classify(*words, at + size))
        if _FIRST_DIRECT <= flow <= _LAST_DIRECT:
            target -= at
        plain = self._remembered[alike or key] = flow, touch, target
        return plain

    def _records(self, code: bytes, address: int) -> bytes:
        """Return instructions as capstone's C library lays them out: by far quicker than field by field."""
        found = ctypes.POINTER(capstone._cs_insn)()
        library = capstone._cs
        count = library.cs_disasm(self._capstone.csh, code, len(code), address, 0, ctypes.byref(found))
        if not count:
            return b""
        records = ctypes.string_at(found, count * _RAW.size)
        library.cs_free(found, count)
        return records

    def iter_instructions(self, code: bytes, address: int) -> Iterator[Instruction]:
        """Yield the instructions of *code*, which begins at *address*, classified."""
        for at, size, mnemonic, operands in self.iter_text(code, address):
            yield Instruction(at, size, *self._classify(mnemonic, operands, at + size))

    def decode(self, code: bytes, address: int) -> Instruction:
        """Return the first instruction of *code*, which begins at *address*; empty code is no instruction."""
        for instruction in self.iter_instructions(code, address):
            return instruction
        return Instruction(address, self._quantum, Flow.TRAP, Touch.FOREIGN, 0)


_CALLS, _JUMPS, _SHORT_JUMP, _TWO_BYTES = 0xE8, 0xE9, 0xEB, 0x0F
#: Opcodes with a ModRM byte, for which an operand relative to the program counter is the usual one.
_OFTEN_RELATIVE = frozenset(
    bytes.fromhex("01 03 29 2b 38 39 3a 3b 63 80 81 83 84 85 88 89 8a 8b 8d c6 c7 ff")
)


def _direct_amd64(code: bytes) -> Plain | None:
    """Return what a direct jump or call is, which hardly two are alike; None for anything else."""
    opcode = code[0]
    if opcode in (_CALLS, _JUMPS):
        distance = len(code) + int.from_bytes(code[1:5], "little", signed=True)
        return (
            (int(Flow.CALL), int(Touch.STACK), distance)
            if opcode == _CALLS
            else (int(Flow.JUMP), 0, distance)
        )
    if opcode == _SHORT_JUMP or opcode & 0xF0 == 0x70:
        flow = Flow.JUMP if opcode == _SHORT_JUMP else Flow.BRANCH
        return int(flow), 0, len(code) + int.from_bytes(code[1:2], "little", signed=True)
    if opcode == _TWO_BYTES and code[1] & 0xF0 == 0x80:
        return int(Flow.BRANCH), 0, len(code) + int.from_bytes(code[2:6], "little", signed=True)
    return None


def _without_displacement(code: bytes) -> bytes:
    """Return the bytes of an instruction that say what it is, but for where its operand is; empty if that is not
    relative to the program counter. No instruction has these bytes.
    """
    at = code[0] & 0xF0 == 0x40
    if len(code) < at + 6 or code[at] not in _OFTEN_RELATIVE or code[at + 1] & 0xC7 != 5:
        return b""
    return code[: at + 2] + b"relative"


def _plain(traits: Traits) -> Plain:
    return int(traits.flow), int(traits.touch), traits.target
