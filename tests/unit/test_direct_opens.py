"""Files that a program opens, closes and looks at itself: what the routine does, on an emulated processor."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unicorn.x86_const import UC_X86_REG_RAX

from stepping.direct_opens import (
    MAX_PATH_BYTES,
    MAX_SLOTS,
    STAT_BYTES,
    DirectOpens,
    Slot,
    hash_of,
    place_of,
)
from tests.unit.test_direct_calls import DATA, OTHER, PASS, Memory, Program

HEAP, HEAP_BYTES = 0x9000000, 0x10000
PATH_AT, STAT_AT = HEAP + 0x100, HEAP + 0x1000
POINTERS = range(HEAP, HEAP + HEAP_BYTES)
READ, CLOSE, FSTAT, LSEEK, OPENAT, NEWFSTATAT = 0, 3, 5, 8, 257, 262
HERE = (1 << 64) - 100
FLAGS = 0x80000
NO_FOLLOW = 0x100
FILE, SAME_PLACE = b"/srv/file", b"/srv/fjF"
FILE_STAT, OTHER_STAT = bytes(range(STAT_BYTES)), bytes(STAT_BYTES)


class Opening(Program):
    """A program that opens files itself. `ask` returns what a call returns, None if it was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.machine.mem_map(HEAP, HEAP_BYTES)
        memory = Memory(self.machine)
        self.opens = DirectOpens(memory, DATA, self.table)  # type: ignore[arg-type]

    def ask(self, number: int, *arguments: int) -> int | None:
        self.call(number, *arguments)
        given = (*arguments, *(11, 22, 33, 44, OTHER)[len(arguments) - 1 :])
        for made in self.calls:
            if made[0] == number and made[6] == OTHER:
                assert made[1:] == given, "a call that is taken has its registers"
                return None
        return int(self.machine.reg_read(UC_X86_REG_RAX))

    def call(self, number: int, fd: int, *more: int) -> tuple[int, ...]:
        self.calls: list[tuple[int, ...]] = []
        last = super().call(number, fd, *more)
        if len(last) > 1:
            self.calls.append(last)
        return last

    def open(self, path: bytes, flags: int = FLAGS, folder: int = HERE, at: int = PATH_AT) -> int | None:
        self.machine.mem_write(at, path + b"\0")
        return self.ask(OPENAT, folder, at, flags)

    def look(self, path: bytes, flags: int = 0, at: int = STAT_AT) -> bytes | None:
        self.machine.mem_write(PATH_AT, path + b"\0")
        return self._told(self.ask(NEWFSTATAT, HERE, PATH_AT, at, flags), at)

    def look_at(self, fd: int, at: int = STAT_AT) -> bytes | None:
        return self._told(self.ask(FSTAT, fd, at), at)

    def _told(self, value: int | None, at: int) -> bytes | None:
        assert not value
        return None if value is None else bytes(self.machine.mem_read(at, STAT_BYTES))

    def reads(self, fd: int) -> bool:
        return self.call(READ, fd)[6] == PASS


@pytest.fixture
def program() -> Opening:
    program = Opening()
    program.opens.know(FILE, FLAGS, FILE_STAT)
    return program


def slots(*numbers: int, opened: tuple[int, ...] = (), path: bytes = FILE) -> list[Slot]:
    return [Slot(number, place_of(path), number in opened) for number in numbers]


def test_the_lowest_free_number_is_given_and_free_again_when_it_is_closed(program: Opening) -> None:
    program.opens.begin(slots(5, 9, 40), POINTERS)
    assert [program.open(FILE) for _ in range(4)] == [5, 9, 40, None]
    assert [program.ask(CLOSE, fd) for fd in (9, 5)] == [0, 0]
    assert not program.reads(9)
    assert [program.open(FILE) for _ in range(3)] == [5, 9, None]
    assert program.ask(CLOSE, 40) == 0
    assert program.opens.end() == [True, True, False]


def test_a_file_is_opened_at_its_beginning_and_read_and_looked_at(program: Opening) -> None:
    program.opens.begin(slots(7), POINTERS)
    assert program.look_at(7) is None
    assert program.open(FILE) == 7
    assert program.calls == [(LSEEK, 7, 0, 0, 33, 44, PASS)]
    assert program.reads(7)
    assert program.look_at(7) == FILE_STAT
    assert program.ask(CLOSE, 7) == 0
    assert program.ask(CLOSE, 7) is None, "it is closed already"
    assert not program.reads(7)
    assert program.call(LSEEK, 7)[6] == OTHER


def test_what_is_known_by_path_is_told(program: Opening) -> None:
    program.opens.begin(slots(5), POINTERS)
    assert program.look(FILE) == FILE_STAT
    assert program.look(FILE, NO_FOLLOW) == FILE_STAT
    assert program.look(FILE, 0x1000) is None
    for path in (b"", FILE + b"x", FILE[:-1], b"/srv/filf", b"x" * 5000, SAME_PLACE):
        assert program.look(path) is None
        assert program.open(path) is None


def test_one_file_takes_the_place_of_another(program: Opening) -> None:
    other = next(path for path in map(b"/other/%d".__mod__, range(1000)) if place_of(path) == place_of(FILE))
    program.opens.know(other, FLAGS, OTHER_STAT)
    program.opens.begin(slots(5), POINTERS)
    assert program.look(FILE) is None
    assert program.look(other) == OTHER_STAT
    program.opens.end()
    program.opens.forget(place_of(other))
    program.opens.begin(slots(5), POINTERS)
    assert program.look(other) is None


def test_the_longest_path_that_is_known(program: Opening) -> None:
    longest = b"/" + b"d" * (MAX_PATH_BYTES - 1)
    program.opens.know(longest, FLAGS, OTHER_STAT)
    program.opens.begin(slots(5, path=longest), POINTERS)
    assert program.look(longest) == OTHER_STAT
    assert program.open(longest) == 5
    assert program.look(longest + b"d") is None


@pytest.mark.parametrize("flags", [0, FLAGS | 1, FLAGS | 1 << 11])
def test_other_flags_are_taken(program: Opening, flags: int) -> None:
    program.opens.begin(slots(5), POINTERS)
    assert program.open(FILE, flags) is None


def test_a_path_from_a_folder_is_taken(program: Opening) -> None:
    program.opens.begin(slots(5), POINTERS)
    assert program.open(FILE, folder=3) is None


def test_a_number_where_something_else_lies_is_taken(program: Opening) -> None:
    program.opens.begin([Slot(5, None, False), *slots(6)], POINTERS)
    assert program.open(FILE) is None, "6 is not the lowest"
    program.opens.end()
    program.opens.begin(slots(5, path=SAME_PLACE), POINTERS)
    assert (program.open(FILE) is None) == (place_of(SAME_PLACE) != place_of(FILE))


@pytest.mark.parametrize("at", [0, 8, HEAP - 1, HEAP + HEAP_BYTES, 1 << 63, (1 << 64) - 8])
def test_a_pointer_that_leads_elsewhere_is_taken(program: Opening, at: int) -> None:
    program.opens.begin(slots(5, opened=(5,)), POINTERS)
    assert program.ask(OPENAT, HERE, at, FLAGS) is None
    assert program.ask(NEWFSTATAT, HERE, at, STAT_AT, 0) is None
    assert program.look(FILE, at=at) is None
    assert program.look_at(5, at=at) is None


def test_without_memory_that_is_known_all_is_taken(program: Opening) -> None:
    for pointers in (range(0), range(HEAP, HEAP + 100)):
        program.opens.begin(slots(5), pointers)
        assert program.open(FILE, at=HEAP) is None
        program.opens.end()


def test_what_is_ended_is_taken(program: Opening) -> None:
    program.opens.begin(slots(5, 6), POINTERS)
    assert program.open(FILE) == 5
    assert program.opens.end() == [True, False]
    assert program.reads(5), "that does not change who has it"
    assert program.open(FILE) is None
    assert program.look(FILE) is None
    assert program.look_at(5) is None
    assert program.ask(CLOSE, 5) is None
    assert program.opens.end() == [True, False]


def test_who_has_no_slot_any_more_keeps_what_it_is(program: Opening) -> None:
    program.opens.begin(slots(4, 5, 6, opened=(4,)), POINTERS)
    program.opens.end()
    program.table.set(6)
    program.opens.begin(slots(5), POINTERS)
    assert program.reads(4)
    assert program.reads(6)
    assert not program.reads(5)
    for fd in (4, 6):
        assert program.ask(CLOSE, fd) is None


def test_as_many_slots_as_there_may_be(program: Opening) -> None:
    numbers = range(100, 100 + MAX_SLOTS)
    program.opens.begin(slots(*numbers), POINTERS)
    assert [program.open(FILE) for _ in numbers] == list(numbers)
    assert program.open(FILE) is None
    assert program.ask(CLOSE, numbers[-1]) == 0
    assert program.open(FILE) == numbers[-1]


def test_hashes() -> None:
    assert hash_of(b"") == 0
    assert hash_of(b"ab") == 97 * 31 + 98
    assert struct.pack("<I", hash_of(b"z" * 300))


ACTIONS = st.lists(st.one_of(st.just("open"), st.integers(0, 11), st.just("again")), max_size=40)


@given(st.sets(st.integers(0, 11), max_size=8), ACTIONS)
def test_it_gives_what_the_kernel_would(used: set[int], actions: list[str | int]) -> None:
    """Numbers to 11 lie ready; *used* are in use by something else. The program opens, closes, and is stopped."""
    program = PROGRAM
    for fd in range(12):
        program.table.clear(fd)
    ours: set[int] = set()

    def begin() -> None:
        ready = sorted(set(range(12)) - used)
        program.opens.begin(slots(*ready, opened=tuple(ours)), POINTERS)

    begin()
    for action in actions:
        free = sorted(set(range(12)) - used - ours)
        if action == "again":
            ready = sorted(set(range(12)) - used)
            assert program.opens.end() == [fd in ours for fd in ready]
            begin()
        elif action == "open":
            assert program.open(FILE) == (free[0] if free else None)
            ours |= set(free[:1])
        else:
            assert isinstance(action, int)
            assert program.ask(CLOSE, action) == (0 if action in ours else None)
            ours.discard(action)
        assert [program.reads(fd) for fd in range(12)] == [fd in ours for fd in range(12)]
    program.opens.end()


PROGRAM = Opening()
PROGRAM.opens.know(FILE, FLAGS, FILE_STAT)
