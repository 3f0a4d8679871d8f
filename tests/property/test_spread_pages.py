"""The page directory of a spread program, driven by simulated hosts whose messages arrive in any order across
hosts.
"""

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from ptserver.spread.links import Links, Place, Straight
from ptserver.spread.messages import AllowWrite, DropPage, Dropped, Fault, SpreadMessage, TryAgain, ZeroPages
from ptserver.spread.outgoing import Outgoing
from ptserver.spread.page_messages import Access, PagesData, PutPages, SendPages
from ptserver.spread.pages import PageDirectory
from ptserver.spread.passing import Passing
from ptserver.spread.passing_messages import (
    Arrived,
    ExpectPage,
    Link,
    Linked,
    PassAgain,
    PassedPage,
    PassPage,
    Settled,
    Unlink,
    Unlinked,
)
from stepping.maps import PAGE_BYTES

_HOSTS = 4
_PAGES = 4


class _Said(NamedTuple):
    """Of a host: that it has a page, which other hosts have written so often so far."""

    page: int
    others: int


class _Host:
    """Keeps pages as a host does; `holds` maps a page to [number written to it, whether it may be written, clean].

    asked: the peers with which the home wants it to have a connection; peers: those with which it has one. wires:
    what is on its way, by both ends.
    """

    def __init__(self, number: int, wires: dict[tuple[int, int], deque[PassedPage]]) -> None:
        self.number = number
        self.wires = wires
        self.holds: dict[int, list] = {}
        self.inbox: deque[SpreadMessage] = deque()
        self.outbox: deque[SpreadMessage | _Said] = deque()
        self.asked: set[int] = set()
        self.peers: set[int] = set()
        self.passing = Passing(self.outbox.append, self._place, self._pass_on, lambda *_: None)

    def _place(self, page: int, data: bytes, access: Access) -> None:
        assert page not in self.holds
        self.holds[page] = [int.from_bytes(data, "little"), access != Access.READ, access == Access.CLEAN]

    def _pass_on(self, to: int, page: PassedPage) -> bool:
        if to in self.peers:
            self.wires[self.number, to].append(page)
        return to in self.peers

    def unlink(self, peer: int) -> None:
        """Be at the end of a connection, or of the wish for one."""
        if peer in self.asked:
            self.asked.discard(peer)
            self.peers.discard(peer)
            self.wires[peer, self.number].clear()
            self.passing.forget(peer)
            self.outbox.append(Unlinked(peer))

    def _give(self, page: int, *, keep: bool) -> PagesData:
        value, writable, clean = self.holds[page]
        if keep:
            self.holds[page] = [value, False, False]
        else:
            del self.holds[page]
        return PagesData((page,), bytes((writable and not clean,)), value.to_bytes(PAGE_BYTES, "little"))

    def take_one(self) -> None:
        message = self.inbox.popleft()
        match message:
            case SendPages(pages=pages, keep=keep):
                given = [self._give(page, keep=bool(kept)) for page, kept in zip(pages, keep, strict=True)]
                dirty, contents = (each.dirty for each in given), (each.data for each in given)
                self.outbox.append(PagesData(pages, b"".join(dirty), b"".join(contents)))
            case PassPage(page=page, keep=keep, to=to, transfer=transfer):
                self.passing.give(to, transfer, self._give(page, keep=keep))
            case PutPages(pages=pages, access=access, data=data):
                for place, (page, may) in enumerate(zip(pages, access, strict=True)):
                    self._place(page, data[place * PAGE_BYTES : (place + 1) * PAGE_BYTES], Access(may))
                self.passing.came_otherwise(pages)
            case ExpectPage() | PassAgain() | Settled():
                self.passing.takers[type(message)](message)
            case Link(peer=peer):
                self.asked.add(peer)
            case Unlink(peer=peer):
                self.unlink(peer)
            case ZeroPages(page=page, count=count):
                for number in range(page, page + count):
                    assert number not in self.holds
                    self.holds[number] = [0, True, False]
            case AllowWrite(page=page):
                self.holds[page][1] = True
            case DropPage(page=page):
                assert not self.holds[page][1]
                del self.holds[page]
                self.outbox.append(Dropped(page))
            case TryAgain():
                pass
            case _:
                raise AssertionError(message)

    def touch(self, page: int, *, write: bool) -> bool:
        """Read or add one to a page; if it is not possible, report a fault and return False."""
        held = self.holds.get(page)
        if held is None or (write and not held[1]):
            self.outbox.append(Fault(page, write, page * 4096))
            return False
        if write:
            held[0] += 1
            held[2] = False
        return True


class _Program:
    def __init__(self) -> None:
        self.wires = {pair: deque[PassedPage]() for pair in permutations(range(_HOSTS), 2)}
        self.hosts = [_Host(number, self.wires) for number in range(_HOSTS)]

        def send(host: int, message: SpreadMessage) -> None:
            self.hosts[host].inbox.append(message)

        self.outgoing = Outgoing(send)
        self.links = Links(
            self.outgoing.say, lambda source, host: self.directory.pass_again(source, host), Straight.ALL
        )
        self.steps = 0  # which are its time, in tenths of a millisecond
        self.directory = PageDirectory(
            self.outgoing, lambda page: page < _PAGES, self.links.are_linked, lambda: self.steps * 1e-4
        )
        for number in range(1, _HOSTS):
            self.links.set_ready(number, Place(f"@{number}"))
        self.written = [0] * _PAGES
        self.writes: Counter[tuple[int, int]] = Counter()  # by host and page
        self.believed = 0  # how often what a host has said was taken for what holds

    def touch(self, host: int, page: int, *, write: bool) -> bool:
        """Have a host read or write a page, and say that it has it if that is possible; return whether it is."""
        touched = self.hosts[host].touch(page, write=write)
        if touched:
            self.written[page] += write
            self.writes[host, page] += write
            self.hosts[host].outbox.append(_Said(page, self._writes_of_others(host, page)))
        return touched

    def _writes_of_others(self, host: int, page: int) -> int:
        return self.written[page] - self.writes[host, page]

    def step(self, choice: int) -> None:
        """Let one message arrive, which of those that could is for *choice* to say."""
        channels = self._channels()
        self.steps += 1
        if channels:
            channels[choice % len(channels)]()
            self.check()

    def _channels(self) -> list[Callable[[], None]]:
        """Return what could happen next."""
        channels: list[Callable[[], None]] = [host.take_one for host in self.hosts if host.inbox]
        channels += [partial(self._take, host) for host in self.hosts if host.outbox]
        if self.outgoing.waits:
            channels.append(self.outgoing.flush)
        for (source, to), wire in self.wires.items():
            here, there = self.hosts[source], self.hosts[to]
            if wire and source in there.peers:
                channels.append(partial(self._pass, source, to))
            if to in here.asked - here.peers and source in there.asked - there.peers:
                channels.append(partial(self._connect, here, there))
        return channels

    def _pass(self, source: int, to: int) -> None:
        self.hosts[to].passing.take(source, self.wires[source, to].popleft())

    def _connect(self, here: _Host, there: _Host) -> None:
        for end, other in ((here, there), (there, here)):
            end.peers.add(other.number)
            end.outbox.append(Linked(other.number))

    def _take(self, host: _Host) -> None:
        message = host.outbox.popleft()
        match message:
            case Fault(page=page, write=write):
                self.directory.request(host.number, page, write=write)
            case Arrived(page=page, transfer=transfer, dirty=dirty):
                self.directory.take_arrived(page, transfer, dirty=dirty)
            case Linked():
                self.links.take_linked(host.number, message)
            case Unlinked():
                self.links.take_unlinked(host.number, message)
            case PagesData(pages=pages, dirty=dirty, data=data):
                self.directory.take_data(pages, dirty, data)
            case Dropped(page=page):
                self.directory.take_dropped(page)
            case _Said(page=page, others=others):
                if self.directory.has_kept(host.number, page):
                    self.believed += 1
                    assert others == self._writes_of_others(host.number, page)

    def check(self) -> None:
        for page in range(_PAGES):
            held = [host.holds[page] for host in self.hosts if page in host.holds]
            writers = [entry for entry in held if entry[1]]
            assert not writers or len(held) == 1
            for entry in held:
                assert entry[0] == self.written[page]

    def settle(self) -> None:
        while self._channels():
            self.step(0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_there_is_never_a_writer_and_another_and_a_reader_sees_the_last_write(data: st.DataObject) -> None:
    program = _Program()
    touches = data.draw(
        st.lists(
            st.tuples(st.integers(0, _HOSTS - 1), st.integers(0, _PAGES - 1), st.booleans()), max_size=40
        )
    )
    called: list[int] = []
    promised = 0
    for host, page, write in touches:
        ahead = data.draw(st.lists(st.tuples(st.integers(0, _PAGES - 1), st.booleans()), max_size=_PAGES))
        to = data.draw(st.integers(0, _HOSTS - 1))
        promised += program.directory.fetch_all_ahead(to, ahead, lambda: called.append(1))
        promised += program.directory.when_at_rest(page, lambda: called.append(1))
        if data.draw(st.integers(0, 9)) == 9:  # a connection is lost, or cannot be had
            one, other = data.draw(st.permutations(range(1, _HOSTS)))[:2]
            program.hosts[one].unlink(other)
        for _ in range(60):  # a host tries again until it succeeds, while other things happen
            if program.touch(host, page, write=write):
                program.check()
                break
            for choice in data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)):
                program.step(choice)
        else:
            program.settle()
    leaving = data.draw(st.integers(1, _HOSTS - 1))  # perhaps while pages are on their way
    while program.directory.evict(leaving, 0, 2):
        for choice in data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)):
            program.step(choice)
        if not data.draw(st.booleans()):
            program.settle()
    assert not program.hosts[leaving].holds or program.hosts[leaving].inbox
    program.settle()
    assert not program.hosts[leaving].holds
    assert program.directory.abandon(leaving)
    assert not program.directory.is_busy(range(_PAGES))
    assert len(called) == promised


_ELSEWHERE = st.integers(1, _HOSTS - 1)
_PAIRS = st.sampled_from(list(permutations(range(1, _HOSTS), 2)))
_ACTIONS = st.one_of(
    st.tuples(st.just("touch"), st.tuples(_ELSEWHERE, st.integers(0, 1), st.booleans())),
    st.tuples(st.just("step"), st.integers(0, 11)),
    st.tuples(st.just("step"), st.integers(0, 11)),
    st.tuples(st.just("cut"), _PAIRS),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_ACTIONS, max_size=60))
def test_nothing_is_lost_with_the_connections_of_hosts_over_which_pages_go_straight(
    actions: list[tuple[str, Any]],
) -> None:
    program = _Program()
    for one, other in permutations(range(1, _HOSTS), 2):
        program.directory.request(one, 0, write=True)  # as soon as one goes from host to host they are linked
        program.links.are_linked(one, other)
        program.settle()
        assert program.links.are_linked(one, other)

    for action, value in actions:
        match action:
            case "touch":
                program.touch(value[0], value[1], write=value[2])
            case "step":
                program.step(value)
            case "cut":
                program.hosts[value[0]].unlink(value[1])
        program.check()
    program.settle()
    assert not program.directory.is_busy(range(_PAGES))
    for host in range(_HOSTS):
        for page in range(2):
            for write in (False, True):
                while not program.touch(host, page, write=write):
                    program.settle()
    program.check()
    assert all(len(host.passing._kept) < 40 for host in program.hosts)


def test_what_a_host_has_said_of_a_page_is_not_believed_when_that_was_elsewhere_since() -> None:
    """It goes straight to another host, and comes back by the home, while what was said is on its way."""
    program = _Program()
    first, second = program.hosts[1:3]
    for host in (first, second):
        while not program.touch(host.number, 0, write=True):
            program.settle()
    program.settle()
    assert program.links.are_linked(1, 2)
    while not program.touch(1, 0, write=True):
        program.settle()
    program.settle()
    program.touch(1, 0, write=False)  # what it says of this is late

    def goes_on(*hosts: _Host) -> None:
        program.outgoing.flush()
        for host in hosts:
            while host.inbox:
                host.take_one()

    program.directory.fetch_ahead(2, 0, write=True)
    goes_on(first, second)
    program._pass(1, 2)
    assert program.touch(2, 0, write=True)
    second.unlink(1)
    while second.outbox:
        program._take(second)
    program.directory.fetch_ahead(1, 0, write=True)
    goes_on(second)
    program._take(second)
    assert program.directory.holder(0) == 1
    believed = program.believed
    program._take(first)
    assert program.believed == believed > 0


def test_a_page_that_is_read_and_then_written_by_one_after_the_other_moves_in_one_transfer() -> None:
    program = _Program()
    for turn in range(12):
        for write in (False, True):
            while not program.touch(turn % 2, 0, write=write):
                program.settle()
    counts = program.directory.counts
    assert counts["upgrade"] <= 4
    assert counts["read"] + counts["write"] >= 10


def test_faults_for_a_page_on_its_way_are_served_in_their_order() -> None:
    program = _Program()
    for host in program.hosts:
        host.touch(1, write=True)
    program.settle()
    assert 1 in program.hosts[-1].holds
    assert program.directory.counts["write"] == _HOSTS - 1


def test_what_must_not_be_touched_is_denied() -> None:
    sent: list[tuple[int, SpreadMessage]] = []
    directory = PageDirectory(Outgoing(lambda *told: sent.append(told)), lambda page: False)
    directory.request(1, 7, write=False)
    assert [(host, type(message).__name__) for host, message in sent] == [(1, "Deny")]
