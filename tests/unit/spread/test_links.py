"""Which hosts of a spread program get connections with each other."""

import pytest

from ptserver.spread.links import Links, Place, Straight
from ptserver.spread.message_base import SpreadMessage
from ptserver.spread.passing_messages import Link, Linked, Unlink, Unlinked

_NEAR = Place("@near")
_FAR = {1: Place("10.0.0.1:5", "first", near=False), 2: Place("10.0.0.2:6", "second", near=False)}


class _Home:
    """Hosts 1 and 2, at *places*. again: what was asked for again, from whom, for whom."""

    def __init__(self, places: dict[int, Place], straight: Straight = Straight.FAR) -> None:
        self.sent: list[tuple[int, SpreadMessage]] = []
        self.again: list[tuple[int, int]] = []
        self.links = Links(
            lambda *told: self.sent.append(told), lambda *pair: self.again.append(pair), straight
        )
        for host, place in places.items():
            self.links.set_ready(host, place)

    def told(self) -> list[tuple[int, SpreadMessage]]:
        """Return what hosts have been told since the last time."""
        sent, self.sent = self.sent, []
        return sent

    def link(self) -> None:
        """Have both connected."""
        self.links.are_linked(1, 2)
        self.links.take_linked(1, Linked(2))
        self.links.take_linked(2, Linked(1))
        self.told()


def test_two_hosts_are_linked_when_both_say_so_by_a_secret_of_theirs() -> None:
    home = _Home(_FAR)
    assert not home.links.are_linked(1, 2)
    (listens, awaits), (connects, makes) = home.told()
    assert isinstance(awaits, Link)
    assert isinstance(makes, Link)
    assert (listens, awaits.peer, awaits.address) == (2, 1, "")
    assert (connects, makes.peer, makes.address, makes.certificate) == (1, 2, "10.0.0.2:6", "second")
    assert makes.secret == awaits.secret
    home.links.take_linked(1, Linked(2))
    assert not home.links.are_linked(1, 2)
    home.links.take_linked(2, Linked(1))
    assert home.links.are_linked(1, 2)
    assert home.links.are_linked(2, 1)
    assert home.links.up(1) == (2,)
    assert not home.sent


def test_host_0_is_linked_with_nobody() -> None:
    home = _Home(_FAR)
    assert not home.links.are_linked(0, 2)
    assert not home.links.are_linked(1, 0)
    assert not home.sent


def test_the_other_connects_if_one_cannot_and_then_nobody() -> None:
    home = _Home(_FAR)
    home.links.are_linked(1, 2)
    first = home.told()[0][1]
    home.links.take_unlinked(1, Unlinked(2, "no route"))
    assert home.told() == [(2, Unlink(1))]
    home.links.take_unlinked(2, Unlinked(1))
    (listens, awaits), (connects, makes) = home.told()
    assert isinstance(awaits, Link)
    assert isinstance(makes, Link)
    assert isinstance(first, Link)
    assert (listens, connects, makes.address) == (1, 2, "10.0.0.1:5")
    assert makes.secret == awaits.secret != first.secret
    home.links.take_unlinked(2, Unlinked(1, "refused"))
    home.links.take_unlinked(1, Unlinked(2))
    assert home.told() == [(1, Unlink(2))]
    assert home.links.failed() == [(1, 2, "no route")]
    assert not home.links.are_linked(1, 2)
    assert not home.sent


def test_what_was_on_its_way_to_who_says_that_a_connection_is_lost_is_asked_for_again() -> None:
    home = _Home(_FAR)
    home.link()
    home.links.take_unlinked(1, Unlinked(2, "reset"))
    assert not home.links.are_linked(2, 1)
    assert (home.told(), home.again) == ([(2, Unlink(1))], [(2, 1)])
    home.links.take_unlinked(2, Unlinked(1))
    assert (home.told(), home.again) == ([], [(2, 1), (1, 2)])  # and nobody is asked to connect again
    assert home.links.failed() == [(1, 2, "reset")]


def test_a_host_that_is_gone_is_linked_with_nobody() -> None:
    home = _Home(_FAR)
    home.link()
    home.links.remove(2)
    home.links.take_unlinked(1, Unlinked(2, "closed"))
    assert not home.links.are_linked(1, 2)
    assert not home.sent
    assert not home.links.failed()


@pytest.mark.parametrize(
    ("places", "straight", "connecting"),
    [
        ({1: _NEAR, 2: _NEAR}, Straight.ALL, [1]),
        ({1: _NEAR, 2: _NEAR}, Straight.FAR, []),
        ({1: _NEAR, 2: _FAR[2]}, Straight.FAR, [1]),
        ({1: _FAR[1], 2: _NEAR}, Straight.FAR, [2]),  # who is elsewhere does not reach who is on this machine
        (_FAR, Straight.NONE, []),
        ({1: _FAR[1], 2: Place(near=False)}, Straight.FAR, [2]),
    ],
)
def test_who_connects_to_whom(places: dict[int, Place], straight: Straight, connecting: list[int]) -> None:
    home = _Home(places, straight)
    home.links.are_linked(1, 2)
    told = [(host, message.address) for host, message in home.told() if isinstance(message, Link)]
    assert [host for host, address in told if address] == connecting
    assert not home.links.failed()


def test_hosts_that_cannot_reach_each_other_are_told_of() -> None:
    home = _Home({1: Place(near=False), 2: Place()}, Straight.FAR)
    home.links.are_linked(1, 2)
    assert home.links.failed() == [(1, 2, "neither can reach the other")]
