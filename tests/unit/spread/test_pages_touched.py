"""How many untouched pages of a spread program a host gets at once."""

from ptserver.spread.messages import SpreadMessage, ZeroPages
from ptserver.spread.outgoing import Outgoing
from ptserver.spread.pages import FIRST_TOUCH_PAGES, NEXT_TOUCH_PAGES, PageDirectory

_FIRST = 5 * NEXT_TOUCH_PAGES


def _touch(*touches: tuple[int, int]) -> list[SpreadMessage]:
    sent: list[SpreadMessage] = []
    directory = PageDirectory(
        Outgoing(lambda _, message: sent.append(message)), lambda page: page < 2 * _FIRST
    )
    for host, page in touches:
        directory.request(host, page, write=True)
    return sent


def test_the_first_touch_gives_some_pages_and_the_next_near_it_the_rest() -> None:
    assert _touch((1, _FIRST + 3), (1, _FIRST + 50)) == [
        ZeroPages(_FIRST, FIRST_TOUCH_PAGES),
        ZeroPages(_FIRST + FIRST_TOUCH_PAGES, NEXT_TOUCH_PAGES - FIRST_TOUCH_PAGES),
    ]


def test_who_goes_on_where_it_touched_what_lies_before_gets_many_at_once() -> None:
    assert _touch((1, _FIRST + 3), (1, _FIRST + NEXT_TOUCH_PAGES))[1:] == [
        ZeroPages(_FIRST + NEXT_TOUCH_PAGES, NEXT_TOUCH_PAGES)
    ]


def test_where_another_host_was_first_few_pages_are_given() -> None:
    assert _touch((1, _FIRST), (2, _FIRST + 50), (2, _FIRST + 70))[1:] == [
        ZeroPages(_FIRST + 48, FIRST_TOUCH_PAGES),
        ZeroPages(_FIRST + 64, FIRST_TOUCH_PAGES),
    ]


def test_no_page_is_given_that_may_not_be_touched() -> None:
    assert _touch((1, 2 * _FIRST - 1), (1, 2 * _FIRST - 17))[1] == ZeroPages(
        2 * _FIRST - NEXT_TOUCH_PAGES, NEXT_TOUCH_PAGES - FIRST_TOUCH_PAGES
    )
