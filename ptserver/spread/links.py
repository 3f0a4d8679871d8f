"""Which hosts have connections with each other, over which pages go straight. Pure: messages in, messages out.

A pair of hosts gets a connection when the first page is to go from one to the other; until it is there, and if
there cannot be one, pages go through the home. One of the two connects to where the other listens, by a secret that
the home makes for this one connection and tells only them; if that fails, the other is asked to, if it can.

    each end    asked -> linked -> unlinked, or asked -> unlinked
    the pair    is up while both ends are linked

Each end says `Unlinked` once for each time that it was asked, and takes nothing more of the connection afterwards.
The home uses a connection no more from the first `Unlinked` on, and tells the other end. What was on its way to the
end that says so, and has not arrived, is asked for again from its source, and comes through the home then. A
connection that is lost is not made again.

Host 0 has none, nor has any other in the home's process: what goes there or comes from there has no other way. Two
hosts on the home's machine have none by default (`Straight`): there a page that the home passes on is as soon there,
and for less of everybody's processor time.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ptserver.spread.message_base import SpreadMessage
from ptserver.spread.passing_messages import SECRET_BYTES, Link, Linked, Unlink, Unlinked


class Straight(Enum):
    """Between which hosts pages go straight: where at least one is on another machine, between all, or never."""

    FAR = "far"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True)
class Place:
    """How others reach a host. address: where it listens, as `ptserver.spread.peer_link` writes it, or empty.

    certificate: what it shows there, in PEM, or empty without TLS. near: whether it is on the home's machine, where
    nobody but who is there as well reaches it.
    """

    address: str = ""
    certificate: str = ""
    near: bool = True


class _End(Enum):
    ASKED = "asked"
    LINKED = "linked"
    UNLINKED = "unlinked"


@dataclass(slots=True)
class _Pair:
    """ends: by host. ways: further (who connects, to whom). reasons: why there is no connection, the first if known.

    wanted: whether they are to have one at all.
    """

    ends: dict[int, _End]
    ways: list[tuple[int, int]]
    wanted: bool
    was_up: bool = False
    reasons: list[str] = field(default_factory=list)


class Links:
    """All pairs. *pass_again(source, host)* has what is on its way between them come through the home."""

    def __init__(
        self,
        send: Callable[[int, SpreadMessage], None],
        pass_again: Callable[[int, int], None],
        straight: Straight = Straight.FAR,
    ) -> None:
        self._send = send
        self._pass_again = pass_again
        self._straight = straight
        self._places: dict[int, Place] = {}
        self._pairs: dict[tuple[int, int], _Pair] = {}
        self._up: set[tuple[int, int]] = set()

    def are_linked(self, source: int, host: int) -> bool:
        """Whether pages go straight from *source* to *host*; if it has not been tried, they soon may."""
        if (source, host) in self._up:
            return True
        if source and host and _key(source, host) not in self._pairs:
            self._begin(source, host)
        return False

    def set_ready(self, host: int, place: Place) -> None:
        """Have a host take part."""
        self._places[host] = place

    def remove(self, host: int) -> None:
        """Forget a host that is gone; the ends of the others end by themselves."""
        self._places.pop(host, None)
        for key in [key for key in self._pairs if host in key]:
            del self._pairs[key]
            self._up -= {key, key[::-1]}

    def take_linked(self, host: int, message: Linked) -> None:
        """Take the word of a host that it has a connection."""
        pair = self._pairs.get(_key(host, message.peer))
        if pair is None or pair.ends[host] is not _End.ASKED:  # it was given up meanwhile
            return
        pair.ends[host] = _End.LINKED
        if pair.ends[message.peer] is _End.LINKED:
            pair.was_up = True
            self._up |= {(host, message.peer), (message.peer, host)}

    def take_unlinked(self, host: int, message: Unlinked) -> None:
        """Take the word of a host that it has a connection no more, or has had none."""
        peer = message.peer
        pair = self._pairs.get(_key(host, peer))
        if pair is None:  # the other is gone
            return
        pair.ends[host] = _End.UNLINKED
        if message.reason and not pair.reasons:
            pair.reasons.append(message.reason)
        self._up -= {(host, peer), (peer, host)}
        if pair.ends[peer] is not _End.UNLINKED:
            self._send(peer, Unlink(host))
        self._pass_again(peer, host)
        if pair.ends[peer] is _End.UNLINKED and not pair.was_up and pair.ways:
            self._ask(pair, *pair.ways.pop(0))

    def up(self, host: int) -> tuple[int, ...]:
        """Return the hosts with which a host has a connection."""
        return tuple(sorted(other for one, other in self._up if one == host))

    def failed(self) -> list[tuple[int, int, str]]:
        """Return the pairs that have none and will have none, each with the reason."""
        return [
            (*key, pair.reasons[0] if pair.reasons else "neither can reach the other")
            for key, pair in self._pairs.items()
            if pair.wanted and _End.ASKED not in pair.ends.values() and key not in self._up
        ]

    def _begin(self, one: int, other: int) -> None:
        if one not in self._places or other not in self._places:  # it is not ready yet
            return
        are_near = self._places[one].near and self._places[other].near
        wanted = self._straight is Straight.ALL or (self._straight is Straight.FAR and not are_near)
        ways = [way for way in ((one, other), (other, one)) if wanted and self._may_reach(*way)]
        pair = _Pair(dict.fromkeys((one, other), _End.UNLINKED), ways, wanted)
        self._pairs[_key(one, other)] = pair
        if ways:
            self._ask(pair, *ways.pop(0))

    def _may_reach(self, connects: int, listens: int) -> bool:
        """Whether one host may reach the other: what listens on the home's machine, only who is there."""
        place = self._places[listens]
        return bool(place.address) and (self._places[connects].near or not place.near)

    def _ask(self, pair: _Pair, connects: int, listens: int) -> None:
        secret = secrets.token_bytes(SECRET_BYTES)
        place = self._places[listens]
        pair.ends = dict.fromkeys(pair.ends, _End.ASKED)
        self._send(listens, Link(connects, secret))
        self._send(connects, Link(listens, secret, place.address, place.certificate))


def _key(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)
