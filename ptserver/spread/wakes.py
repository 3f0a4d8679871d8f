"""When threads of a spread program go on that others wake. Pure.

Who wakes another mostly falls asleep itself right afterwards, and needs the same pages of Go's scheduler for that.
So one who is woken at another host goes on when its waker makes its next call, or a little later. If that call is to
fall asleep, nobody else needs these pages, and those that the woken one waited for when it was woken before go ahead
of it.
"""

import time

from ptserver.spread.companions import Companions
from ptserver.spread.futexes import Futexes
from ptserver.spread.messages import Woke
from ptserver.spread.pages import PageDirectory
from ptserver.spread.requests import Later
from ptserver.spread.threads import Thread, Threads

#: How long a thread that another host's thread has woken waits at most for that one to make its next call, and how
#: often it waits so long if that one itself waits for pages meanwhile. Also how long it waits for its own pages.
_LATE_SECONDS, _LATE_TIMES = 500e-6, 4


class Wakes:
    """Lets threads go on; *later* calls a function after so many seconds."""

    def __init__(
        self, threads: Threads, futexes: Futexes, companions: Companions, pages: PageDirectory, later: Later
    ) -> None:
        self._threads = threads
        self._futexes = futexes
        self._companions = companions
        self._pages = pages
        self._later = later
        self._late: dict[int, list[int]] = {}  # by the thread that has woken them

    def take(self, _host: int, message: Woke) -> None:
        """Let threads go on that another wakes; those of other hosts a little later."""
        waker = self._threads.find(message.tid)
        if waker is None:  # the program ends
            return
        self.go_on(waker.tid)
        woken = [self._threads[tid] for tid in self._futexes.wake(message.address, message.count)]
        late = [thread.tid for thread in woken if thread.host != waker.host]
        for thread in woken:
            if thread.host == waker.host:
                self._threads.answer(thread, 0)
        if late:
            self._late[waker.tid] = late
            self._expire(waker, late, _LATE_TIMES)

    def go_on(self, waker: int) -> None:
        """Let those go on that *waker* has woken last: it makes another call, or has ended, or is asleep."""
        for tid in self._late.pop(waker, ()):
            thread = self._threads.find(tid)
            if thread is None:
                continue
            wants = self._companions.wakes(tid, thread.host, time.monotonic())
            if self._futexes.sleeps(waker):
                self._send_pages(thread, wants)
            else:
                self._threads.answer(thread, 0)

    def _expire(self, waker: Thread, late: list[int], times: int) -> None:
        faults = waker.faults

        def expire() -> None:
            if self._late.get(waker.tid) is not late:
                return
            if times > 1 and waker.faults > faults:
                self._expire(waker, late, times - 1)
            else:
                self.go_on(waker.tid)

        self._later(_LATE_SECONDS, expire)

    def _send_pages(self, thread: Thread, wants: list[tuple[int, bool]]) -> None:
        """Let a thread go on as soon as it has the pages that it *wants*, or soon anyway.

        Its host waits for those that come to it straight.
        """
        coming = 1
        woken = False

        def arrived() -> None:
            nonlocal coming
            coming -= 1
            if not coming:
                wake()

        def wake() -> None:
            nonlocal woken
            if not woken:
                woken = True
                if self._threads.find(thread.tid) is thread:
                    straight = [page for page, _ in wants if self._pages.comes_straight(page, thread.host)]
                    self._threads.answer(thread, 0, tuple(straight))

        coming += self._pages.fetch_all_ahead(thread.host, wants, arrived)
        arrived()
        if not woken:
            self._later(_LATE_SECONDS, wake)
