"""Timers by the program's clock: descriptors of a run that is to be repeatable."""

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from ptserver.emulated.repeatable_timers import RepeatableTimers
from stepping.emulation.clock import CountingClock
from stepping.emulation.threads import Scheduler

MS = 1_000_000
ABSOLUTE = 1


class Run:
    """A clock, what waits for it, and timers."""

    def __init__(self) -> None:
        self.clock = CountingClock()
        self.scheduler = Scheduler(self.clock)
        self.timers = RepeatableTimers(self.scheduler, self.clock)

    def create(self, clock: int = 1) -> int:
        value, error, _ = self.timers.execute("timerfd_create", (clock, os.EFD_NONBLOCK, 0, 0, 0, 0), {})
        assert not error
        return value

    def set(self, fd: int, interval: int, value: int, flags: int = 0) -> tuple[int, bytes]:
        args = (fd, flags, 8, 8, 0, 0)
        spec = struct.pack("<4q", *divmod(interval, 10**9), *divmod(value, 10**9))
        _, error, outs = self.timers.execute("timerfd_settime", args, {2: spec})
        return error, outs.get(3, b"")

    def until(self, time_ns: int) -> None:
        """Let the clock come to *time_ns* after its beginning."""
        self.scheduler.call_at(CountingClock.BEGIN + time_ns, lambda: None)
        while self.clock.now() < CountingClock.BEGIN + time_ns:
            self.scheduler.poll(may_sleep=True)


@pytest.fixture
def run() -> Iterator[Run]:
    run = Run()
    yield run
    run.scheduler.close()


def expiries(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_expiries_are_counted(run: Run) -> None:
    fd = run.create()
    assert run.set(fd, 10 * MS, 25 * MS) == (0, bytes(32))
    run.until(24 * MS)
    assert expiries(fd) == 0
    run.until(46 * MS)
    assert expiries(fd) == 3
    run.until(47 * MS)
    assert expiries(fd) == 0
    os.close(fd)


def test_a_new_setting_forgets_the_old_one(run: Run) -> None:
    fd = run.create()
    run.set(fd, 0, 5 * MS)
    run.until(6 * MS)
    _, old = run.set(fd, 3 * MS, 20 * MS)
    assert (old, expiries(fd)) == (bytes(32), 0)
    _, old = run.set(fd, 0, 0)
    interval, left = struct.unpack("<4q", old)[1::2]
    assert (interval, 0 < left <= 20 * MS) == (3 * MS, True)
    run.until(100 * MS)
    assert expiries(fd) == 0
    os.close(fd)


def test_a_time_of_day(run: Run) -> None:
    fd = run.create(clock=0)
    run.set(fd, 0, CountingClock.START + CountingClock.BEGIN + 50 * MS, ABSOLUTE)
    run.until(49 * MS)
    assert expiries(fd) == 0
    run.until(51 * MS)
    assert expiries(fd) == 1
    os.close(fd)


def test_a_descriptor_that_is_closed_tells_nothing_any_more(run: Run) -> None:
    fd = run.create()
    run.set(fd, 0, 5 * MS)
    run.timers.closed(fd, fd)
    os.close(fd)
    reading, writing = os.pipe()
    run.until(10 * MS)
    assert run.set(reading, 0, MS)[0] == errno.EINVAL
    os.close(reading)
    os.close(writing)
    assert run.set(reading, 0, MS)[0] == errno.EBADF


def test_what_the_kernel_refuses(run: Run) -> None:
    assert run.timers.execute("timerfd_create", (77, 0, 0, 0, 0, 0), {})[1] == errno.EINVAL
    fd = run.create()
    assert run.set(fd, 0, MS, flags=8)[0] == errno.EINVAL
    os.close(fd)
