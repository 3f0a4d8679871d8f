"""Pages that go straight from one host to another, at either host."""

from collections.abc import Callable

import pytest

from ptserver.errors import ProtocolError
from ptserver.spread.message_base import SpreadMessage
from ptserver.spread.page_messages import Access, PagesData
from ptserver.spread.passing import MOST_EARLY, Passing
from ptserver.spread.passing_messages import Arrived, ExpectPage, PassAgain, PassedPage, Settled
from stepping.maps import PAGE_BYTES

_PAGE, _PEER, _TRANSFER, _DATA = 7, 2, 30, bytes([5]) * PAGE_BYTES
_EXPECTED = ExpectPage(_PAGE, _TRANSFER, _PEER, writable=True)
_PASSED = PassedPage(_PAGE, _TRANSFER, _DATA, dirty=True)


class _Host:
    """told: what the home is told; placed: what has been put into memory; passed: what was sent to whom."""

    def __init__(self) -> None:
        self.told: list[SpreadMessage] = []
        self.placed: list[tuple[int, bytes, Access]] = []
        self.passed: list[tuple[int, PassedPage]] = []
        self.timers: list[Callable[[], None]] = []
        self.is_linked = True
        self.passing = Passing(
            self.told.append,
            lambda *placed: self.placed.append(placed),
            self._pass_on,
            lambda _, then: self.timers.append(then),
        )

    def _pass_on(self, to: int, page: PassedPage) -> bool:
        if self.is_linked:
            self.passed.append((to, page))
        return self.is_linked

    def take(self, message: SpreadMessage) -> None:
        """Take what the home says."""
        self.passing.takers[type(message)](message)


@pytest.fixture
def host() -> _Host:
    return _Host()


@pytest.mark.parametrize("is_early", [False, True])
def test_a_page_is_placed_when_it_is_here_and_announced(host: _Host, is_early: bool) -> None:
    steps = [lambda: host.take(_EXPECTED), lambda: host.passing.take(_PEER, _PASSED)]
    first, second = reversed(steps) if is_early else steps
    first()
    assert not host.placed
    second()
    assert host.placed == [(_PAGE, _DATA, Access.WRITE)]
    assert host.told == [Arrived(_PAGE, _TRANSFER, dirty=True)]


@pytest.mark.parametrize(
    ("peer", "page", "transfer"), [(3, _PAGE, _TRANSFER), (_PEER, 8, _TRANSFER), (_PEER, _PAGE, 29)]
)
@pytest.mark.parametrize("is_early", [False, True])
def test_nothing_is_placed_but_the_transfer_that_the_home_has_announced(
    host: _Host, peer: int, page: int, transfer: int, is_early: bool
) -> None:
    if not is_early:
        host.take(_EXPECTED)
    host.passing.take(peer, PassedPage(page, transfer, _DATA, dirty=True))
    if is_early:
        host.take(_EXPECTED)
    assert not host.placed
    assert not host.told


def test_a_peer_can_have_only_so_much_wait(host: _Host) -> None:
    for transfer in range(MOST_EARLY):
        host.passing.take(_PEER, PassedPage(_PAGE, transfer, _DATA, dirty=True))
    with pytest.raises(ProtocolError, match="nobody has announced"):
        host.passing.take(_PEER, PassedPage(_PAGE, MOST_EARLY, _DATA, dirty=True))


def test_a_page_that_was_not_written_where_it_comes_from_is_marked_clean(host: _Host) -> None:
    host.take(ExpectPage(_PAGE, _TRANSFER, _PEER, writable=True, clean_if_unwritten=True))
    host.passing.take(_PEER, PassedPage(_PAGE, _TRANSFER, _DATA, dirty=False))
    assert host.placed == [(_PAGE, _DATA, Access.CLEAN)]


def test_what_came_early_over_a_connection_that_is_lost_is_not_used(host: _Host) -> None:
    host.passing.take(_PEER, _PASSED)
    host.passing.forget(_PEER)
    host.take(_EXPECTED)
    assert not host.placed


def test_what_is_given_away_is_kept_until_it_is_settled(host: _Host) -> None:
    for transfer in (1, 2):
        host.passing.give(_PEER, transfer, PagesData((_PAGE,), b"\1", _DATA))
    assert [(to, page.transfer) for to, page in host.passed] == [(_PEER, 1), (_PEER, 2)]
    assert not host.told
    host.take(Settled((1,)))
    for transfer in (1, 2, 2):
        host.take(PassAgain(transfer))
    assert host.told == [PagesData((_PAGE,), b"\1", _DATA)]


def test_what_cannot_go_straight_goes_through_the_home_once(host: _Host) -> None:
    host.is_linked = False
    host.passing.give(_PEER, 1, PagesData((_PAGE,), b"\0", _DATA))
    host.take(PassAgain(1))
    assert host.told == [PagesData((_PAGE,), b"\0", _DATA)]


def test_who_needs_pages_waits_for_those_that_are_expected(host: _Host) -> None:
    gone_on: list[str] = []
    host.take(_EXPECTED)
    host.passing.when_here([8], lambda: gone_on.append("needs nothing"))
    host.passing.when_here([_PAGE, 8], lambda: gone_on.append("needs it"))
    assert gone_on == ["needs nothing"]
    host.passing.take(_PEER, _PASSED)
    assert gone_on == ["needs nothing", "needs it"]
    host.timers.pop()()
    assert len(gone_on) == 2


@pytest.mark.parametrize("comes", [True, False])
def test_who_needs_a_page_goes_on_when_it_comes_through_the_home_or_late(host: _Host, comes: bool) -> None:
    gone_on: list[str] = []
    host.take(_EXPECTED)
    host.passing.when_here([_PAGE], lambda: gone_on.append("late"))
    if comes:
        host.passing.came_otherwise([_PAGE])
    else:
        host.timers.pop()()
    assert gone_on == ["late"]
