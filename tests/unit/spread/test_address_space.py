"""Where mappings of a spread program go."""

import errno

import pytest

from ptserver.spread.address_space import (
    ANYWHERE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    REGION_BYTES,
    AddressSpace,
    MapError,
)

_PAGE = 4096
_RW, _NONE = 3, 0
_HEAP = 0xC0_0000_0000


@pytest.fixture
def space() -> AddressSpace:
    space = AddressSpace()
    space.add_region(0x40_0000, 16 * _PAGE, mapped=True)
    space.add_region(*ANYWHERE)
    return space


def test_the_program_s_own_memory_may_be_touched_and_nothing_beside_it(space: AddressSpace) -> None:
    assert space.may_touch(0x400)
    assert space.may_touch(0x40F)
    assert not space.may_touch(0x3FF)
    assert not space.may_touch(0x410)
    assert not space.may_touch(0)


def test_a_mapping_without_a_place_goes_where_there_is_room(space: AddressSpace) -> None:
    first = space.map(0, 3 * _PAGE, _RW, MAP_ANONYMOUS)
    second = space.map(0, 1, _RW, MAP_ANONYMOUS)
    assert first.new_region is None
    assert first.size == 3 * _PAGE
    assert second.address >= first.address + first.size
    assert space.may_touch(second.address // _PAGE)
    assert not space.may_touch(second.address // _PAGE + 1)


def test_a_hint_where_nothing_is_gets_a_large_region(space: AddressSpace) -> None:
    mapped = space.map(_HEAP, 64 << 20, _NONE, MAP_ANONYMOUS)
    assert mapped.address == _HEAP
    assert mapped.new_region == (_HEAP, REGION_BYTES)
    assert not space.may_touch(_HEAP // _PAGE)
    again = space.map(_HEAP, 4 << 20, _RW, MAP_ANONYMOUS | MAP_FIXED)
    assert again.new_region is None
    assert space.may_touch(_HEAP // _PAGE)
    assert not space.may_touch((_HEAP + (4 << 20)) // _PAGE)


def test_a_hint_that_is_taken_goes_elsewhere(space: AddressSpace) -> None:
    space.map(_HEAP, 64 << 20, _RW, MAP_ANONYMOUS)
    other = space.map(_HEAP, 64 << 20, _RW, MAP_ANONYMOUS)
    assert ANYWHERE[0] <= other.address < ANYWHERE[0] + ANYWHERE[1]


def test_a_region_does_not_reach_into_the_next(space: AddressSpace) -> None:
    space.map(_HEAP, 1 << 20, _RW, MAP_ANONYMOUS)
    below = space.map(_HEAP - (1 << 30), 1 << 20, _RW, MAP_ANONYMOUS)
    assert below.new_region == (_HEAP - (1 << 30), 1 << 30)


def test_what_is_unmapped_or_protected_may_not_be_touched(space: AddressSpace) -> None:
    start = space.map(0, 8 * _PAGE, _RW, MAP_ANONYMOUS).address
    space.unmap(start + 2 * _PAGE, _PAGE)
    space.protect(start + 4 * _PAGE, 2 * _PAGE, _NONE)
    allowed = [space.may_touch(start // _PAGE + number) for number in range(8)]
    assert allowed == [True, True, False, True, False, False, True, True]
    space.protect(start, 8 * _PAGE, _RW)
    assert [space.may_touch(start // _PAGE + number) for number in range(8)].count(False) == 1


@pytest.mark.parametrize(
    ("address", "size", "flags", "error"),
    [
        (0, 0, MAP_ANONYMOUS, errno.EINVAL),
        (_HEAP + 1, _PAGE, MAP_ANONYMOUS | MAP_FIXED, errno.EINVAL),
        (0x40_0000, _PAGE, MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, errno.EEXIST),
        (0, 1 << 46, MAP_ANONYMOUS, errno.ENOMEM),
        (0x40_F000, 2 * _PAGE, MAP_ANONYMOUS | MAP_FIXED, errno.ENOMEM),
    ],
)
def test_what_cannot_be_mapped_fails_as_mmap_does(
    space: AddressSpace, address: int, size: int, flags: int, error: int
) -> None:
    with pytest.raises(MapError) as caught:
        space.map(address, size, _RW, flags)
    assert caught.value.errno == error
