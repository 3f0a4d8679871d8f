"""Threads that are at host 0 for a moment, to touch what only that host has (a mapped file), and go back. Pure.

Only those that the program has put where they were: others are placed by a policy, or an operator's wish. Who comes
again and again stays longer each time, for the way costs more than the touch.
"""

from ptserver.spread.requests import Later
from ptserver.spread.threads import Thread, Threads

#: How long a thread stays the first time, and at most.
FIRST_SECONDS, LONGEST_SECONDS = 0.002, 1.0


class Errands:
    """Which threads are to go back, and where to."""

    def __init__(self, threads: Threads, later: Later) -> None:
        self._threads = threads
        self._later = later
        self._errands: dict[int, tuple[int, float]] = {}  # by tid: where from, and how long it stays

    def begin(self, thread: Thread) -> None:
        """Note that *thread*, where the program has put it, is about to go to host 0."""
        _, stay = self._errands.get(thread.tid, (0, FIRST_SECONDS / 2))
        self._errands[thread.tid] = thread.host, min(2 * stay, LONGEST_SECONDS)
        self._look_later(thread.tid)

    def way_back(self, thread: Thread) -> int | None:
        """Return where a stopped thread is to go back to; None if it is on no errand."""
        errand = self._errands.get(thread.tid)
        return None if errand is None or thread.host or not thread.pinned else errand[0]

    def end(self, tid: int) -> None:
        """Forget a thread that has ended, or has been put elsewhere."""
        self._errands.pop(tid, None)

    def _look_later(self, tid: int) -> None:
        errand = self._errands.get(tid)
        if errand is not None:
            self._later(errand[1], lambda: self._look(tid, errand))

    def _look(self, tid: int, errand: tuple[int, float]) -> None:
        """Have the thread stop if it computes; its way back is asked for then."""
        thread = self._threads.find(tid)
        if thread is not None and self._errands.get(tid) is errand and self.way_back(thread) is not None:
            self._threads.stop(thread)
            self._look_later(tid)
