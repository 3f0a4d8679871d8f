"""Threads that go to host 0 for what only that has, and back."""

from collections.abc import Callable

import pytest

from ptserver.spread.errands import FIRST_SECONDS, LONGEST_SECONDS, Errands
from ptserver.spread.messages import SpreadMessage, Stop
from ptserver.spread.threads import Thread, Threads

_TID = 5


class _World:
    def __init__(self) -> None:
        self.sent: list[tuple[int, SpreadMessage]] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.threads = Threads(lambda host, message: self.sent.append((host, message)), lambda host: False)
        self.threads.begin(_TID)
        self.errands = Errands(self.threads, lambda seconds, then: self.timers.append((seconds, then)))

    @property
    def thread(self) -> Thread:
        return self.threads[_TID]

    def stray(self, host: int) -> float:
        """Have the thread, which is pinned at *host*, come to host 0; return how long it is to stay there."""
        self.thread.host, self.thread.pinned = host, True
        self.errands.begin(self.thread)
        self.thread.host = 0
        return self.timers[-1][0]


@pytest.fixture
def world() -> _World:
    return _World()


def test_a_thread_is_stopped_after_a_while_until_it_has_gone_back(world: _World) -> None:
    assert world.stray(2) == FIRST_SECONDS
    world.timers.pop()[1]()
    world.timers.pop()[1]()
    assert world.sent == [(0, Stop(_TID))] * 2
    assert world.errands.way_back(world.thread) == 2
    world.thread.host = 2
    world.timers.pop()[1]()
    assert len(world.sent) == 2
    assert not world.timers
    assert world.errands.way_back(world.thread) is None


def test_who_comes_again_and_again_stays_longer(world: _World) -> None:
    stays = [world.stray(1) for _ in range(20)]
    assert stays == sorted(stays)
    assert stays[1] == 2 * stays[0]
    assert stays[-1] == LONGEST_SECONDS


def test_a_thread_that_the_program_puts_elsewhere_does_not_go_back(world: _World) -> None:
    world.stray(1)
    world.errands.end(_TID)
    assert world.errands.way_back(world.thread) is None
    world.timers.pop()[1]()
    assert not world.sent


def test_a_thread_that_has_ended_is_not_looked_for(world: _World) -> None:
    world.stray(1)
    world.threads.end(_TID)
    world.timers.pop()[1]()
    assert not world.sent
    assert not world.timers
