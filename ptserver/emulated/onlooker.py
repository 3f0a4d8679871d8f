"""A thread that opens files while a program's descriptors are being made.

A file that this process opens for a moment takes the lowest number that is free, which is the one that the program's
next descriptor is to get. So it is opened by a thread that has descriptors of its own: none, to begin with.

Where the kernel does not know how to part from the others' descriptors (before 5.9) or does not allow it, the thread
has those of the process, as all threads do. Where there can be no more threads, the caller's own looks.

Source: close_range(2) (CLOSE_RANGE_UNSHARE).
Thread rules: one thread asks.
"""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ptserver.machine import native_arch
from ptserver.shadow.raw_calls import raw_call
from stepping.syscalls import SYSCALLS

_Seen = TypeVar("_Seen")

_ALL_DESCRIPTORS = 0xFFFFFFFF
_CLOSE_RANGE_UNSHARE = 2


class Onlooker:
    """Looks for another thread, which waits meanwhile. There is no thread before the first look."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def ask(self, look: Callable[[], _Seen]) -> _Seen:
        """Return what *look* returns, or raise what it raises."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "ptserver-onlooker", _part_from_others)
        try:
            seen = self._pool.submit(look)
        except RuntimeError:  # the system lets us have no more threads
            self._pool = None
            return look()
        return seen.result()

    def after_fork(self) -> None:
        """Go on in a process that was forked, which has no such thread yet."""
        self._pool = None

    def close(self) -> None:
        """Let the thread end."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _part_from_others() -> None:
    """Let this thread have no part in the process's descriptors, nor in its signals."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    number = SYSCALLS["close_range"].numbers[native_arch()]
    raw_call(number, 0, _ALL_DESCRIPTORS, _CLOSE_RANGE_UNSHARE)
