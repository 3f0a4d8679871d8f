"""A model of a spread program's hosts: the real page directory, turns and read-ahead, simulated hosts, threads, time.

A thread is what a fault log (`ptserver.spread.fault_log`) has of it: it computes for a while, touches a page, and so
on. What it touches without a fault is not known, so a page that it gets it keeps until another thread wants it, and
has no use for it any more when it is asked. The home and each agent do one thing at a time; a message takes half a
round trip, to host 0 none.
"""

import heapq
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ptserver.spread.companions import Companions
from ptserver.spread.messages import AllowWrite, DropPage, SpreadMessage, TryAgain, Watch, Watched, ZeroPages
from ptserver.spread.outgoing import Outgoing
from ptserver.spread.page_messages import Access, PutPages, SendPages
from ptserver.spread.pages import PageDirectory
from ptserver.spread.turns import Turns


class Touch(NamedTuple):
    """A thread computes for so many seconds, and then touches a page."""

    after: float
    page: int
    write: bool


@dataclass(frozen=True)
class Costs:
    """In seconds. home, agent: what one message costs its receiver; wake: until a thread that waited goes on;
    round_trip: between host 0 and another. processors: how many all hosts share, 0 for one each.
    """

    home: float = 30e-6
    agent: float = 30e-6
    wake: float = 60e-6
    round_trip: float = 70e-6
    processors: int = 0

    def scaled(self, factor: float) -> "Costs":
        """Return the same for a machine that is slower by *factor*."""
        return Costs(
            *(each * factor for each in (self.home, self.agent, self.wake, self.round_trip)), self.processors
        )


class Recorded(NamedTuple):
    """threads: by (host, thread) what it did; seconds: from the first fault away from host 0 to the last."""

    threads: dict[tuple[int, int], list[Touch]]
    seconds: float


def read_log(path: Path, costs: Costs) -> Recorded:
    """Return what a fault log has; *costs* are taken off the time between a grant and the next fault."""
    own = costs.wake + 2 * costs.agent
    threads: dict[tuple[int, int], list[Touch]] = defaultdict(list)
    waits: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    went_on: dict[tuple[int, int], float] = {}
    away: list[float] = []
    for line in path.read_text(encoding="ascii").splitlines():
        entry = json.loads(line)
        if "tid" in entry:
            key = entry["host"], entry["tid"]
            since = went_on.get(key, entry["at"])
            computed = max(entry["at"] - since - own - (costs.round_trip if key[0] else 0.0), 0.0)
            threads[key].append(Touch(computed, entry["page"], entry["write"]))
            waits[entry["host"], entry["page"]].append(key)
            if key[0]:
                away.append(entry["at"])
        else:
            for page in range(entry["page"], entry["page"] + entry["count"]):
                for key in waits.pop((entry["host"], page), ()):
                    went_on[key] = entry["at"]
    return Recorded(threads, max(away) - min(away) if away else 0.0)


def spread_over(recorded: Recorded, hosts: int) -> list[tuple[int, list[Touch]]]:
    """Return (host, what it does) of the threads of a program like the recorded one over so many hosts.

    Host 0's are as recorded. The others have what was recorded of one, in turns: the pages that only one host has
    touched are each host's own.
    """
    touched: dict[int, set[int]] = defaultdict(set)
    for (host, _), touches in recorded.threads.items():
        for touch in touches:
            touched[touch.page].add(host)
    kinds = sorted({host for host, _ in recorded.threads if host})
    program = [(0, touches) for (host, _), touches in recorded.threads.items() if host == 0]
    for host in range(1, hosts):
        like = kinds[(host - 1) % len(kinds)]
        for (other, _), touches in recorded.threads.items():
            if other == like:
                program.append(
                    (
                        host,
                        [
                            touch
                            if len(touched[touch.page]) > 1
                            else touch._replace(page=touch.page + (host << 40))
                            for touch in touches
                        ],
                    )
                )
    return program


@dataclass
class _Host:
    number: int
    free: float = 0.0
    writable: dict[int, bool] = field(default_factory=dict)
    waiting: dict[int, list["_Thread"]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class _Thread:
    number: int
    host: _Host
    touches: list[Touch]
    at: int = 0
    ended: float = 0.0


class Model:
    """Runs *program*, as `spread_over` returns it, over *hosts* hosts."""

    def __init__(self, program: Iterable[tuple[int, list[Touch]]], hosts: int, costs: Costs) -> None:
        self._costs = costs
        self._hosts = [_Host(number) for number in range(hosts)]
        self._threads = [
            _Thread(number, self._hosts[host], touches) for number, (host, touches) in enumerate(program)
        ]
        self._slower = max(1.0, hosts / costs.processors) if costs.processors else 1.0
        self._outgoing = Outgoing(self._to_host)
        self._pages = PageDirectory(self._outgoing, lambda page: True, now=lambda: self._now)
        self._turns = Turns(self._pages, self._outgoing.say, lambda: self._now, self._later)
        self._turns.note_round_trip(costs.round_trip)
        self._companions = Companions()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = self._home_free = 0.0
        self.faults = 0

    def run(self) -> float:
        """Return after how many seconds the last thread away from host 0 has ended."""
        for thread in self._threads:
            self._compute(thread)
        while self._events:
            self._now, _, do = heapq.heappop(self._events)
            do()
        return max(thread.ended for thread in self._threads if thread.host.number or len(self._hosts) == 1)

    def _at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), do))

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        self._at(self._now + seconds, partial(self._decide, do))

    def _decide(self, do: Callable[[], None]) -> None:
        do()
        self._outgoing.flush()

    def _way(self, host: _Host) -> float:
        return self._costs.round_trip / 2 if host.number else 0.0

    def _compute(self, thread: _Thread) -> None:
        """Have a thread go on with its next touch."""
        if thread.at == len(thread.touches):
            thread.ended = self._now
        else:
            after = thread.touches[thread.at].after * self._slower
            self._at(self._now + after, partial(self._touch, thread))

    def _touch(self, thread: _Thread) -> None:
        touch, host = thread.touches[thread.at], thread.host
        writable = host.writable.get(touch.page)
        if writable or (writable is not None and not touch.write):
            thread.at += 1
            self._compute(thread)
            return
        self.faults += 1
        host.waiting[touch.page].append(thread)
        self._to_home(host, lambda: self._fault(thread, touch))

    def _fault(self, thread: _Thread, touch: Touch) -> None:
        host, page, write = thread.host.number, touch.page, touch.write
        if not self._turns.defers(thread.number, host, page, write=write):
            self._pages.request(host, page, write=write)
        wants = self._companions.wants(thread.number, host, page, write=write, now=self._now)
        self._pages.fetch_all_ahead(host, [want for want in wants if not self._turns.keeps(host, want[0])])

    def _take_data(self, pages: tuple[int, ...]) -> None:
        self._pages.take_data(pages, b"\1" * len(pages), b"")

    def _to_home(self, host: _Host, do: Callable[[], None]) -> None:
        """Have the agent of *host* say something, and the home do what follows, each when it comes to it."""
        host.free = max(host.free, self._now) + self._costs.agent

        def arrive() -> None:
            self._home_free = max(self._home_free, self._now) + self._costs.home
            self._at(self._home_free, partial(self._decide, do))

        self._at(host.free + self._way(host), arrive)

    def _to_host(self, number: int, message: SpreadMessage) -> None:
        host = self._hosts[number]

        def arrive() -> None:
            host.free = max(host.free, self._now) + self._costs.agent
            self._at(host.free, lambda: self._take(host, message))

        self._at(self._now + self._way(host), arrive)

    def _take(self, host: _Host, message: SpreadMessage) -> None:
        match message:
            case SendPages(pages=pages, keep=keep):
                for page, kept in zip(pages, keep, strict=True):
                    if kept:
                        host.writable[page] = False
                    else:
                        del host.writable[page]
                self._to_home(host, lambda: self._take_data(pages))
            case DropPage(page=page):
                del host.writable[page]
                self._to_home(host, lambda: self._pages.take_dropped(page))
            case PutPages(pages=pages, access=access):
                for page, may in zip(pages, access, strict=True):
                    self._give(host, page, may != Access.READ)
            case Watch(turn=turn):
                answer = Watched(turn, written=False)
                self._to_home(host, lambda: self._turns.take_watched(host.number, answer))
            case ZeroPages(page=first, count=count):
                for page in range(first, first + count):
                    self._give(host, page, True)
            case AllowWrite(page=page):
                self._give(host, page, True)
            case TryAgain(page=page):
                self._give(host, page, host.writable[page])

    def _give(self, host: _Host, page: int, writable: bool) -> None:
        host.writable[page] = writable
        for thread in host.waiting.pop(page, ()):
            if writable or not thread.touches[thread.at].write:
                thread.at += 1  # it touches the page now, though it goes on later: so nobody starves
            self._at(self._now + self._costs.wake, partial(self._compute, thread))
