"""How threads get from host to host, whatever happens to them on the way."""

import errno

import pytest

from ptserver.spread.messages import Capture, Captured, Kill, Return, SpreadMessage, Start, ThreadState
from ptserver.spread.threads import Threads, Where

_STATE = ThreadState(b"g", b"x", 0, b"a")


class _Hosts:
    """What was sent, and which hosts leave."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, SpreadMessage]] = []
        self.leaving: set[int] = set()
        self.threads = Threads(
            lambda host, message: self.sent.append((host, message)), self.leaving.__contains__
        )
        self.threads.begin(7)

    def taken(self) -> list[tuple[int, SpreadMessage]]:
        sent, self.sent[:] = self.sent[:], []
        return sent


@pytest.fixture
def hosts() -> _Hosts:
    return _Hosts()


def test_a_thread_that_is_woken_on_its_way_goes_on_with_the_result(hosts: _Hosts) -> None:
    thread = hosts.threads[7]
    hosts.threads.move(thread, 1, None, held=True)
    hosts.threads.answer(thread, 5)
    assert hosts.taken() == [(0, Capture(7))]
    hosts.threads.captured(Captured(7, _STATE))
    assert hosts.taken() == [(1, Start(7, _STATE, 5, False))]
    assert (thread.host, thread.where) == (1, Where.RUNS)


def test_signals_follow_a_thread_in_their_order(hosts: _Hosts) -> None:
    thread = hosts.threads[7]
    hosts.threads.move(thread, 1, 0)
    hosts.threads.signal(thread, 23)
    hosts.threads.captured(Captured(7, _STATE, (10,)))
    assert hosts.taken()[1:] == [(1, Start(7, _STATE, 0, False)), (1, Kill(7, 10)), (1, Kill(7, 23))]


def test_a_thread_whose_call_is_under_way_starts_at_host_0_when_it_has_returned(hosts: _Hosts) -> None:
    thread = hosts.threads[7]
    hosts.threads.move(thread, 1, 0)
    hosts.threads.captured(Captured(7, _STATE))
    hosts.threads.call(thread, b"registers")
    hosts.taken()
    hosts.threads.move(thread, 0, None, held=True)
    hosts.threads.captured(Captured(7, _STATE))
    assert hosts.taken() == [(1, Capture(7))]
    assert thread.where is Where.KEPT
    hosts.threads.executed(7, 3)
    assert hosts.taken() == [(0, Start(7, _STATE, 3, False))]


def test_a_call_that_returns_while_its_thread_is_on_the_way_is_not_waited_for(hosts: _Hosts) -> None:
    thread = hosts.threads[7]
    hosts.threads.move(thread, 1, 0)
    hosts.threads.captured(Captured(7, _STATE))
    hosts.threads.call(thread, b"registers")
    hosts.threads.move(thread, 0, None, held=True)
    hosts.threads.executed(7, -4)
    hosts.threads.captured(Captured(7, _STATE))
    assert hosts.taken()[-2:] == [(1, Capture(7)), (0, Start(7, _STATE, -4, False))]


def test_nothing_arrives_at_a_host_that_leaves(hosts: _Hosts) -> None:
    thread = hosts.threads[7]
    hosts.threads.move(thread, 1, 0)
    hosts.leaving.add(1)
    hosts.threads.captured(Captured(7, _STATE))
    assert hosts.taken()[1:] == [(0, Start(7, _STATE, 0, False))]


def test_a_thread_whose_call_returns_at_a_host_that_leaves_goes_on_at_host_0(hosts: _Hosts) -> None:
    thread = hosts.threads[7]
    hosts.threads.move(thread, 1, 0)
    hosts.threads.captured(Captured(7, _STATE))
    hosts.taken()
    hosts.leaving.add(1)
    hosts.threads.answer(thread, 9)
    hosts.threads.captured(Captured(7, _STATE))
    assert hosts.taken() == [(1, Capture(7)), (0, Start(7, _STATE, 9, False))]


def test_an_answer_goes_to_where_the_thread_is(hosts: _Hosts) -> None:
    hosts.threads.answer(hosts.threads[7], 2)
    assert hosts.taken() == [(0, Return(7, 2))]


def test_a_thread_on_its_way_to_a_host_that_is_lost_goes_on_where_it_was(hosts: _Hosts) -> None:
    thread = hosts.threads[7]
    thread.pinned = True
    hosts.threads.move(thread, 1, 0)
    hosts.threads.turn_back(1)
    hosts.threads.captured(Captured(7, _STATE))
    assert hosts.taken()[1:] == [(0, Start(7, _STATE, -errno.EINVAL, False))]
    assert (thread.host, thread.where, thread.pinned, thread.moves) == (0, Where.RUNS, False, 0)
