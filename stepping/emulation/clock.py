"""The clocks of an emulated program: the machine's own, or ones that run by what the program does."""

import time
from typing import Protocol

CLOCK_REALTIME, CLOCK_MONOTONIC = 0, 1

_REALTIME_CLOCKS = frozenset({0, 5, 8, 11})  # also _COARSE, _ALARM, TAI
_CPU_CLOCKS = frozenset({2, 3})


class Clock(Protocol):
    """All times are nanoseconds."""

    def now(self) -> int:
        """Return the time that deadlines are measured by."""

    def read(self, clock_id: int) -> int | None:
        """Return what clock_gettime(2) of *clock_id* shows; None if there is no such clock."""

    def ticks(self) -> int:
        """Return the processor's own count."""

    def ran(self, code_bytes: int) -> None:
        """Take note that the program executed so much code."""

    def skip_to(self, deadline: int) -> bool:
        """Whether there is no need to wait until *deadline*: it is now."""


class HostClock:
    """The machine's own clocks."""

    def now(self) -> int:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def read(self, clock_id: int) -> int | None:
        """See `Clock`."""
        try:
            return time.clock_gettime_ns(clock_id)
        except OSError:
            return None

    def ticks(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns()

    def ran(self, code_bytes: int) -> None:
        """See `Clock`."""

    def skip_to(self, deadline: int) -> bool:
        """See `Clock`."""
        return False


class CountingClock:
    """Clocks that depend on nothing but the program: each look at them takes a while, each byte of code a nanosecond.

    Nothing ever waits for time to pass: when every thread sleeps, the clock jumps to the first that wakes.
    """

    #: When such a program's life begins: 2026-01-01 00:00 UTC.
    START = 1_767_225_600 * 1_000_000_000
    #: What CLOCK_MONOTONIC shows then.
    BEGIN = 1_000_000_000
    LOOK_NS = 1_000

    def __init__(self) -> None:
        self._now = self.BEGIN

    def now(self) -> int:
        """See `Clock`."""
        return self._now

    def read(self, clock_id: int) -> int | None:
        """See `Clock`."""
        self._now += self.LOOK_NS
        if clock_id in _REALTIME_CLOCKS:
            return self.START + self._now
        return self._now if 0 <= clock_id <= 11 else None

    def ticks(self) -> int:
        """See `Clock`."""
        self._now += 1
        return self._now

    def ran(self, code_bytes: int) -> None:
        """See `Clock`."""
        self._now += code_bytes

    def skip_to(self, deadline: int) -> bool:
        """See `Clock`."""
        self._now = max(self._now, deadline)
        return True
