"""How long a page that has come stays, though others want it."""

import os
import time

import pytest

from ptserver.spread import holding
from ptserver.spread.holding import (
    FIRST_LOOK_SECONDS,
    FRESH_SECONDS,
    LAST_LOOK_SECONDS,
    LONGEST_SECONDS,
    Holdings,
    ProcessorUse,
)

_PAGE, _OTHER = 7, 8


class _Use(ProcessorUse):
    """What a test says, instead of the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}

    def turns(self, tid: int) -> int:
        return self.counts.get(tid, -1)


@pytest.fixture
def use() -> _Use:
    return _Use()


@pytest.fixture
def holdings(use: _Use) -> Holdings:
    return Holdings(use)


def test_a_page_for_which_nobody_waited_goes_at_once(holdings: Holdings) -> None:
    assert holdings.wait(_PAGE, time.monotonic()) == 0


def test_a_page_stays_until_one_of_those_whom_it_woke_has_run(holdings: Holdings, use: _Use) -> None:
    use.counts = {1: 5, 2: 9}
    holdings.begin(_PAGE, [1, 2])
    holdings.begin(_OTHER, [1])
    waits = [holdings.wait(_PAGE, time.monotonic()) for _ in range(8)]
    assert waits == sorted(waits)
    assert FIRST_LOOK_SECONDS <= waits[0] < waits[-1] == LAST_LOOK_SECONDS
    use.counts[2] = 10
    assert holdings.wait(_PAGE, time.monotonic()) == 0
    assert holdings.wait(_OTHER, time.monotonic()) > 0  # thread 1 has not run yet
    use.counts[1] = 6
    assert holdings.wait(_OTHER, time.monotonic()) == 0


def test_a_page_goes_when_its_thread_is_gone(holdings: Holdings, use: _Use) -> None:
    use.counts = {1: 5}
    holdings.begin(_PAGE, [1])
    use.counts = {}
    assert holdings.wait(_PAGE, time.monotonic()) == 0


def test_a_page_goes_after_a_while_whatever_its_thread_does(
    holdings: Holdings, use: _Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(holding.time, "monotonic", lambda: now)
    use.counts = {1: 5}
    holdings.begin(_PAGE, [1])
    assert holdings.wait(_PAGE, time.monotonic()) > 0
    now += LONGEST_SECONDS
    assert holdings.wait(_PAGE, time.monotonic()) == 0


def test_a_page_that_has_come_stays_a_little_whoever_it_is_for(
    holdings: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(holding.time, "monotonic", lambda: now)
    holdings.came([_PAGE, _OTHER], now)
    assert holdings.wait(_PAGE, now) == pytest.approx(FRESH_SECONDS)
    now += FRESH_SECONDS
    assert holdings.wait(_PAGE, now) == holdings.wait(_OTHER, now) == 0


def test_the_kernel_counts_how_often_a_thread_gets_a_processor() -> None:
    use, tid = ProcessorUse(), os.getpid()
    before = use.turns(tid)
    assert before > 0
    assert use.nanoseconds(tid) > 0
    os.sched_yield()
    assert use.turns(tid) >= before
    assert use.turns(1 << 30) == use.nanoseconds(1 << 30) == -1
    use.forget(tid)


def test_what_came_for_a_thread_goes_when_that_falls_asleep(holdings: Holdings, use: _Use) -> None:
    now = 100.0
    holdings.came([_PAGE, _OTHER], now)
    holdings.goes_on(1)
    holdings.sleeps(2)  # another thread
    assert holdings.wait(_PAGE, now) == pytest.approx(FRESH_SECONDS)
    use.counts = {3: 5}
    holdings.begin(_OTHER, [3])
    holdings.sleeps(1)
    assert holdings.wait_for_any([_PAGE, _OTHER], now) == {
        _OTHER: FIRST_LOOK_SECONDS
    }  # thread 3 has not run yet
