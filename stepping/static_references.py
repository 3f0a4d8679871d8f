"""Every instruction of an amd64 program that names an address in a given range: what must change if that moves.

Compilers reach static data by displacements relative to the instruction pointer. Those that lead into the range are
found by their value, at any position of the code, which misses none; whether such a position really is the
displacement of an instruction is told by decoding its function from the beginning.

Not trusted: the code. What cannot be decoded, or names the range in another way (absolutely), is an error: then
nothing may be moved.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from operator import add, or_
from typing import NamedTuple

from stepping.errors import SteppingError
from stepping.x86_instructions import (
    MAX_INSTRUCTION_BYTES,
    Instruction,
    NotAnInstructionError,
    decode_instruction,
)

#: Where a function that holds an address begins and ends, or None if no function is known there.
FindFunction = Callable[[int], tuple[int, int] | None]

_DISPLACEMENT_BYTES = 4
_MAX_IMMEDIATE_BYTES = 4


class UnclearReferenceError(SteppingError):
    """Something in the code names the range, and it is not clear how to make it name another. `address`: where."""

    def __init__(self, address: int, why: str) -> None:
        super().__init__(f"the code at {address:#x} {why}")
        self.address = address


class Reference(NamedTuple):
    """An instruction's displacement, 4 bytes at *place*, which leads to *target*."""

    place: int
    target: int


Span = tuple[int, int]
"""Addresses from the first up to, not including, the second."""


def find_references(
    code: bytes, address: int, spans: Sequence[Span], function_of: FindFunction
) -> list[list[Reference] | UnclearReferenceError]:
    """Return, for each of *spans*, all references in *code* into it, or why they are not clear.

    code: lies at *address*.
    """
    found: list[list[Reference] | UnclearReferenceError] = [[] for _ in spans]
    for position in _candidates(code, address, spans):
        at = address + position
        for index, span in enumerate(spans):
            references = found[index]
            if isinstance(references, UnclearReferenceError) or not _may_name(code, address, position, span):
                continue
            try:
                reference = _reference(code, address, at, span, function_of)
            except UnclearReferenceError as error:
                found[index] = error
                continue
            if reference is not None:
                references.append(reference)
    return found


def _reference(code: bytes, address: int, at: int, span: Span, function_of: FindFunction) -> Reference | None:
    """Return the reference at *at*, if it is one.

    Raises:
        UnclearReferenceError: it may be one.
    """
    low, high = span
    function = function_of(at)
    if function is None:
        raise UnclearReferenceError(at, "may name it, and belongs to no known function")
    pc, instruction = _instruction_over(code, address, function[0], at)
    place = pc + instruction.displacement_at
    target = instruction.static_target(pc)
    if instruction.displacement_bytes == _DISPLACEMENT_BYTES and place == at and target is not None:
        return Reference(at, target) if low <= target < high else None
    is_immediate = at + 4 == pc + instruction.size
    if low <= _word(code, at - address) < high and (is_immediate or place == at):
        raise UnclearReferenceError(at, "names it by its absolute address")
    return None


def _word(code: bytes, position: int) -> int:
    return int.from_bytes(code[position : position + 4], "little", signed=True)


def _totals(address: int, span: Span) -> range:
    """What position and displacement add up to if they lead into *span*.

    A displacement counts from the end of the instruction, behind which an immediate operand may stand.
    """
    low, high = span
    return range(
        low - address - _DISPLACEMENT_BYTES - _MAX_IMMEDIATE_BYTES, high - address - _DISPLACEMENT_BYTES
    )


def _may_name(code: bytes, address: int, position: int, span: Span) -> bool:
    word = _word(code, position)
    return position + word in _totals(address, span) or span[0] <= word < span[1]


def _candidates(code: bytes, address: int, spans: Sequence[Span]) -> Iterator[int]:
    """Yield positions whose four bytes may be a displacement into a span, or an absolute address in it."""
    totals = {total for span in spans for total in _totals(address, span)}
    values = {value for span in spans for value in range(*span)}
    for alignment in range(_DISPLACEMENT_BYTES):
        whole = (len(code) - alignment) // 4 * 4
        words = memoryview(code[alignment : alignment + whole]).cast("i")
        positions = range(alignment, alignment + whole, 4)
        leads = map(totals.__contains__, map(add, words, positions))
        names = map(values.__contains__, words)
        yield from compress(positions, map(or_, leads, names))


def _instruction_over(code: bytes, address: int, start: int, at: int) -> tuple[int, Instruction]:
    """Return the instruction that holds address *at*, found from its function's *start* on, and its address."""
    pc = start
    while True:
        try:
            instruction = decode_instruction(code[pc - address : pc - address + MAX_INSTRUCTION_BYTES])
        except NotAnInstructionError as error:
            raise UnclearReferenceError(at, f"follows an unknown instruction at {pc:#x}") from error
        if pc + instruction.size > at:
            return pc, instruction
        pc += instruction.size
