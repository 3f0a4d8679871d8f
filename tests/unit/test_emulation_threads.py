"""Waiting and waking in an emulated program, without any program: scheduler, futexes, clocks."""

import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

from stepping.emulation.address_space import AddressSpace
from stepping.emulation.clock import CLOCK_MONOTONIC, CLOCK_REALTIME, CountingClock
from stepping.emulation.futex import Futexes
from stepping.emulation.threads import BLOCKED, Scheduler, Thread, Wait, keep_descriptor
from tests.unit.test_emulation_memory import Pages

WORD = 0x20_0000


def thread(tid: int) -> Thread:
    context: Any = None  # no thread runs here
    return Thread(tid, context)


@pytest.fixture
def clock() -> CountingClock:
    return CountingClock()


@pytest.fixture
def scheduler(clock: CountingClock) -> Iterator[Scheduler]:
    scheduler = Scheduler(clock)
    yield scheduler
    scheduler.close()


@pytest.fixture
def futexes(scheduler: Scheduler) -> Iterator[Futexes]:
    space = AddressSpace(Pages())
    space.map(WORD, 4096, 3)
    yield Futexes(space, scheduler)
    space.close()


def test_whoever_sleeps_wakes_at_its_deadline_in_order(clock: CountingClock, scheduler: Scheduler) -> None:
    first, second = thread(1), thread(2)
    scheduler.block(second, Wait(timeout_result=0), clock.now() + 2_000_000)
    scheduler.block(first, Wait(timeout_result=0), clock.now() + 1_000_000)
    scheduler.poll(may_sleep=True)
    assert list(scheduler.ready) == [first]
    scheduler.poll(may_sleep=True)
    assert list(scheduler.ready) == [first, second]
    assert first.result == 0


def test_a_wait_that_has_ended_does_not_time_out(clock: CountingClock, scheduler: Scheduler) -> None:
    sleeper = thread(1)
    scheduler.block(sleeper, Wait(), clock.now() + 1000)
    scheduler.wake(sleeper, 5)
    scheduler.block(sleeper, Wait())
    clock.skip_to(clock.now() + 5000)
    scheduler.poll(may_sleep=False)
    assert sleeper.wait is not None
    assert list(scheduler.ready) == [sleeper]


def test_a_descriptor_wakes_who_watches_it(scheduler: Scheduler) -> None:
    reader, writer = os.pipe()
    waiting = thread(1)
    attempts = [BLOCKED, 3]
    scheduler.watch(waiting, [(reader, select.POLLIN)], lambda: attempts.pop(0), Wait())
    scheduler.poll(may_sleep=False)
    assert len(attempts) == 2
    os.write(writer, b"x")
    scheduler.poll(may_sleep=True)
    assert waiting.wait is not None
    scheduler.poll(may_sleep=True)
    assert waiting.result == 3
    scheduler.poll(may_sleep=False)
    assert list(scheduler.ready) == [waiting]
    os.close(reader)
    os.close(writer)


def test_a_wait_that_cannot_end_at_once_ends_when_it_says_so(scheduler: Scheduler) -> None:
    waiting = thread(1)
    asked: list[str] = []
    scheduler.block(waiting, Wait(interrupt=lambda: asked.append("end")))
    scheduler.interrupt(waiting)
    assert asked == ["end"]
    assert waiting.wait is not None
    scheduler.end_by_signal(waiting)
    assert (waiting.wait, waiting.result) == (None, -4)  # EINTR
    assert waiting.interrupted is not None


def test_a_source_is_heard_until_the_process_forks(scheduler: Scheduler) -> None:
    reader, writer = os.pipe()
    heard: list[bytes] = []
    scheduler.add_source(reader, lambda: heard.append(os.read(reader, 1)))
    os.write(writer, b"ab")
    scheduler.poll(may_sleep=True)
    scheduler.poll(may_sleep=False)
    assert heard == [b"a", b"b"]
    scheduler.after_fork()
    os.write(writer, b"c")
    scheduler.poll(may_sleep=False)
    assert heard == [b"a", b"b"]
    os.close(reader)
    os.close(writer)


def test_own_descriptors_are_out_of_the_programs_way() -> None:
    low, writer = os.pipe()
    high = keep_descriptor(low)
    assert high > 500
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(low)
    os.close(high)
    os.close(writer)


def test_a_futex_wakes_in_order_and_only_as_many(futexes: Futexes, scheduler: Scheduler) -> None:
    waiting = [thread(tid) for tid in range(3)]
    assert [futexes.wait(each, WORD, 0, None) for each in waiting] == [BLOCKED] * 3
    assert futexes.wake(WORD, 2) == 2
    assert list(scheduler.ready) == waiting[:2]
    assert futexes.wake(WORD, 2) == 1
    assert futexes.wake(WORD, 2) == 0


def test_a_futex_with_another_value_does_not_wait(futexes: Futexes) -> None:
    assert futexes.wait(thread(1), WORD, 1, None) == -11  # EAGAIN
    assert futexes.wait(thread(1), WORD + 1, 0, None) == -22  # EINVAL
    assert futexes.wait(thread(1), 0x1000, 0, None) == -14  # EFAULT


def test_a_futex_times_out_and_is_forgotten(
    futexes: Futexes, scheduler: Scheduler, clock: CountingClock
) -> None:
    waiting = thread(1)
    futexes.wait(waiting, WORD, 0, clock.now() + 1000)
    scheduler.poll(may_sleep=True)
    assert waiting.result == -110  # ETIMEDOUT
    assert futexes.wake(WORD, 1) == 0


def test_a_futex_wakes_those_whose_bits_match(futexes: Futexes, scheduler: Scheduler) -> None:
    first, second = thread(1), thread(2)
    futexes.wait(first, WORD, 0, None, 1)
    futexes.wait(second, WORD, 0, None, 2)
    assert futexes.wake(WORD, 9, 2) == 1
    assert list(scheduler.ready) == [second]


def test_moved_waiters_wake_at_the_new_address(futexes: Futexes, scheduler: Scheduler) -> None:
    waiting = [thread(tid) for tid in range(3)]
    for each in waiting:
        futexes.wait(each, WORD, 0, None)
    assert futexes.requeue(WORD, 1, WORD + 64, 2) == 1
    assert futexes.wake(WORD, 9) == 0
    assert futexes.wake(WORD + 64, 9) == 2
    assert list(scheduler.ready) == waiting


def test_counting_clocks_depend_on_looks_and_code_alone() -> None:
    first, second = CountingClock(), CountingClock()
    for clock in (first, second):
        clock.ran(500)
        clock.read(CLOCK_REALTIME)
    assert first.read(CLOCK_MONOTONIC) == second.read(CLOCK_MONOTONIC)
    assert first.read(99) is None


def test_what_waits_for_a_pause_comes_when_nothing_runs(scheduler: Scheduler) -> None:
    told: list[int] = []
    scheduler.complete_when_idle(lambda: told.append(1))
    for _ in range(10):
        scheduler.poll(may_sleep=False)
    assert told == []
    scheduler.poll(may_sleep=True)
    assert told == [1]


def test_and_at_last_where_something_always_runs(scheduler: Scheduler) -> None:
    told: list[int] = []
    scheduler.complete_when_idle(lambda: told.append(1))
    for _ in range(2000):
        scheduler.poll(may_sleep=False)
    assert told == [1]


def test_what_is_completed_while_a_descriptor_is_looked_at_comes_at_once(scheduler: Scheduler) -> None:
    """SIGPIPE and the end of the call that it belongs to are seen by the same look."""
    told: list[int] = []
    reading, writing = os.pipe()
    scheduler.add_source(reading, lambda: scheduler.complete(lambda: told.append(1)))
    os.write(writing, b"x")
    scheduler.poll(may_sleep=True)
    assert told == [1]
    os.close(reading)
    os.close(writing)
