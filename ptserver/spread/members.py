"""Which hosts a spread program has: they come while it runs, and they can go again with nothing lost. Pure.

A host that leaves is emptied first: nothing goes there any more, its threads move to host 0 as they can be had, and
then its pages.
"""

from collections.abc import Callable
from enum import Enum

from ptserver.spread.futexes import Futexes
from ptserver.spread.pages import PageDirectory
from ptserver.spread.requests import Later, Requests
from ptserver.spread.threads import Threads, Where

#: How often threads are asked to stop until they do.
_AGAIN_SECONDS = 0.005
#: How many pages of a host that leaves are on their way at once.
_PAGES_AT_ONCE = 256


class Condition(Enum):
    """What can be done with a host."""

    JOINS = "joins"
    READY = "ready"
    LEAVES = "leaves"


class Members:
    """The hosts by number. present: those that have an instance, also while they join and leave; the list lives."""

    def __init__(self, count: int) -> None:
        self.present = list(range(count))
        self._conditions = dict.fromkeys(self.present, Condition.READY)

    @property
    def slots(self) -> int:
        """One more than the highest number."""
        return self.present[-1] + 1

    def condition(self, host: int) -> Condition | None:
        """Return what can be done with a host, None if there is none of that number."""
        return self._conditions.get(host)

    def is_ready(self, host: int) -> bool:
        """Whether threads may go there."""
        return self._conditions.get(host) is Condition.READY

    def leaves(self, host: int) -> bool:
        """Whether it is being emptied, or gone."""
        return self._conditions.get(host) in (Condition.LEAVES, None)

    def join(self, host: int) -> None:
        """Note a host that prepares itself. Numbers are not used again."""
        self.present.append(host)
        self._conditions[host] = Condition.JOINS

    def set_ready(self, host: int) -> None:
        """Let threads go there."""
        self._conditions[host] = Condition.READY

    def set_leaving(self, host: int) -> None:
        """Let nothing go there any more."""
        self._conditions[host] = Condition.LEAVES

    def remove(self, host: int) -> None:
        """Forget it."""
        self.present.remove(host)
        del self._conditions[host]


class Emptying:
    """Empties one host, and calls *then* when it has nothing of the program any more."""

    def __init__(
        self,
        host: int,
        threads: Threads,
        futexes: Futexes,
        pages: PageDirectory,
        requests: Requests,
        later: Later,
        then: Callable[[], None],
    ) -> None:
        self._host = host
        self._threads = threads
        self._futexes = futexes
        self._pages = pages
        self._requests = requests
        self._later = later
        self._then = then

    def go_on(self) -> None:
        """Do what can be done now; goes on by itself."""
        here = self._threads.are_at(self._host)
        for thread in here:
            if thread.host != self._host:
                continue  # it is on its way, and sent on when it arrives
            self._threads.stop(thread)
            if thread.where is Where.ASKS and (thread.calls or self._futexes.sleeps(thread.tid)):
                self._threads.move(thread, 0, result=None, held=True)
        if here:
            self._later(_AGAIN_SECONDS, self.go_on)
        elif self._pages.evict(self._host, 0, _PAGES_AT_ONCE) or self._requests.is_asked(self._host):
            self._later(0.0, self.go_on)
        else:
            self._then()
