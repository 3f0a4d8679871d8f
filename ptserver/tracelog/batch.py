"""Many calls at once, as a ring gives them to a sink; and small texts that are made once for many calls.

Thread rules: those of `TraceSink`.
"""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from ptserver.tracelog.events import Frame, SyscallEvent
from stepping.ring_batch import RingBatch

#: How many values a `Remembered` holds before it forgets them all.
_MAX_REMEMBERED = 1 << 16

#: Numbers below this are worth remembering; larger ones are offsets and the like, each different.
MOSTLY_REPEATED = 1 << 16

#: So many lines are joined for a write: blocks that the allocator keeps, rather than returns to the kernel each time.
LINES_AT_ONCE = 64

#: A character of its own, whatever stands before and after it.
_SEPARATOR = b"\0"

K = TypeVar("K")
V = TypeVar("V")


class CallBatch(NamedTuple):
    """Calls in the order of their ends.

    name_stack: names the frames of an item of `records.stacks`; None if stacks are not wanted.
    """

    records: RingBatch
    name_stack: Callable[[bytes], tuple[Frame, ...]] | None = None

    def events(self) -> list[SyscallEvent]:
        """Return the calls one by one."""
        return self.records.tuples(SyscallEvent, self.name_stack)

    def select(self, indexes: Sequence[int]) -> "CallBatch":
        """Return the batch of these calls alone."""
        return self._replace(records=self.records.select(indexes))


class Remembered(Generic[K, V]):
    """A function whose values are kept."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._values = Table(make)

    def of(self, keys: Sequence[K]) -> list[V]:
        """Return the function's value for each key."""
        if len(self._values) > _MAX_REMEMBERED:
            self._values.clear()
        return list(map(self._values.__getitem__, keys))


class Table(dict[K, V]):
    """A dictionary that makes what it lacks."""

    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        value = self[key] = self._make(key)
        return value


def are_texts(strings: Sequence[bytes]) -> bool:
    """Whether all of *strings* are UTF-8."""
    joined = _SEPARATOR.join(strings)
    try:
        joined.decode()
    except UnicodeDecodeError:
        return False
    return True
