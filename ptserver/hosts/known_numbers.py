"""Which number the program's next descriptor gets, where that follows from those that it has been given.

The kernel gives the lowest free number. So when it gives *n*, all numbers below *n* are in use; what is closed below
is free, and the lowest of that is the next. What is asked for is made in that order, as far as it does not wait. So
what a call returns is considered in its turn, after the calls and closings before it; and a call that returns out of
its turn, or a number that was not free then, says that nothing follows.

    in use below _bound, but for _free        |##.###.##|?????

Thread rules: one thread.
"""

import collections
from collections.abc import Collection, Set

#: Calls that return the lowest free number.
_GIVES_LOWEST = frozenset("openat accept4 socket epoll_create1 eventfd2".split())


class KnownNumbers:
    """Hears of every call of one process that could change which of its numbers are in use.

    keeps: the names of calls that change nothing about that.
    """

    def __init__(self, keeps: Collection[str]) -> None:
        self._keeps = keeps
        self._bound = 0
        self._free: set[int] = set()
        self._turns: collections.deque[tuple[int, int]] = collections.deque()  # calls, 0 and what is closed
        self._under_way: set[int] = set()
        self._overlap = False

    @property
    def next(self) -> int | None:
        """The number that a descriptor gets if it is opened now; None if that is unknown."""
        return min(self._free) if self._free and not self._under_way else None

    @property
    def under_way(self) -> Set[int]:
        """The calls until whose results nothing follows."""
        return self._under_way

    def free(self) -> tuple[list[int], int]:
        """Return the numbers that descriptors get if they are opened now, in order, and up to where that is known.

        Nothing follows while a call is under way.
        """
        return (sorted(self._free), self._bound) if not self._under_way else ([], 0)

    def opened(self, fd: int) -> None:
        """Note that something was opened as *fd*, which was free."""
        self._free.discard(fd)

    def opened_next(self) -> None:
        """Note that something was opened as `next`."""
        self._free.remove(min(self._free))

    def closed(self, fd: int) -> None:
        """Note that *fd* has been closed, before all that is asked later."""
        if self._under_way:
            self._turns.append((0, fd))
        elif fd < self._bound:
            self._free.add(fd)

    def asked(self, call_id: int, name: str) -> None:
        """Note that a call is to be made."""
        if name not in self._keeps:
            self._under_way.add(call_id)
            self._turns.append((call_id, 0))

    def heard(self, call_id: int, name: str, fd: int, value: int, room: int = 0) -> None:
        """Note that a call has been made. fd: its first argument; value: what it returned, negative for an error.

        room: how many numbers right above *value* were free then, if that was told.
        """
        if call_id not in self._under_way:
            return
        self._under_way.remove(call_id)
        turns = self._turns
        is_understood = name in _GIVES_LOWEST or name == "close"
        if self._overlap or not is_understood or turns[0] != (call_id, 0):
            self.forget()
        else:
            turns.popleft()
            if name == "close":
                if not value and fd < self._bound:
                    self._free.add(fd)
            elif value >= 0:
                self._given(value, room)
            self._take_closings()

    def _given(self, value: int, room: int) -> None:
        if (0, value) in self._turns:  # it was closed before this was made
            self.forget()
        elif value in self._free and value == min(self._free):
            self._free.remove(value)
        else:
            self._bound = value + 1
            self._free.clear()
        end = value + 1 + room
        if end > self._bound > value:
            self._free.update(range(self._bound, end))
            self._bound = end

    def _take_closings(self) -> None:
        """Consider what was closed before the next call."""
        turns = self._turns
        while turns and not turns[0][0]:
            fd = turns.popleft()[1]
            if fd < self._bound:
                self._free.add(fd)

    def heard_late(self, call_id: int) -> None:
        """Note that a call has been made, and nothing of what became of it."""
        if call_id in self._under_way:
            self._under_way.remove(call_id)
            self.forget()

    def forget(self) -> None:
        """Know nothing of any number any more, nor from the calls that are under way."""
        self._bound = 0
        self._free.clear()
        self._turns.clear()
        self._overlap = bool(self._under_way)
