"""What is known of the goroutines of a spread program, for the policy that places them. Pure.

Pages are counted for the thread that waits for them, and are the goroutine's that it is found to run when it is next
stopped. A g that has ended is used again for another goroutine, which begins with what is left of its statistics.
"""

from collections import Counter
from dataclasses import dataclass, field

from ptserver.spread.placement import GoroutineFacts
from ptserver.spread.threads import Thread

#: How many goroutines are remembered; what has not been seen for longest is forgotten.
_MAX_GOROUTINES = 20_000


@dataclass(slots=True)
class _Known:
    computed: int = 0
    moves: int = 0
    pulls: Counter[int] = field(default_factory=Counter)


class Statistics:
    """By goroutine, or by thread where that is not known."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._pulls: dict[int, Counter[int]] = {}

    def pulled(self, tid: int, source: int) -> None:
        """Note that a thread waits for a page that host *source* has."""
        pulls = self._pulls.get(tid)
        if pulls is None:
            pulls = self._pulls[tid] = Counter()
        pulls[source] += 1

    def facts(self, thread: Thread) -> GoroutineFacts:
        """Return what is known of what a stopped thread runs, this stop included."""
        known = self._known.pop(thread.goroutine or -thread.tid, None) or _Known()
        self._known[thread.goroutine or -thread.tid] = known
        if len(self._known) > _MAX_GOROUTINES:
            del self._known[next(iter(self._known))]
        known.computed += 1
        known.pulls = Counter({host: count // 2 for host, count in known.pulls.items() if count > 1})
        known.pulls += self._pulls.pop(thread.tid, Counter())
        del known.pulls[thread.host]
        return GoroutineFacts(thread.host, thread.goroutine, known.computed, known.moves, known.pulls)

    def moved(self, thread: Thread) -> None:
        """Note that it moves now."""
        known = self._known.get(thread.goroutine or -thread.tid)
        if known is not None:
            known.moves += 1
            known.pulls.clear()  # those were for where it was

    def ended(self, tid: int) -> None:
        """Forget a thread."""
        self._pulls.pop(tid, None)
        self._known.pop(-tid, None)
