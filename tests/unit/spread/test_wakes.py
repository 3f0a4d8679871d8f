"""When threads of a spread program go on that another has woken."""

from collections.abc import Callable

import pytest

from ptserver.spread.address_space import AddressSpace
from ptserver.spread.futexes import FUTEX_WAIT
from ptserver.spread.home import Home
from ptserver.spread.messages import Called, Fault, Return, SpreadMessage, ThreadGone, Woke
from ptserver.spread.page_messages import Access, PagesData, PutPages, SendPages
from ptserver.spread.placement import Stay
from stepping.syscalls import SYSCALLS

_WAKER, _NEAR, _FAR, _WORD = 1, 2, 3, 0x1000
_PAGE = 77
_FUTEX = SYSCALLS["futex"].numbers["amd64"]


class _Home:
    """A home whose thread `_FAR` is at host 1, while the others are at host 0; memory is all zeros."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, SpreadMessage]] = []
        self.timers: list[Callable[[], None]] = []
        self.home = Home(
            2,
            lambda *told: self.sent.append(told),
            lambda _, then: self.timers.append(then),
            Stay(),
            AddressSpace(),
        )
        for tid in (_WAKER, _NEAR, _FAR):
            self.home.threads.begin(tid)
        self.home.threads[_FAR].host = 1

    def take(self, tid: int, message: SpreadMessage) -> list[tuple[int, SpreadMessage]]:
        """Have the host of a thread say something; return what hosts are told."""
        self.sent.clear()
        self.home.take(self.home.threads[tid].host, message)
        self.home.flush()
        return list(self.sent)

    def wait(self, tid: int) -> list[tuple[int, SpreadMessage]]:
        """Have a thread fall asleep."""
        return self.take(tid, Called(tid, _FUTEX, (_WORD, FUTEX_WAIT, 0, 0, 0, 0), b""))

    def wake(self, tid: int) -> list[tuple[int, SpreadMessage]]:
        """Have a thread wake one other."""
        return self.take(tid, Woke(tid, _WORD, 1))


@pytest.fixture
def home() -> _Home:
    return _Home()


def test_who_is_woken_at_the_same_host_goes_on_at_once(home: _Home) -> None:
    home.wait(_NEAR)
    assert home.wake(_WAKER) == [(0, Return(_NEAR, 0))]
    assert not home.timers


def test_who_is_woken_at_another_host_goes_on_when_its_waker_makes_a_call(home: _Home) -> None:
    home.wait(_FAR)
    assert home.wake(_WAKER) == []
    assert home.wait(_WAKER) == [(1, Return(_FAR, 0))]
    home.timers.pop()()
    assert len(home.sent) == 1


def test_who_is_woken_at_another_host_does_not_wait_for_long(home: _Home) -> None:
    home.wait(_FAR)
    home.wake(_WAKER)
    home.sent.clear()
    home.timers.pop()()
    assert home.sent == [(1, Return(_FAR, 0))]
    assert home.wait(_WAKER) == []


def test_who_is_woken_at_another_host_goes_on_when_its_waker_is_gone(home: _Home) -> None:
    home.wait(_FAR)
    home.wake(_WAKER)
    home.sent.clear()
    home.home.take(0, ThreadGone(_WAKER))
    assert home.sent == [(1, Return(_FAR, 0))]


def test_who_is_gone_is_not_woken(home: _Home) -> None:
    home.wait(_FAR)
    home.wake(_WAKER)
    home.home.take(0, ThreadGone(_FAR))
    home.sent.clear()
    home.timers.pop()()
    assert not home.sent


def test_who_is_woken_at_another_host_waits_on_while_its_waker_waits_for_pages(home: _Home) -> None:
    home.wait(_FAR)
    home.wake(_WAKER)
    for _ in range(3):
        home.take(_WAKER, Fault(_PAGE, False, _PAGE << 12, _WAKER))
        home.sent.clear()
        home.timers.pop()()
        assert not home.sent
    home.timers.pop()()
    assert home.sent == [(1, Return(_FAR, 0))]


def test_what_was_wanted_when_it_was_woken_before_is_there_when_it_is_woken_again(home: _Home) -> None:
    home.home.pages.place(0, [_PAGE])
    for _ in range(2):
        home.wait(_FAR)
        home.wake(_WAKER)
        home.wait(_WAKER)
        home.take(_FAR, Fault(_PAGE, True, _PAGE << 12, _FAR))
        home.take(_WAKER, PagesData((_PAGE,), b"\1", b""))
        home.wake(_FAR)
        home.take(_WAKER, Fault(_PAGE, True, _PAGE << 12, 0))
        home.take(_FAR, PagesData((_PAGE,), b"\1", b""))
    home.wait(_FAR)
    home.wake(_WAKER)
    assert home.wait(_WAKER) == [(0, SendPages((_PAGE,), b"\0"))]
    assert home.take(_WAKER, PagesData((_PAGE,), b"\1", b"")) == [
        (1, PutPages((_PAGE,), bytes((Access.WRITE,)), b"")),
        (1, Return(_FAR, 0)),
    ]
    home.sent.clear()
    for expire in home.timers:
        expire()
    assert not home.sent
