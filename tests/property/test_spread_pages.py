"""The page directory of a spread program, driven by simulated hosts whose messages arrive in any order across
hosts.
"""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from ptserver.spread.messages import (
    AllowWrite,
    DropPage,
    Dropped,
    Fault,
    PageData,
    PutPage,
    SendPage,
    SpreadMessage,
    TryAgain,
    ZeroPages,
)
from ptserver.spread.pages import PageDirectory

_HOSTS = 3
_PAGES = 4


class _Host:
    """Keeps pages as a host does; `holds` maps a page to [number written to it, whether it may be written, clean]."""

    def __init__(self) -> None:
        self.holds: dict[int, list] = {}
        self.inbox: deque[SpreadMessage] = deque()
        self.outbox: deque[SpreadMessage] = deque()

    def take_one(self) -> None:
        message = self.inbox.popleft()
        match message:
            case SendPage(page=page, keep=keep):
                value, writable, clean = self.holds[page]
                self.outbox.append(PageData(page, b"%d" % value, dirty=writable and not clean))
                if keep:
                    self.holds[page] = [value, False, False]
                else:
                    del self.holds[page]
            case PutPage(page=page, data=data, writable=writable, clean=clean):
                assert page not in self.holds
                self.holds[page] = [int(data), writable or clean, clean]
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
        self.hosts = [_Host() for _ in range(_HOSTS)]
        self.directory = PageDirectory(
            lambda host, message: self.hosts[host].inbox.append(message), lambda page: page < _PAGES
        )
        self.written = [0] * _PAGES

    def step(self, choice: int) -> None:
        """Let one message arrive, which of those that could is for *choice* to say."""
        channels = [(host, True) for host in self.hosts if host.inbox]
        channels += [(host, False) for host in self.hosts if host.outbox]
        if not channels:
            return
        host, inward = channels[choice % len(channels)]
        if inward:
            host.take_one()
        else:
            self._take(self.hosts.index(host), host.outbox.popleft())
        self.check()

    def _take(self, host: int, message: SpreadMessage) -> None:
        match message:
            case Fault(page=page, write=write):
                self.directory.request(host, page, write=write)
            case PageData(page=page, data=data, dirty=dirty):
                self.directory.take_data(page, data, dirty=dirty)
            case Dropped(page=page):
                self.directory.take_dropped(page)

    def check(self) -> None:
        for page in range(_PAGES):
            held = [host.holds[page] for host in self.hosts if page in host.holds]
            writers = [entry for entry in held if entry[1]]
            assert not writers or len(held) == 1
            for entry in held:
                assert entry[0] == self.written[page]

    def settle(self) -> None:
        while any(host.inbox or host.outbox for host in self.hosts):
            self.step(0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_there_is_never_a_writer_and_another_and_a_reader_sees_the_last_write(data: st.DataObject) -> None:
    program = _Program()
    touches = data.draw(
        st.lists(
            st.tuples(st.integers(0, _HOSTS - 1), st.integers(0, _PAGES - 1), st.booleans()), max_size=40
        )
    )
    for host, page, write in touches:
        ahead = data.draw(
            st.none() | st.tuples(st.integers(0, _HOSTS - 1), st.integers(0, _PAGES - 1), st.booleans())
        )
        if ahead is not None:
            program.directory.fetch_ahead(ahead[0], ahead[1], write=ahead[2])
        for _ in range(60):  # a host tries again until it succeeds, while other things happen
            if program.hosts[host].touch(page, write=write):
                program.written[page] += write
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


def test_a_page_that_is_read_and_then_written_by_one_after_the_other_moves_in_one_transfer() -> None:
    program = _Program()
    for turn in range(12):
        host = program.hosts[turn % 2]
        for write in (False, True):
            while not host.touch(0, write=write):
                program.settle()
            program.written[0] += write
    counts = program.directory.counts
    assert counts["upgrade"] <= 4
    assert counts["read"] + counts["write"] >= 10


def test_faults_for_a_page_on_its_way_are_served_in_their_order() -> None:
    program = _Program()
    for host in program.hosts:
        host.touch(1, write=True)
    program.settle()
    assert 1 in program.hosts[2].holds
    assert program.directory.counts["write"] == 2


def test_what_must_not_be_touched_is_denied() -> None:
    sent: list[tuple[int, SpreadMessage]] = []
    directory = PageDirectory(lambda host, message: sent.append((host, message)), lambda page: False)
    directory.request(1, 7, write=False)
    assert [(host, type(message).__name__) for host, message in sent] == [(1, "Deny")]
