"""A poll loop on one thread: descriptors that have something, timers that are due. Nothing else ever waits.

Waking a sleeping processor takes longer than most calls that are served, on virtual machines by far. Who expects
something at once therefore calls `expect`, and the loop looks again and again for a short time before it sleeps. It
does not yield meanwhile: a busy machine would take it for idle. With a single processor it never spins; and each time
that nothing came while it was awake it lets more chances pass, because then others need the processor more.
"""

import heapq
import itertools
import os
import select
import time
from collections.abc import Callable

Handler = Callable[[], None]
#: Deals with what has happened; returns whether anything had.
Look = Callable[[], bool]

#: Program, host and a server on the same machine all get a processor only from so many on.
_ENOUGH_PROCESSORS = 3

#: How long an answer, or the next call, is waited for awake: about as long as the other side takes for it.
SPIN_SECONDS = 150e-6

#: After so many times in vain, 1 chance in 2**n to stay awake is taken.
_MAX_MISSES = 6

#: How often who stays awake for something looks for that before it looks for all else.
_LOOKS_BETWEEN = 8

#: What poll(2) counts time in, and the first descriptor that select(2), which is more exact, cannot have.
_POLL_UNIT_SECONDS, _MAX_SELECT_FD = 1e-3, 1024

#: How many rounds in a row may find something to do before what waits to be said is said.
_MAX_BUSY_ROUNDS = 32


def may_wait_awake() -> bool:
    """Whether who waits for another process can stay awake though a third one will have to run right afterwards."""
    return len(os.sched_getaffinity(0)) >= _ENOUGH_PROCESSORS


class Awake:
    """Waits awake for what is about to happen, as long as that pays; one for each kind of thing that is.

    seconds: how long each time.
    """

    def __init__(self, seconds: float = SPIN_SECONDS) -> None:
        self._seconds = seconds
        self._may = len(os.sched_getaffinity(0)) > 1
        self._misses = 0
        self._chances_to_pass = 0

    def pays(self) -> bool:
        """Whether to stay awake this time, as far as one can tell from the times before."""
        if self._chances_to_pass:
            self._chances_to_pass -= 1
            return False
        return self._may

    def wait(self, happens: Callable[[], object], gives_way: Callable[[], bool] = lambda: False) -> bool:
        """Call *happens* again and again, for a moment at most; return whether it came to be true.

        gives_way: whether there is something else to do, for which it is given up.
        """
        until, looks = time.monotonic() + self._seconds, 0
        while not happens():
            looks += 1
            if looks % _LOOKS_BETWEEN == 0:
                if gives_way():
                    return False
                if time.monotonic() >= until:
                    self._misses = min(self._misses + 1, _MAX_MISSES)
                    self._chances_to_pass = 1 << self._misses
                    return False
        self._misses = 0
        return True


class PollLoop:
    """Calls handlers. All belongs to the thread that calls `round`; handlers may change the loop.

    prompt: what waits to be said is said after each round, even if there is more to do: others wait for it.
    awake_seconds: how long it stays awake for what is expected.
    """

    def __init__(self, *, prompt: bool = False, awake_seconds: float = SPIN_SECONDS) -> None:
        self._prompt = prompt
        self._awake = Awake(awake_seconds)
        self._expects = False
        self._poll = self._awake_poll = select.poll()
        self._look: Look | None = None
        self._looked_at = -1
        self._events: dict[int, int] = {}
        self._selected: tuple[list[int], list[int]] | None = None  # what select(2) takes, until that changes
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Handler]] = []
        self._order = itertools.count()
        self._busy_rounds = 0

    def watch(self, fd: int, handler: Handler, events: int = select.POLLIN) -> None:
        """Have *handler* called when *fd* has one of *events*, or is hung up; for 0, never again."""
        if self._events.get(fd, 0) == events:
            return
        self._events[fd] = events
        self._selected = None
        if events:
            self._handlers[fd] = handler
            self._poll.register(fd, events)
            if self._look is not None and fd != self._looked_at:
                self._awake_poll.register(fd, events)
        else:
            self._forget(fd)

    def unwatch(self, fd: int) -> None:
        """Forget *fd*; no matter if it was not watched."""
        if self._events.pop(fd, 0):
            self._selected = None
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        del self._handlers[fd]
        self._poll.unregister(fd)
        if self._look is not None and fd != self._looked_at:
            self._awake_poll.unregister(fd)

    def look_awake(self, fd: int, look: Look) -> None:
        """While awake, call *look* instead of asking whether *fd* has something: it finds the same sooner."""
        self._look, self._looked_at = look, fd
        self._awake_poll = select.poll()
        for other, events in self._events.items():
            if events and other != fd:
                self._awake_poll.register(other, events)

    def later(self, seconds: float, handler: Handler) -> None:
        """Have *handler* called once, *seconds* from now or a little later."""
        heapq.heappush(self._timers, (time.monotonic() + max(seconds, 0.0), next(self._order), handler))

    def expect(self) -> None:
        """Stay awake for a moment in the next round, if that has paid lately: something is about to happen."""
        if self._awake.pays():
            self._expects = True

    def round(self, before_waiting: Handler) -> None:
        """Deal with all that has happened; if nothing has, call *before_waiting*, and wait until something does.

        Who sends what it has to say in *before_waiting* says much at a time when there is much to do. It is also
        called if there has been no time to wait for a while.
        """
        handlers = self._handlers
        events: list[tuple[int, int]] | None = None
        if not self._prompt:
            events = self._poll.poll(0)
            self._busy_rounds += 1
        if not events or self._busy_rounds > _MAX_BUSY_ROUNDS:
            self._busy_rounds = 0
            before_waiting()
            if not events:
                events = self._spin() if self._expects else None
                if events is None:
                    events = self._wait()
        for fd, _ in events or ():
            handler = handlers.get(fd)  # none if an earlier handler of this round has unwatched it
            if handler is not None:
                handler()
        if self._timers:
            self._fire_timers()

    def has_other(self, fd: int) -> bool:
        """Whether there is something to do that *fd* does not report."""
        if self._timers and self._timers[0][0] <= time.monotonic():
            return True
        return any(other != fd for other, _ in self._poll.poll(0))

    def _spin(self) -> list[tuple[int, int]] | None:
        """Return what happens while it pays to wait awake, but for what `look_awake` is for; None if nothing does."""
        self._expects = False
        events: list[tuple[int, int]] = []
        deal, poll = self._look, self._awake_poll.poll

        def look() -> bool:
            nonlocal events
            if deal is not None and deal():
                return True
            events = poll(0)
            return bool(events)

        return events if self._awake.wait(look) else None

    def _wait(self) -> list[tuple[int, int]]:
        if not self._timers:
            return self._poll.poll()
        seconds = max(0.0, self._timers[0][0] - time.monotonic())
        if 0 < seconds < _POLL_UNIT_SECONDS and max(self._events, default=0) < _MAX_SELECT_FD:
            return self._select(seconds)
        return self._poll.poll(seconds * 1000)

    def _select(self, seconds: float) -> list[tuple[int, int]]:
        """As poll(2); what is hung up can be read, and what has failed can be read and written."""
        if self._selected is None:
            reading, writing = (
                [fd for fd, events in self._events.items() if events & event]
                for event in (select.POLLIN, select.POLLOUT)
            )
            self._selected = reading, writing
        readable, writable, _ = select.select(*self._selected, (), seconds)
        found = [(fd, select.POLLIN) for fd in readable]
        return found + [(fd, select.POLLOUT) for fd in writable if fd not in readable]

    def _fire_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
