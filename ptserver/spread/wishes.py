"""Goroutines that an operator, or who hears of events, wants at some host. Pure.

A goroutine goes where it is wanted when its thread is next stopped while it computes: at once if it runs, and
otherwise at the next of the looks that are taken at what runs. The wish stays, so it goes there again after a sleep.
Which goroutine a thread runs is read in the program's memory, and in its registers, which its assembly code may use
for something else.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ptserver.spread.requests import Later, Requests
from ptserver.spread.threads import Thread, Threads

#: How long until the first look for a goroutine, and between two of them at most; it doubles each time.
_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.002, 0.05
_WORD = 8


@dataclass(slots=True)
class Wish:
    """goroutine: the address of its g; goid_at: where its number is; tid: the thread that it was seen on, or 0.

    curg_at: where that thread's M says what it runs. done: called once, when the goroutine is on its way; None then,
    and if nobody waits for that: then it is not looked for either.
    """

    goroutine: int
    goid: int
    goid_at: int
    tid: int
    curg_at: int
    to: int
    done: Callable[[], None] | None


class Wishes:
    """All wishes by goroutine."""

    def __init__(self, threads: Threads, requests: Requests, later: Later) -> None:
        self._threads = threads
        self._requests = requests
        self._later = later
        self._wishes: dict[int, Wish] = {}

    def add(self, wish: Wish) -> None:
        """Note a wish, in place of an earlier one for the same goroutine, and look for the goroutine."""
        self._wishes[wish.goroutine] = wish
        self._look(wish, _FIRST_LOOK_SECONDS)

    def find(self, goroutine: int) -> Wish | None:
        """Return the wish for the goroutine whose g is at an address, if there is one."""
        return self._wishes.get(goroutine)

    def forget(self, goroutine: int, goid: int) -> None:
        """Want nothing any more of a goroutine that has ended."""
        wish = self._wishes.get(goroutine)
        if wish is not None and wish.goid == goid and wish.done is None:
            del self._wishes[goroutine]

    def forget_host(self, host: int) -> None:
        """Want nothing at *host* any more."""
        self._wishes = {key: wish for key, wish in self._wishes.items() if wish.to != host}

    def decide(self, thread: Thread, then: Callable[[int | None], None]) -> None:
        """Call *then* with the host where what a stopped thread runs is wanted; None if nowhere in particular."""
        wish = self._wishes.get(thread.goroutine)
        if wish is not None:
            self._check(wish, thread, then)
            return
        for wish in self._wishes.values():
            if wish.done is not None and wish.tid == thread.tid:
                self._check_thread(wish, thread, then)
                return
        then(None)

    def _check_thread(self, wish: Wish, thread: Thread, then: Callable[[int | None], None]) -> None:
        def check(data: bytes) -> None:
            if int.from_bytes(data, "little") == wish.goroutine:
                self._check(wish, thread, then)
            else:
                wish.tid = 0
                then(None)

        self._requests.read(wish.curg_at, _WORD, check)

    def _check(self, wish: Wish, thread: Thread, then: Callable[[int | None], None]) -> None:
        def check(data: bytes) -> None:
            if int.from_bytes(data, "little") != wish.goid:  # it has ended, and another has its place
                self._wishes.pop(wish.goroutine, None)
                then(None)
                return
            thread.pinned = thread.pinned and wish.to != 0
            then(wish.to)
            if wish.done is not None:
                done, wish.done = wish.done, None
                done()

        self._requests.read(wish.goid_at, _WORD, check)

    def _look(self, wish: Wish, seconds: float) -> None:
        if self._wishes.get(wish.goroutine) is not wish or wish.done is None:
            return
        thread = self._threads.find(wish.tid)
        for each in (thread,) if thread is not None else tuple(self._threads):
            self._threads.stop(each)
        self._later(seconds, lambda: self._look(wish, min(2 * seconds, _LOOK_SECONDS)))
