"""What happened on several hosts, in the order of time. Pure.

Each host says what happened there some milliseconds later, and until when it knows all of it. What is older than the
least of those moments is complete.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class TimeOrder(Generic[T]):
    """Takes what happened, from hosts that each tell it in any order, and gives it back in that of time."""

    def __init__(self) -> None:
        self._until_ns: dict[int, int] = {}
        self._waiting: list[tuple[int, int, int, T]] = []
        self._serial = count()

    def join(self, host: int) -> None:
        """Wait for what *host* will say, from now on."""
        self._until_ns.setdefault(host, 0)

    def remove(self, host: int) -> None:
        """Do not wait for *host* any more."""
        self._until_ns.pop(host, None)

    def known(self, host: int, until_ns: int) -> None:
        """Note that *host* has said all that happened before *until_ns*."""
        if host in self._until_ns:
            self._until_ns[host] = until_ns

    def add(self, host: int, items: Iterable[tuple[int, T]]) -> None:
        """Take what happened at *host*, each with its moment in nanoseconds."""
        for at_ns, item in items:
            heapq.heappush(self._waiting, (at_ns, next(self._serial), host, item))

    def take(self) -> Iterator[tuple[int, T]]:
        """Yield what is complete, each with its host; what comes too late for its place is next."""
        until_ns = min(self._until_ns.values(), default=0)
        while self._waiting and self._waiting[0][0] < until_ns:
            _, _, host, item = heapq.heappop(self._waiting)
            yield host, item

    def is_over(self, end_ns: int) -> bool:
        """Whether all hosts have said all until *end_ns*."""
        return min(self._until_ns.values(), default=end_ns) >= end_ns
