"""Hosts that want the same pages all the time take turns with them. Pure.

Two goroutines that allocate, at two hosts, write the same two dozen records of the runtime. Handed out one by one as
they are asked for, those pages are never all at one host, and each host gets one step further for each that it waits
for. So a page that one writes and others want again and again is *hot*, and hot pages go together: one host has its
*turn*, and gets all of them that it wanted in the turns before; what others want of them waits.

A turn lasts for as long as it is made use of. While another host waits, who has the turn is asked from time to time
whether it still writes hot pages (`Watch`); if not, or if it has for long enough, the next has its turn. A turn is
over as well when the thread falls asleep for which it is: goroutines that talk pass the pages on in time. What is not
hot is handed out as it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ptserver.spread.messages import Watch, Watched
from ptserver.spread.pages import PageDirectory, Send
from ptserver.spread.requests import Later

#: How long a turn is at least and at most, while another host waits. It is asked for its use after the least time,
#: and then after pauses that double.
_LEAST_SECONDS, _MOST_SECONDS = 0.0005, 0.05
#: The same in round trips to the farthest host, if that is more.
_LEAST_ROUND_TRIPS, _MOST_ROUND_TRIPS = 1, 20
#: A page is hot when one host after another has asked for it so often, with pauses of so much at most.
_HOT_TIMES, _HOT_SECONDS, _HOT_ROUND_TRIPS = 2, 0.02, 10
#: For how many turns a page comes along before it has to be waited for again, and how many do.
_TURNS, _MOST_ALONG = 8, 64
#: How many pages are remembered.
_MOST_PAGES = 4096


@dataclass(slots=True)
class _Page:
    """host, tid, write: who asked last, and for what; at: when it came.

    times: how often that was another thread at another host, so that the page had to move.
    """

    host: int
    tid: int
    at: float
    write: bool
    times: int = 0


@dataclass(slots=True)
class _Host:
    """What is known of a host that wants hot pages.

    wanted: by page, the last wanted last: whether to write, and for how many turns it comes along still. tid: which
    thread wanted one last.
    """

    wanted: dict[int, tuple[bool, int]]
    tid: int = 0


class Turns:
    """Who has the turn. *now* is the time in seconds, *later* calls a function after so many."""

    def __init__(self, pages: PageDirectory, send: Send, now: Callable[[], float], later: Later) -> None:
        self._pages = pages
        self._send = send
        self._now = now
        self._later = later
        self._least, self._most, self._hot_pause = _LEAST_SECONDS, _MOST_SECONDS, _HOT_SECONDS
        self._seen: dict[int, _Page] = {}
        self._hosts: dict[int, _Host] = {}
        self._waiting: dict[
            int, list[tuple[int, bool]]
        ] = {}  # by host, in the order in which they have their turns
        self._turn = 0  # how many there have been
        self._host = -1  # who has it, or had it last
        self._until = 0.0
        self._pause = 0.0

    def note_round_trip(self, seconds: float) -> None:
        """Note how far a host is: turns are longer than what it takes to pass them on."""
        self._least = max(self._least, _LEAST_ROUND_TRIPS * seconds)
        self._most = max(self._most, _MOST_ROUND_TRIPS * seconds)
        self._hot_pause = max(self._hot_pause, _HOT_ROUND_TRIPS * seconds)

    def defers(self, tid: int, host: int, page: int, *, write: bool) -> bool:
        """Note that a thread at *host* waits for a page; return True if that comes by itself with the host's turn."""
        now = self._now()
        if not self._is_hot(tid, host, page, now, write or self._pages.is_migratory(page)):
            return False
        known = self._hosts.get(host)
        if known is None:
            known = self._hosts[host] = _Host({})
        known.wanted[page] = (known.wanted.pop(page, (False, 0))[0] or write, _TURNS)
        known.tid = tid
        if host == self._host and now < self._until:
            return False
        if now >= self._until and not self._waiting:
            self._begin(host, now)
            return False
        waiting = self._waiting.setdefault(host, [])
        waiting.append((page, write))
        if len(self._waiting) == len(waiting) == 1:
            self._look_later(self._until - self._most + self._least - now)
        return True

    def keeps(self, host: int, page: int) -> bool:
        """Whether a page must not go to *host* ahead, since another has its turn with it."""
        if host == self._host or self._now() >= self._until:
            return False
        seen = self._seen.get(page)
        return seen is not None and seen.times >= _HOT_TIMES

    def sleeps(self, tid: int, host: int) -> None:
        """Note that a thread falls asleep: if the turn is for that, it is over."""
        if host == self._host and self._hosts[host].tid == tid:
            self._until = 0.0
            self._next()

    def take_watched(self, host: int, message: Watched) -> None:
        """Take the word of a host whether it still writes hot pages."""
        if message.turn != self._turn:
            return
        if message.written:
            self._pause *= 2
            self._look_later(self._pause)
        else:
            self._next()

    def forget_host(self, host: int) -> None:
        """Forget a host that is gone."""
        self._waiting.pop(host, None)
        if host == self._host:
            self._host, self._until = -1, 0.0
            self._next()
        self._hosts.pop(host, None)

    def _is_hot(self, tid: int, host: int, page: int, now: float, write: bool) -> bool:
        seen = self._seen.get(page)
        if seen is None:
            if len(self._seen) >= _MOST_PAGES:
                del self._seen[next(iter(self._seen))]
            self._seen[page] = _Page(host, tid, now, write)
            return False
        if now - seen.at > self._hot_pause:
            seen.times = 0
        elif host != seen.host and tid != seen.tid and (write or seen.write):
            seen.times += 1
        seen.host, seen.tid, seen.at, seen.write = host, tid, now, write
        return seen.times >= _HOT_TIMES

    def _begin(self, host: int, now: float) -> None:
        self._turn += 1
        self._host, self._until, self._pause = host, now + self._most, self._least

    def _look_later(self, seconds: float) -> None:
        turn = self._turn

        def look() -> None:
            if turn == self._turn and self._waiting:
                self._look()

        self._later(max(seconds, 0.0), look)

    def _look(self) -> None:
        """Give the turn to the next if it is over, or find out whether it is."""
        page = next(iter(self._waiting.values()))[0][0]
        if self._now() >= self._until:
            self._next()
        elif self._pages.is_busy(range(page, page + 1)):  # it is just on its way
            self._look_later(self._least)
        elif self._pages.writer(page) != self._host:
            self._next()
        else:
            mine = self._hosts[self._host].wanted
            pages = [each for each in mine if self._pages.writer(each) == self._host][-_MOST_ALONG:]
            self._send(self._host, Watch(self._turn, (page, *pages)))

    def _next(self) -> None:
        """Give the turn to who has waited longest, and what it wants with it."""
        if not self._waiting:
            return
        host = next(iter(self._waiting))
        asked = self._waiting.pop(host)
        known = self._hosts[host]
        now = self._now()
        self._begin(host, now)
        for page, write in asked:
            if (seen := self._seen.get(page)) is not None:
                seen.at = now
            self._pages.request(host, page, write=write)
        for page in [page for page, (_, turns) in known.wanted.items() if not turns]:
            del known.wanted[page]
        for page, (write, turns) in list(known.wanted.items())[-_MOST_ALONG:]:
            known.wanted[page] = write, turns - 1
            self._pages.fetch_ahead(host, page, write=write)
        if self._waiting:
            self._look_later(self._least)
