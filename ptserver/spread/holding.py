"""How long a page that has come stays, though others want it: until who waited for it has had it.

A thread that waited for a page is woken when it comes, but runs some time later: when a processor is free. An agent,
which does not wait for processors, could be told to give the page away before, and then the thread waits for it
again, for ever if things go badly: all hosts pass pages around and no thread ever runs. So a page is given away only
after one of those whom it woke has been on a processor; that is enough for the instruction that touched it. After
`LONGEST_SECONDS` it goes in any case: its thread may have been stopped, or need another page first.

Every page stays for `FRESH_SECONDS`, also one that nobody waited for: pages come together for what one thread does
next, and while two threads take them from each other one by one, neither gets on. When that thread falls asleep, they
may go.

The kernel counts how often a thread has been given a processor (the third number of /proc/TID/schedstat), which costs
two microseconds to read.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

#: How long a page is kept at most.
LONGEST_SECONDS = 0.02
#: How long a page is kept in any case: what came with it is of no use without it.
FRESH_SECONDS = 200e-6
#: After how long to look again whether it can go; twice as long each time.
FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 50e-6, 2e-3


class ProcessorUse:
    """How long threads have had a processor, and how often they were given one, by the kernel's count."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}

    def turns(self, tid: int) -> int:
        """Return how often a thread has been given a processor; -1 if it is gone, or the kernel does not count."""
        return self._read(tid)[1]

    def nanoseconds(self, tid: int) -> int:
        """Return how long a thread has had a processor, as of its last turn or the last tick; -1 as above."""
        return self._read(tid)[0]

    def _read(self, tid: int) -> tuple[int, int]:
        file = self._files.get(tid)
        try:
            if file is None:
                file = self._files[tid] = os.open(f"/proc/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            used, _, turns = os.pread(file, 64, 0).split()
            return int(used), int(turns)
        except (OSError, ValueError):
            self.forget(tid)
            return -1, -1

    def forget(self, tid: int) -> None:
        """Keep no descriptor for a thread."""
        file = self._files.pop(tid, None)
        if file is not None:
            os.close(file)


@dataclass(slots=True)
class _Holding:
    """waiting: who was woken, and how often each had run before. next_look: after how long to look next."""

    waiting: list[tuple[int, int]]
    until: float
    next_look: float = FIRST_LOOK_SECONDS


class Holdings:
    """Which pages are kept, and for whom."""

    def __init__(self, use: ProcessorUse) -> None:
        self._use = use
        self._pages: dict[int, _Holding] = {}
        self._fresh: dict[int, float] = {}  # by page that came lately: until when to keep it
        self._last_came = 0.0
        self._for = 0  # the thread that was let go on last

    def came(self, pages: Iterable[int], now: float) -> None:
        """Keep *pages*, which come now, for `FRESH_SECONDS`. now: of the monotonic clock, in seconds."""
        if now - self._last_came > FRESH_SECONDS:
            self._fresh.clear()
        self._last_came = now
        self._fresh.update(dict.fromkeys(pages, now + FRESH_SECONDS))

    def goes_on(self, tid: int) -> None:
        """Note that a thread is let go on: what has come lately is for that."""
        self._for = tid

    def sleeps(self, tid: int) -> None:
        """Note that a thread falls asleep: what came for it is not kept any longer."""
        if tid == self._for:
            self._fresh.clear()

    def begin(self, page: int, tids: list[int]) -> None:
        """Keep *page*, for which *tids* wait; they are woken right afterwards."""
        if not tids:
            self._pages.pop(page, None)
            return
        waiting = [(tid, self._use.turns(tid)) for tid in tids]
        self._pages[page] = _Holding(waiting, time.monotonic() + LONGEST_SECONDS)

    def wait_for_any(self, pages: Iterable[int], now: float) -> dict[int, float]:
        """Return those of *pages* that may not go yet, each with what `wait` says; the others go."""
        fresh, kept = self._fresh, self._pages
        return {
            page: seconds
            for page in pages
            if (page in kept or page in fresh) and (seconds := self.wait(page, now))
        }

    def wait(self, page: int, now: float) -> float:
        """Return after how many seconds to ask again whether *page* may go; 0 if it may, and then it does.

        now: as for `came`.
        """
        fresh = self._fresh.get(page)
        if fresh is not None:
            if fresh > now:
                return fresh - now
            del self._fresh[page]
        holding = self._pages.get(page)
        if holding is None:
            return 0.0
        unused = all(turns == self._use.turns(tid) != -1 for tid, turns in holding.waiting)
        if unused and now < holding.until:
            seconds = holding.next_look
            holding.next_look = min(2 * seconds, LAST_LOOK_SECONDS)
            return seconds
        del self._pages[page]
        return 0.0
