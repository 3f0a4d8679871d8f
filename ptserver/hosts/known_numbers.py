"""Which number the program's next descriptor gets, where that follows from those that it has been given.

The kernel gives the lowest free number. So when it gives *n*, all numbers below *n* are in use; what is closed below
is free, and the lowest of that is the next. Nothing follows while calls are under way of which it is not known in
what order they are made.

    in use below _bound, but for _free        |##.###.##|?????

Thread rules: one thread.
"""

from collections.abc import Collection


class KnownNumbers:
    """Hears of every call of one process that could change which of its numbers are in use.

    keeps: the names of calls that change nothing about that; all others but openat and close make it unknown.
    """

    def __init__(self, keeps: Collection[str]) -> None:
        self._keeps = keeps
        self._bound = 0
        self._free: set[int] = set()
        self._under_way: set[int] = set()
        self._overlap = False

    @property
    def next(self) -> int | None:
        """The number that a descriptor gets if it is opened now; None if that is unknown."""
        return min(self._free) if self._free and not self._under_way else None

    def opened_next(self) -> None:
        """Note that something was opened as `next`."""
        self._free.remove(min(self._free))

    def closed(self, fd: int) -> None:
        """Note that *fd* has been closed, before all that is asked later."""
        if self._under_way:
            self._overlap = True
        elif fd < self._bound:
            self._free.add(fd)

    def asked(self, call_id: int, name: str) -> None:
        """Note that a call is to be made."""
        if name not in self._keeps:
            self._overlap = self._overlap or bool(self._under_way)
            self._under_way.add(call_id)

    def heard(self, call_id: int, name: str, fd: int, value: int) -> None:
        """Note that a call has been made. fd: its first argument; value: what it returned, negative for an error."""
        if call_id not in self._under_way:
            return
        self._under_way.remove(call_id)
        if self._overlap or name not in ("openat", "close"):
            self.forget()
        elif name == "close":
            if not value:
                self.closed(fd)
        elif value in self._free and value == min(self._free):
            self._free.remove(value)
        elif value >= 0:
            self._bound = value + 1
            self._free.clear()

    def heard_late(self, call_id: int) -> None:
        """Note that a call has been made, and nothing of what became of it."""
        if call_id in self._under_way:
            self._under_way.remove(call_id)
            self.forget()

    def forget(self) -> None:
        """Know nothing of any number any more."""
        self._bound = 0
        self._free.clear()
        self._overlap = bool(self._under_way)
