"""ABIInternal's assignment, on the examples of its specification and its corners."""

import pytest

from goabi.arches import ARCHES
from goabi.callconv import Location, Piece, alignment, assign_locations, stack_end
from goabi.gotypes import Field, GoType, Kind

AMD64, ARM64 = ARCHES["amd64"], ARCHES["arm64"]
INT = GoType("int", Kind.INT, 8)
UINT8 = GoType("uint8", Kind.UINT8, 1)
INT16 = GoType("int16", Kind.INT16, 2)
FLOAT64 = GoType("float64", Kind.FLOAT64, 8)
COMPLEX64 = GoType("complex64", Kind.COMPLEX64, 8)
STRING = GoType("string", Kind.STRING, 16)
SLICE = GoType("[]int", Kind.SLICE, 24, elem=lambda: INT)
EMPTY = GoType("struct {}", Kind.STRUCT, 0, fields=lambda: ())


def array(elem: GoType, count: int) -> GoType:
    return GoType(f"[{count}]{elem.name}", Kind.ARRAY, elem.size * count, count=count, elem=lambda: elem)


def struct(size: int, *fields: tuple[int, GoType]) -> GoType:
    made = tuple(Field(f"f{index}", offset, kind) for index, (offset, kind) in enumerate(fields))
    return GoType("struct", Kind.STRUCT, size, fields=lambda: made)


def test_the_specifications_example() -> None:
    """func f(a1 uint8, a2 [2]uintptr, a3 uint8) (r1 struct { x uintptr; y [2]uintptr }, r2 string)."""
    arguments = [UINT8, array(INT, 2), UINT8]
    assert assign_locations(AMD64, arguments) == (
        Location((Piece("rax", 0, 1),), None),
        Location((), 0),
        Location((Piece("rbx", 0, 1),), None),
    )
    end = stack_end(AMD64, arguments)
    assert end == 16
    results = [struct(24, (0, INT), (8, array(INT, 2))), STRING]
    assert assign_locations(AMD64, results, stack_start=end) == (
        Location((), 16),
        Location((Piece("rax", 0, 8), Piece("rbx", 8, 8)), None),
    )


def test_composite_values_are_taken_apart() -> None:
    value = struct(48, (0, INT16), (8, FLOAT64), (16, SLICE), (40, COMPLEX64))
    (location,) = assign_locations(AMD64, [value])
    assert location.pieces == (
        Piece("rax", 0, 2),
        Piece("xmm0", 8, 8),
        Piece("rbx", 16, 8),
        Piece("rcx", 24, 8),
        Piece("rdi", 32, 8),
        Piece("xmm1", 40, 4),
        Piece("xmm2", 44, 4),
    )


def test_a_value_that_does_not_fit_takes_no_register_from_the_next() -> None:
    locations = assign_locations(AMD64, [SLICE, SLICE, STRING, STRING, INT])
    registers = [[piece.register for piece in location.pieces] for location in locations]
    assert registers == [["rax", "rbx", "rcx"], ["rdi", "rsi", "r8"], ["r9", "r10"], [], ["r11"]]
    assert locations[3].stack_offset == 0


def test_arm64_has_sixteen_of_each() -> None:
    locations = assign_locations(ARM64, [INT] * 17 + [FLOAT64] * 17)
    assert [piece.register for piece in locations[15].pieces] == ["x15"]
    assert locations[16].stack_offset == 0
    assert [piece.register for piece in locations[32].pieces] == ["v15"]
    assert locations[33].stack_offset == 8


def test_stack_part_is_aligned() -> None:
    small = struct(3, (0, array(UINT8, 3)))
    locations = assign_locations(AMD64, [small, array(INT16, 2), array(INT, 3)])
    assert [location.stack_offset for location in locations] == [0, 4, 8]
    assert stack_end(AMD64, [small]) == 8


@pytest.mark.parametrize("nothing", [EMPTY, array(INT, 0)])
def test_values_without_size_are_nowhere(nothing: GoType) -> None:
    assert assign_locations(AMD64, [nothing, INT])[0] == Location((), None)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(UINT8, 1), (INT16, 2), (STRING, 8), (COMPLEX64, 4), (EMPTY, 1), (struct(8, (0, UINT8), (4, INT16)), 2)],
)
def test_alignment(kind: GoType, expected: int) -> None:
    assert alignment(kind) == expected
