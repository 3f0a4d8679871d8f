"""Files that a program opens and closes itself: what the host knows of that afterwards, and when it lets it."""

import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from ptserver.hosts import own_opens
from ptserver.hosts.known_file import KnownFile
from ptserver.hosts.known_numbers import KnownNumbers
from ptserver.hosts.own_opens import OwnOpens
from ptserver.messages import Ahead
from stepping.direct_opens import MAX_SLOTS, STAT_BYTES, Slot, place_of
from stepping.maps import Maps, Vma
from tests.unit.test_local_files import Program

PATH, OTHER = b"/srv/file", b"/srv/other"
HOW = 0x80000
NUMBER, OTHER_NUMBER = 7, 8
HEAP = 0xC000000000


def ahead(number: int = NUMBER, data: bytes = b"content") -> Ahead:
    stat = bytes(48) + len(data).to_bytes(8, "little") + bytes(STAT_BYTES - 56)
    return Ahead(1, HOW, stat, data=data, end=True, lasting=number)


class Opens:
    """The routine, as the host sees it."""

    def __init__(self) -> None:
        self.known: dict[int, bytes] = {}
        self.slots: list[Slot] = []
        self.is_open: list[bool] = []
        self.pointers = range(0)
        self.lets = False

    def know(self, path: bytes, flags: int, stat: bytes) -> None:
        assert not self.lets
        self.known[place_of(path)] = path

    def forget(self, place: int) -> None:
        assert not self.lets
        del self.known[place]

    def begin(self, slots: Sequence[Slot], pointers: range) -> None:
        self.slots, self.pointers, self.lets = list(slots), pointers, True
        self.is_open = [slot.is_open for slot in slots]

    def end(self) -> list[bool]:
        self.lets = False
        return self.is_open

    def change(self, fd: int, *, is_open: bool) -> None:
        """Have the program open or close a number."""
        assert self.lets
        (index,) = [index for index, slot in enumerate(self.slots) if slot.number == fd]
        assert self.is_open[index] != is_open
        self.is_open[index] = is_open


class Host:
    """What the host knows: descriptors to 9 are in use, but 5, 7 and 8 are free, where the file lies at *lie*."""

    def __init__(self, *lie: int) -> None:
        self.program = Program()
        self.local = self.program.files
        self.numbers = KnownNumbers(())
        self.files: dict[int, KnownFile] = {}
        self.unmade: dict[int, int] = {}
        self.opens = Opens()
        self.heard = time.monotonic()
        self.later: list[Callable[[], None]] = []
        self.own = OwnOpens(
            1,
            self.opens,  # type: ignore[arg-type]
            self.local,
            self.numbers,
            self.files,
            self.unmade,
            lambda: self.heard,
            lambda seconds, call: self.later.append(call),
        )
        self.numbers.asked(1, "openat")
        self.numbers.heard(1, "openat", 0, 9)
        self.ahead = ahead()
        for fd in lie:
            self.local.open(1, fd, KnownFile(self.ahead))
            self.local.closed(fd)
        for fd in (5, 7, 8):
            self.numbers.closed(fd)

    def open(self, fd: int) -> None:
        """Open the file by a call that is taken."""
        self.numbers.opened(fd)
        self.unmade[fd] = NUMBER
        self.files[fd] = file = KnownFile(self.ahead)
        self.local.open(1, fd, file)

    def slots(self) -> list[Slot]:
        self.own.learn(PATH, HOW, self.ahead, HEAP + 10)
        self.own.let()
        return self.opens.slots if self.opens.lets else []


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    vmas = [
        Vma(HEAP, HEAP + 0x800, "rw-p", 0, "00:00", 0, "[anon: Go: heap]"),
        Vma(HEAP + 0x800, HEAP + 0x1000, "rw-p", 0, "00:00", 0, ""),
        Vma(HEAP + 0x2000, HEAP + 0x3000, "r--p", 0, "00:00", 0, ""),
    ]
    monkeypatch.setattr(own_opens, "read_maps", lambda pid: Maps(vmas))


@pytest.fixture
def make() -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(*lie: int) -> Host:
        made.append(Host(*lie))
        return made[-1]

    yield make
    for host in made:
        host.program.files.close()
        for number in list(host.program.descriptors):
            host.program.close_own(number)


def of(fd: int, *, is_open: bool = False, path: bytes | None = PATH) -> Slot:
    return Slot(fd, None if path is None else place_of(path), is_open)


def test_free_numbers_are_slots_up_to_the_first_where_nothing_lies(make: Callable[..., Host]) -> None:
    assert make(5, 7, 8).slots() == [of(5), of(7), of(8)]
    assert make(5, 8).slots() == [of(5)]
    assert make(7, 8).slots() == []


def test_what_is_open_is_a_slot_below_that(make: Callable[..., Host]) -> None:
    host = make(5)
    host.open(5)
    assert host.slots() == [of(5, is_open=True)]
    host = make(5, 7, 8)
    host.open(5)
    host.open(8)
    assert host.slots() == [of(5, is_open=True), of(7), of(8, is_open=True)]
    host = make(7, 8)
    host.open(7)
    assert host.slots() == [], "5 is the next"


def test_what_lies_there_and_is_not_known_is_said(make: Callable[..., Host]) -> None:
    host = make(5, 8)
    host.local.open(1, 7, KnownFile(ahead(OTHER_NUMBER)))
    host.local.closed(7)
    assert host.slots() == [of(5), of(7, path=None), of(8)]


def test_no_more_than_there_may_be(make: Callable[..., Host]) -> None:
    host = make()
    host.numbers.asked(2, "openat")
    host.numbers.heard(2, "openat", 0, 99)
    for fd in range(20, 20 + MAX_SLOTS + 5):
        host.local.open(1, fd, KnownFile(host.ahead))
        host.local.closed(fd)
        host.numbers.closed(fd)
    assert host.slots() == [of(fd) for fd in range(20, 20 + MAX_SLOTS)]


def test_what_the_program_opens_is_known(make: Callable[..., Host]) -> None:
    host = make(5, 7, 8)
    host.slots()
    host.opens.change(5, is_open=True)
    host.own.hear()
    assert (host.unmade, host.numbers.next) == ({5: NUMBER}, 7)
    assert host.files[5].look(0, 100) == b"content"
    assert list(host.local.lend()) == [5]
    host.own.hear()
    host.slots()
    host.opens.change(5, is_open=False)
    host.own.hear()
    assert (host.unmade, host.files, host.numbers.next) == ({}, {}, 5)
    assert not host.local.lend()


def test_what_it_closes_is_known_and_what_it_opens_again_is_as_new(make: Callable[..., Host]) -> None:
    host = make(5, 7, 8)
    host.open(5)
    host.slots()
    before = host.files[5]
    assert not host.local.lend()
    host.opens.change(5, is_open=False)
    host.opens.change(5, is_open=True)
    host.own.hear()
    assert host.files[5] is not before
    assert (host.unmade, list(host.local.lend())) == ({5: NUMBER}, [5])


def test_flags_that_were_changed_stay(make: Callable[..., Host]) -> None:
    host = make(5, 7, 8)
    host.open(5)
    assert host.files[5].control(4, HOW | 0o4000) == 0
    assert host.slots() == [of(7), of(8)]
    host.own.hear()
    assert host.files[5].flags == HOW | 0o4000


def test_nothing_is_let_while_a_number_is_unknown(make: Callable[..., Host]) -> None:
    host = make(5, 7, 8)
    host.open(5)
    host.numbers.asked(2, "accept4")
    assert host.slots() == []
    host.numbers.heard(2, "accept4", 3, 7)
    host.opens.lets = False
    host.own.hear()
    assert host.slots() == [of(5, is_open=True), of(8)]
    host.own.hear()
    host.numbers.forget()
    assert host.slots() == []


def test_nothing_is_let_while_there_are_other_processes(make: Callable[..., Host]) -> None:
    host = make(5)
    host.local.may = lambda: False
    assert not host.slots()
    host.local.may = lambda: True
    assert host.slots()


def test_pointers_lead_to_memory_as_the_heap_is(make: Callable[..., Host]) -> None:
    host = make(5)
    for pointer in (HEAP + 0x2000, HEAP + 0x1000, 0):
        host.own.learn(PATH, HOW, host.ahead, pointer)
        host.own.let()
        assert not host.opens.lets
        host.own._looked = 0.0
    assert host.slots()
    assert host.opens.pointers == range(HEAP, HEAP + 0x1000)
    host.own.unmapped()
    host.own.let()
    assert not host.opens.lets


def test_files_that_are_not_known_any_more_are_forgotten(make: Callable[..., Host]) -> None:
    host = make(5, 7, 8)
    host.slots()
    assert host.opens.known == {place_of(PATH): PATH}
    host.own.forget(OTHER_NUMBER)
    assert host.opens.lets
    host.own.forget(NUMBER)
    assert (host.opens.known, host.opens.lets) == ({}, False)
    host.own.let()
    assert not host.opens.lets
    host.slots()
    host.own.forget_all()
    assert (host.opens.known, host.opens.lets) == ({}, False)


def test_one_file_by_two_paths_is_forgotten_by_both(make: Callable[..., Host]) -> None:
    host = make(5)
    host.own.learn(OTHER, HOW, host.ahead, HEAP)
    host.slots()
    assert len(host.opens.known) == 2
    host.own.forget(NUMBER)
    assert host.opens.known == {}


def test_a_file_that_lasts_no_more_or_has_a_long_path_is_not_known(make: Callable[..., Host]) -> None:
    host = make(5)
    host.own.learn(b"/" * 400, HOW, host.ahead, HEAP)
    host.own.learn(PATH, HOW, ahead(0), HEAP)
    host.own.learn(b"", HOW, host.ahead, HEAP)
    assert host.opens.known == {}


def test_it_ends_before_what_is_known_is_too_old(
    make: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make(5)
    assert host.slots()
    now = host.heard
    monkeypatch.setattr(time, "monotonic", lambda: now + 0.3)
    host.later.pop()()
    assert host.opens.lets
    monkeypatch.setattr(time, "monotonic", lambda: now + 0.55)
    host.later.pop()()
    assert not host.opens.lets
    assert not host.later
    assert host.slots() == []
    host.heard = now + 0.5
    assert host.slots()
