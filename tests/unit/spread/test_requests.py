"""What the home reads of a spread program's memory, and when that is read."""

from ptserver.spread.messages import ReadWords, SpreadMessage, Words
from ptserver.spread.outgoing import Outgoing
from ptserver.spread.pages import PageDirectory
from ptserver.spread.requests import Requests
from stepping.maps import PAGE_BYTES

_PAGE = 5
_AT = _PAGE * PAGE_BYTES


class _Home:
    """Host 2 has a page. peeked: what is read of it without asking, if it can be."""

    def __init__(self, peeked: bytes | None) -> None:
        self.sent: list[tuple[int, SpreadMessage]] = []
        outgoing = Outgoing(lambda *told: self.sent.append(told))
        self.pages = PageDirectory(outgoing, lambda page: True)
        self.pages.place(2, [_PAGE])
        self.requests = Requests(outgoing.say, self.pages, lambda host, address, size: peeked)
        self.flush = outgoing.flush
        self.found: list[bytes] = []

    def read(self, address: int, size: int, told: tuple[int, bytes] = (0, b"")) -> None:
        self.requests.read(address, size, self.found.append, told)


def test_a_host_that_need_not_be_asked_is_not() -> None:
    home = _Home(b"word")
    home.read(_AT, 4)
    assert (home.found, home.sent) == ([b"word"], [])


def test_another_is_asked() -> None:
    home = _Home(None)
    home.read(_AT, 4)
    assert home.sent == [(2, ReadWords(1, _AT, 4))]
    home.requests.take_words(2, Words(1, b"word"))
    assert home.found == [b"word"]


def test_a_page_that_changes_hands_is_read_when_it_has() -> None:
    home = _Home(b"word")
    home.pages.request(1, _PAGE, write=True)
    home.flush()
    home.read(_AT, 4)
    assert not home.found
    home.pages.take_data((_PAGE,), b"\1", bytes(PAGE_BYTES))
    assert home.found == [b"word"]


def test_what_nobody_has_is_zeros_and_two_pages_are_one_answer() -> None:
    home = _Home(b"word")
    home.read(_AT + PAGE_BYTES - 4, 8)
    assert home.found == [b"word" + bytes(4)]


def test_what_the_host_has_said_itself_is_not_asked() -> None:
    home = _Home(None)
    home.read(_AT, 4, (2, b"told"))
    assert (home.found, home.sent) == ([b"told"], [])


def test_what_another_host_has_said_does_not_count() -> None:
    home = _Home(b"word")
    home.read(_AT, 4, (1, b"told"))
    assert home.found == [b"word"]


def test_what_a_host_has_said_counts_until_it_has_given_the_page_away() -> None:
    home = _Home(b"word")
    home.pages.request(1, _PAGE, write=True)
    home.flush()
    home.read(_AT, 4, (2, b"told"))
    home.pages.take_data((_PAGE,), b"\1", bytes(PAGE_BYTES))
    home.read(_AT, 4, (2, b"told"))
    assert home.found == [b"told", b"word"]


def test_what_a_host_has_said_does_not_count_where_pages_go_straight() -> None:
    home = _Home(b"word")
    home.pages.counts["straight"] = 1
    home.read(_AT, 4, (2, b"told"))
    assert home.found == [b"word"]
