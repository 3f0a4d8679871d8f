"""Where a Go function's arguments and results are: the register assignment of ABIInternal.

Valid at a function's first instruction (arguments) and right after its return (results); in between the compiler
moves things as it likes. Functions written in assembly that are ABI0 take everything on the stack: for them,
assign with no registers. Pure but for `read_parameters`.

Source: cmd/compile/abi-internal.md; internal/abi/abi_amd64.go, abi_arm64.go (Go 1.21 to 1.27).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from goabi.arch import Arch
from goabi.dwarf import Parameter
from goabi.errors import MemoryFaultError
from goabi.gotypes import GoType, Kind
from goabi.memory import MemoryReader
from goabi.values import Unreadable, Value, ValueReader

_FLOATS = frozenset({Kind.FLOAT32, Kind.FLOAT64})
_COMPLEX = {Kind.COMPLEX64: 4, Kind.COMPLEX128: 8}
_TWO_WORDS = frozenset({Kind.STRING, Kind.INTERFACE})


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a value: `size` bytes at `offset` in the value are in a register's low bytes."""

    register: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Location:
    """Where one value is: in registers (`pieces`), or on the stack at `stack_offset` from the argument area.

    Both are empty (no pieces, None) for a value of no size.
    """

    pieces: tuple[Piece, ...]
    stack_offset: int | None


class _Registers:
    """What is left to assign; a value gets all the registers that it needs, or none."""

    def __init__(self, integers: Sequence[str], floats: Sequence[str]) -> None:
        self._integers, self._floats = integers, floats
        self._used_integers = self._used_floats = 0

    def assign(self, go_type: GoType) -> tuple[Piece, ...] | None:
        saved = self._used_integers, self._used_floats
        pieces: list[Piece] = []
        if self._assign(go_type, 0, pieces):
            return tuple(pieces)
        self._used_integers, self._used_floats = saved
        return None

    def _assign(self, go_type: GoType, offset: int, pieces: list[Piece]) -> bool:
        kind = go_type.kind
        if kind is Kind.STRUCT:
            return all(self._assign(field.type, offset + field.offset, pieces) for field in go_type.fields)
        if kind is Kind.ARRAY:
            return go_type.count == 0 or (go_type.count == 1 and self._assign(go_type.elem, offset, pieces))
        if kind in _FLOATS:
            return self._take_float(offset, go_type.size, pieces)
        if kind in _COMPLEX:
            size = _COMPLEX[kind]
            return self._take_float(offset, size, pieces) and self._take_float(offset + size, size, pieces)
        words = 3 if kind is Kind.SLICE else 2 if kind in _TWO_WORDS else 1
        size = go_type.size if words == 1 else 8
        return all(self._take_integer(offset + 8 * number, size, pieces) for number in range(words))

    def _take_integer(self, offset: int, size: int, pieces: list[Piece]) -> bool:
        if self._used_integers >= len(self._integers):
            return False
        pieces.append(Piece(self._integers[self._used_integers], offset, size))
        self._used_integers += 1
        return True

    def _take_float(self, offset: int, size: int, pieces: list[Piece]) -> bool:
        if self._used_floats >= len(self._floats):
            return False
        pieces.append(Piece(self._floats[self._used_floats], offset, size))
        self._used_floats += 1
        return True


def assign_locations(arch: Arch, types: Iterable[GoType], *, stack_start: int = 0) -> tuple[Location, ...]:
    """Where values of those types are passed, in order; call it for the arguments and for the results.

    `stack_start` is where the stack part begins: 0 for arguments; for results, `stack_end` of the arguments.
    """
    registers = _Registers(arch.integer_registers, arch.float_registers)
    locations, position = [], stack_start
    for go_type in types:
        pieces = registers.assign(go_type)
        if pieces is not None:
            locations.append(Location(pieces, None))
            continue
        position = -(-position // alignment(go_type)) * alignment(go_type)
        locations.append(Location((), position))
        position += go_type.size
    return tuple(locations)


def stack_end(arch: Arch, types: Sequence[GoType]) -> int:
    """Where the arguments' part of the stack ends, in whole words: where that of the results begins."""
    end = 0
    for go_type, location in zip(types, assign_locations(arch, types), strict=True):
        if location.stack_offset is not None:
            end = location.stack_offset + go_type.size
    return -(-end // arch.pointer_bytes) * arch.pointer_bytes


def alignment(go_type: GoType) -> int:
    """The alignment of a type in bytes."""
    if go_type.kind is Kind.STRUCT:
        return max((alignment(field.type) for field in go_type.fields), default=1)
    if go_type.kind is Kind.ARRAY:
        return alignment(go_type.elem)
    if go_type.kind in _COMPLEX:
        return _COMPLEX[go_type.kind]
    return min(go_type.size, 8) or 1


def read_parameters(
    arch: Arch,
    parameters: Sequence[Parameter],
    registers: Mapping[str, int],
    memory: MemoryReader,
    values: ValueReader,
    *,
    results: bool = False,
) -> dict[str, Value]:
    """The arguments at a function's first instruction, or with `results` its results right after the return.

    `registers` are those of `Arch`, vector registers as integers where floats are wanted. By name; an unnamed
    one is `~N`, as Go itself calls it. What is not to be had is `Unreadable` in its place.
    """
    arguments = [p for p in parameters if not p.is_result]
    wanted = [p for p in parameters if p.is_result] if results else arguments
    start = stack_end(arch, [p.type for p in arguments]) if results else 0
    # At entry the return address (or on arm64 the saved link register's place) lies below the arguments.
    base = registers[arch.sp] + (0 if results and not arch.uses_lr else 8)
    found: dict[str, Value] = {}
    locations = assign_locations(arch, [p.type for p in wanted], stack_start=start)
    for number, (parameter, location) in enumerate(zip(wanted, locations, strict=True)):
        name = parameter.name if parameter.name not in ("", "_") else f"~{number}"
        found[name] = _read_location(parameter.type, location, registers, memory, base, values)
    return found


def _read_location(
    go_type: GoType,
    location: Location,
    registers: Mapping[str, int],
    memory: MemoryReader,
    base: int,
    values: ValueReader,
) -> Value:
    raw = bytearray(go_type.size)
    if location.stack_offset is not None:
        try:
            raw[:] = memory.read(base + location.stack_offset, go_type.size)
        except MemoryFaultError as error:
            return Unreadable(str(error))
    for piece in location.pieces:
        value = registers.get(piece.register)
        if value is None:
            return Unreadable(f"register {piece.register} is not known")
        data = value.to_bytes(max(8, (value.bit_length() + 7) // 8), "little")
        raw[piece.offset : piece.offset + piece.size] = data[: piece.size]
    return values.decode_value(go_type, bytes(raw))
