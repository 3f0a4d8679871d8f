"""How the home of a spread program moves a thread: with the pages that it will touch first."""

import errno

from ptserver.spread.address_space import AddressSpace
from ptserver.spread.home import Home
from ptserver.spread.messages import (
    AllowWrite,
    Called,
    Capture,
    Captured,
    DropPage,
    Dropped,
    Fault,
    Return,
    SpreadMessage,
    Start,
    ThreadState,
)
from ptserver.spread.page_messages import Access, PagesData, PutPages, SendPages
from ptserver.spread.placement import Stay
from ptserver.stub.hypercalls import Hypercall
from stepping.maps import PAGE_BYTES

_TID, _STACK, _RECORD = 7, 100, 200
_STATE = ThreadState(b"general", b"extended", 0, b"altstack")


class _Hosts:
    """Two hosts that do at once what the home says; sent: what they were told. Host 0 has the pages."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, SpreadMessage]] = []
        self.home = Home(2, lambda *told: self.sent.append(told), lambda *_: None, Stay(), AddressSpace())
        self.home.threads.begin(_TID)
        self.home.pages.place(0, [_STACK, _RECORD])

    def migrate(self, here: int, to: int) -> list[tuple[int, SpreadMessage]]:
        """Have the thread ask for a move; return what the hosts were told, in order."""
        self.sent.clear()
        args = (to, 0, 0, 0, 0, 0)
        self.home.take(here, Called(_TID, Hypercall.MIGRATE, args, b"", _STACK * PAGE_BYTES + 8))
        return self.settle()

    def touch(self, host: int, page: int) -> None:
        """Have the thread wait for a page."""
        self.sent.clear()
        self.home.take(host, Fault(page, True, page * PAGE_BYTES, _TID))
        self.settle()

    def settle(self) -> list[tuple[int, SpreadMessage]]:
        """Let the hosts answer; return what they have been told."""
        done = 0
        self.home.flush()
        while done < len(self.sent):
            host, message = self.sent[done]
            done += 1
            if isinstance(message, SendPages):
                count = len(message.pages)
                self.home.take(host, PagesData(message.pages, b"\1" * count, bytes(count * PAGE_BYTES)))
            elif isinstance(message, Capture):
                self.home.take(host, Captured(_TID, _STATE))
            self.home.flush()
        return list(self.sent)


def test_a_thread_finds_its_stack_where_it_starts() -> None:
    told = _Hosts().migrate(0, 1)
    assert [(host, type(message)) for host, message in told] == [
        (0, SendPages),
        (0, Capture),
        (1, PutPages),
        (1, Start),
    ]
    assert told[2][1] == PutPages((_STACK,), bytes((Access.WRITE,)), bytes(PAGE_BYTES))


def test_what_it_touched_first_the_last_times_goes_along() -> None:
    hosts = _Hosts()
    for _ in range(2):
        hosts.migrate(0, 1)
        hosts.touch(1, _RECORD)
        hosts.migrate(1, 0)
        hosts.touch(0, _RECORD)
    *_, (host, put), last = hosts.migrate(0, 1)
    assert host == 1
    assert isinstance(put, PutPages)
    assert put.pages == (_STACK, _RECORD)
    assert isinstance(last[1], Start)


def test_nothing_is_fetched_for_a_thread_that_stays() -> None:
    assert _Hosts().migrate(0, 0) == [(0, Return(_TID, 0))]


def test_a_page_that_a_host_may_read_already_becomes_its_own_ahead() -> None:
    hosts = _Hosts()
    hosts.home.take(1, Fault(_RECORD, False, _RECORD * PAGE_BYTES))
    hosts.settle()
    hosts.sent.clear()
    hosts.home.pages.fetch_ahead(1, _RECORD, write=False)
    assert not hosts.sent
    hosts.home.pages.fetch_ahead(1, _RECORD, write=True)
    assert hosts.sent == [(0, DropPage(_RECORD))]
    hosts.home.take(0, Dropped(_RECORD))
    assert hosts.sent[1:] == [(1, AllowWrite(_RECORD))]
    assert hosts.home.pages.holder(_RECORD) == 1


def _lost_on_the_way(*, gives: bool) -> tuple[_Hosts, bool]:
    """Have host 1 lost while the thread is on its way there, and its stack too, if *gives*.

    Returns whether the program goes on.
    """
    hosts = _Hosts()
    hosts.home.take(0, Called(_TID, Hypercall.MIGRATE, (1, 0, 0, 0, 0, 0), b"", _STACK * PAGE_BYTES + 8))
    hosts.home.flush()
    if gives:
        hosts.home.take(0, PagesData((_STACK,), b"\1", bytes(PAGE_BYTES)))
        hosts.home.flush()
    hosts.sent.clear()
    return hosts, hosts.home.abandon(1)


def test_a_move_to_a_host_that_is_lost_leaves_the_thread_where_it_was() -> None:
    hosts, goes_on = _lost_on_the_way(gives=False)
    assert goes_on
    hosts.home.take(0, PagesData((_STACK,), b"\1", bytes(PAGE_BYTES)))
    hosts.home.take(0, Captured(_TID, _STATE))
    hosts.home.flush()
    assert hosts.sent == [
        (0, PutPages((_STACK,), bytes((Access.WRITE,)), bytes(PAGE_BYTES))),
        (0, Start(_TID, _STATE, -errno.EINVAL, False)),
    ]
    assert hosts.home.pages.writer(_STACK) == 0


def test_a_host_that_is_lost_with_the_stack_of_a_thread_ends_the_program() -> None:
    assert not _lost_on_the_way(gives=True)[1]


def test_a_page_that_was_for_a_host_that_is_lost_stays_where_it_was_read() -> None:
    hosts = _Hosts()
    hosts.home.take(1, Fault(_RECORD, False, _RECORD * PAGE_BYTES))
    hosts.home.flush()
    hosts.sent.clear()
    assert hosts.home.abandon(1)
    hosts.home.take(0, PagesData((_RECORD,), b"\1", bytes(PAGE_BYTES)))
    hosts.home.take(0, Fault(_RECORD, True, _RECORD * PAGE_BYTES, _TID))
    hosts.home.flush()
    assert hosts.sent == [(0, AllowWrite(_RECORD))]


def test_what_a_host_that_is_lost_still_waits_for_is_not_sent() -> None:
    hosts = _Hosts()
    hosts.home.pages.request(1, _RECORD, write=False)
    hosts.home.pages.request(0, _RECORD, write=True)
    hosts.home.pages.request(1, _RECORD, write=True)
    hosts.home.flush()
    hosts.sent.clear()
    assert hosts.home.abandon(1)
    hosts.home.take(0, PagesData((_RECORD,), b"\1", bytes(PAGE_BYTES)))
    hosts.home.flush()
    assert hosts.sent == [(0, AllowWrite(_RECORD))]
