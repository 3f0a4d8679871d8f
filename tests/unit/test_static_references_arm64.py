"""References of Go's code for arm64 into static data: pairs of instructions that are found, and led elsewhere."""

import struct

import pytest

from stepping.static_references import Reference, UnclearReferenceError
from stepping.static_references_arm64 import find_page_references, moved_page

CODE_AT = 0x11000
SPAN = (0x1A2010, 0x1A2018)


def adrp(at: int, page: int, register: int = 1) -> int:
    return moved_page(0x90000000 | register, page - (at & -4096))


def words(*instructions: int) -> bytes:
    return struct.pack(f"<{len(instructions)}I", *instructions)


@pytest.mark.parametrize(
    ("second", "offset"),
    [
        (0x91004021, 0x10),  # add x1, x1, #0x10
        (0xF9400820, 0x10),  # ldr x0, [x1, #0x10]
        (0xB9001420, 0x14),  # str w0, [x1, #0x14]
        (0x3980_5020, 0x14),  # ldrsb x0, [x1, #0x14]
        (0x3DC00420, 0x10),  # ldr q0, [x1, #0x10]
    ],
)
def test_pairs_are_found(second: int, offset: int) -> None:
    code = words(0xD503201F, adrp(CODE_AT + 4, 0x1A2000), second)
    assert find_page_references(code, CODE_AT, [SPAN]) == [[Reference(CODE_AT + 4, 0x1A2000 + offset)]]


def test_neighbours_and_other_pages_are_left_alone() -> None:
    code = words(adrp(CODE_AT, 0x1A2000), 0xF9400C20, adrp(CODE_AT + 8, 0x1A3000), 0xF9400820)  # [x1, #0x18]
    assert find_page_references(code, CODE_AT, [SPAN]) == [[]]


@pytest.mark.parametrize(
    "second", [0xF9400840, 0x8B020020, 0xD503201F]
)  # another register; add x0, x1, x2; nop
def test_other_uses_of_the_page_are_unclear(second: int) -> None:
    (found,) = find_page_references(words(adrp(CODE_AT, 0x1A2000), second), CODE_AT, [SPAN])
    assert isinstance(found, UnclearReferenceError)
    assert found.address == CODE_AT


@pytest.mark.parametrize("distance", [0, 4096, -4096, 0x3000_0000, -(1 << 32), (1 << 32) - 4096])
def test_a_page_is_moved_and_back(distance: int) -> None:
    word = adrp(CODE_AT, 0x1A2000) if abs(distance) < 1 << 31 else 0x90000001
    moved = moved_page(word, distance)
    assert moved & 0x9F00001F == word & 0x9F00001F
    assert moved_page(moved, -distance) == word
