"""The address space of an emulated program: what is mapped, what may be touched, what is told to the processor."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepping.emulation.address_space import MMAP_TOP, PROT_READ, PROT_WRITE, AddressSpace, map_file
from stepping.emulator import ADDRESS_LIMIT
from stepping.errors import MemoryFaultError

PAGE = 4096
RW = PROT_READ | PROT_WRITE
START = 0x20_0000


class Pages:
    """A processor that only remembers what it may touch, by page."""

    def __init__(self) -> None:
        self.allowed: dict[int, int] = {}

    def attach(self, host_address: int) -> None:
        assert host_address % PAGE == 0

    def allow(self, start: int, size: int, protection: int) -> None:
        for page in range(start, start + size, PAGE):
            assert page not in self.allowed, "allowed twice"
            self.allowed[page] = protection

    def forbid(self, start: int, size: int) -> None:
        for page in range(start, start + size, PAGE):
            del self.allowed[page]


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def space(pages: Pages) -> Iterator[AddressSpace]:
    space = AddressSpace(pages)
    yield space
    space.close()


def test_what_is_written_is_read(space: AddressSpace) -> None:
    space.map(START, 2 * PAGE, RW)
    space.write(START + PAGE - 2, b"four")
    assert space.read(START + PAGE - 2, 4) == b"four"


def test_nothing_is_read_or_written_where_nothing_is_mapped(space: AddressSpace) -> None:
    space.map(START, PAGE, RW)
    with pytest.raises(MemoryFaultError):
        space.read(START + PAGE - 1, 2)
    with pytest.raises(MemoryFaultError):
        space.write(START - 1, b"ab")


def test_what_is_protected_is_not_written(space: AddressSpace) -> None:
    space.map(START, PAGE, RW)
    assert space.protect(START, PAGE, PROT_READ) == 0
    assert space.read(START, 1) == b"\0"
    with pytest.raises(MemoryFaultError):
        space.write(START, b"a")


def test_a_string_may_end_at_the_end_of_what_is_mapped(space: AddressSpace) -> None:
    space.map(START, PAGE, RW)
    space.write(START + PAGE - 4, b"abc\0")
    assert space.read_string(START + PAGE - 4, 100) == b"abc"
    space.write(START + PAGE - 1, b"d")
    with pytest.raises(MemoryFaultError):
        space.read_string(START + PAGE - 4, 100)
    with pytest.raises(ValueError, match="NUL"):
        space.read_string(START + PAGE - 4, 3)


def test_unmapping_the_middle_leaves_both_ends(space: AddressSpace, pages: Pages) -> None:
    space.map(START, 4 * PAGE, RW)
    space.write(START, b"x" * 4 * PAGE)
    space.unmap(START + PAGE, 2 * PAGE)
    assert [(vma.start, vma.end) for vma in space.vmas()] == [
        (START, START + PAGE),
        (START + 3 * PAGE, START + 4 * PAGE),
    ]
    assert sorted(pages.allowed) == [START, START + 3 * PAGE]
    space.map(START + PAGE, PAGE, RW)
    assert space.read(START, 2 * PAGE) == b"x" * PAGE + bytes(PAGE)


def test_protecting_a_part_changes_that_part_alone(space: AddressSpace, pages: Pages) -> None:
    space.map(START, 3 * PAGE, RW)
    space.protect(START + PAGE, PAGE, 0)
    assert pages.allowed == {START: RW, START + 2 * PAGE: RW}
    space.protect(START + PAGE, PAGE, RW)
    assert len(pages.allowed) == 3


def test_protecting_what_is_not_mapped_is_refused(space: AddressSpace) -> None:
    space.map(START, PAGE, RW)
    assert space.protect(START, 2 * PAGE, PROT_READ) == errno.ENOMEM


def test_a_reservation_of_terabytes_costs_nothing(space: AddressSpace, pages: Pages) -> None:
    space.map(1 << 40, 8 << 40, 0)
    assert not pages.allowed
    assert space.find(3 << 40) is not None
    assert not space.allows(3 << 40, 1, PROT_READ)


def test_room_is_found_below_what_is_mapped(space: AddressSpace) -> None:
    first = space.find_room(PAGE)
    assert first == MMAP_TOP - PAGE
    space.map(first, PAGE, RW)
    second = space.find_room(3 * PAGE)
    assert second == first - 3 * PAGE
    assert space.find_room(ADDRESS_LIMIT) is None


def test_room_is_found_in_gaps(space: AddressSpace) -> None:
    space.map(MMAP_TOP - PAGE, PAGE, RW)
    space.map(MMAP_TOP - 4 * PAGE, PAGE, RW)
    assert space.find_room(2 * PAGE) == MMAP_TOP - 3 * PAGE
    assert space.find_room(3 * PAGE) == MMAP_TOP - 7 * PAGE


def test_discarded_memory_is_zero_again(space: AddressSpace) -> None:
    space.map(START, 2 * PAGE, RW)
    space.write(START, b"x" * 2 * PAGE)
    space.discard(START, PAGE)
    assert space.read(START, 2 * PAGE) == bytes(PAGE) + b"x" * PAGE


def test_a_move_keeps_the_content(space: AddressSpace) -> None:
    space.map(START, PAGE, RW)
    space.write(START, b"content")
    space.move(START, PAGE, START + 16 * PAGE, 2 * PAGE)
    assert space.read(START + 16 * PAGE, 7) == b"content"
    assert space.find(START) is None


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "mapped", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * (2 * PAGE + 1))
    yield fd
    os.close(fd)


def test_what_lies_beyond_the_end_of_a_file_is_not_touched(
    space: AddressSpace, pages: Pages, file: int
) -> None:
    assert space.map(START, 9 * PAGE, RW, lambda at, size: map_file(at, size, file, 0, True)) == 0
    assert sorted(pages.allowed) == [START, START + PAGE, START + 2 * PAGE]
    assert space.read(START + 2 * PAGE, 2) == b"x\0"
    with pytest.raises(MemoryFaultError):
        space.read(START + 3 * PAGE - 1, 2)
    assert not space.fill(START + 3 * PAGE)
    os.truncate(file, 4 * PAGE)
    assert space.read(START + 3 * PAGE - 1, 2) == b"\0\0"
    assert max(pages.allowed) == START + 3 * PAGE
    os.truncate(file, 1)
    space.files_changed()
    assert list(pages.allowed) == [START]
    space.unmap(START, 9 * PAGE)
    assert not pages.allowed
    assert space.vmas() == []


def test_a_file_that_is_open_to_be_read_cannot_be_mapped_to_be_written(
    space: AddressSpace, file: int
) -> None:
    reading = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    shared = lambda at, size: map_file(at, size, reading, 0, True)  # noqa: E731
    private = lambda at, size: map_file(at, size, reading, 0, False)  # noqa: E731
    assert space.map(START, PAGE, RW, shared) == errno.EACCES
    assert space.find(START) is None
    assert space.map(START, PAGE, PROT_READ, shared) == 0
    assert space.protect(START, PAGE, RW) == errno.EACCES
    assert space.map(START, PAGE, RW, private) == 0
    space.write(START, b"mine")
    assert os.pread(file, 4, 0) == b"xxxx"
    os.close(reading)
