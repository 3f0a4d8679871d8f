"""When threads of a spread program go on that another has woken."""

from collections.abc import Callable

import pytest

from ptserver.spread.address_space import AddressSpace
from ptserver.spread.futexes import FUTEX_WAIT, FUTEX_WAKE
from ptserver.spread.home import Home
from ptserver.spread.messages import Called, Return, SpreadMessage, ThreadGone
from ptserver.spread.placement import Stay
from stepping.syscalls import SYSCALLS

_WAKER, _NEAR, _FAR, _WORD = 1, 2, 3, 0x1000
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

    def call(self, tid: int, operation: int, value: int) -> list[tuple[int, SpreadMessage]]:
        """Have a thread call futex; return what hosts are told."""
        self.sent.clear()
        args = (_WORD, operation, value, 0, 0, 0)
        self.home.take(self.home.threads[tid].host, Called(tid, _FUTEX, args, b""))
        return list(self.sent)


@pytest.fixture
def home() -> _Home:
    return _Home()


def test_who_is_woken_at_the_same_host_goes_on_at_once(home: _Home) -> None:
    home.call(_NEAR, FUTEX_WAIT, 0)
    assert home.call(_WAKER, FUTEX_WAKE, 1) == [(0, Return(_NEAR, 0)), (0, Return(_WAKER, 1))]
    assert not home.timers


def test_who_is_woken_at_another_host_goes_on_when_its_waker_makes_a_call(home: _Home) -> None:
    home.call(_FAR, FUTEX_WAIT, 0)
    assert home.call(_WAKER, FUTEX_WAKE, 1) == [(0, Return(_WAKER, 1))]
    assert home.call(_WAKER, FUTEX_WAIT, 0) == [(1, Return(_FAR, 0))]
    home.timers.pop()()
    assert len(home.sent) == 1


def test_who_is_woken_at_another_host_does_not_wait_for_long(home: _Home) -> None:
    home.call(_FAR, FUTEX_WAIT, 0)
    home.call(_WAKER, FUTEX_WAKE, 1)
    home.sent.clear()
    home.timers.pop()()
    assert home.sent == [(1, Return(_FAR, 0))]
    assert home.call(_WAKER, FUTEX_WAIT, 0) == []


def test_who_is_woken_at_another_host_goes_on_when_its_waker_is_gone(home: _Home) -> None:
    home.call(_FAR, FUTEX_WAIT, 0)
    home.call(_WAKER, FUTEX_WAKE, 1)
    home.sent.clear()
    home.home.take(0, ThreadGone(_WAKER))
    assert home.sent == [(1, Return(_FAR, 0))]


def test_who_is_gone_is_not_woken(home: _Home) -> None:
    home.call(_FAR, FUTEX_WAIT, 0)
    home.call(_WAKER, FUTEX_WAKE, 1)
    home.home.take(0, ThreadGone(_FAR))
    home.sent.clear()
    home.timers.pop()()
    assert not home.sent
