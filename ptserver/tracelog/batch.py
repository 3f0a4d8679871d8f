"""Many calls at once, as a ring gives them to a sink; and small texts that are made once for many calls.

Thread rules: those of `TraceSink`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from ptserver.tracelog.events import Event, Frame, SyscallEvent
from stepping.ring_batch import RingBatch

#: How many values a `Remembered` holds before it forgets them all.
_MAX_REMEMBERED = 1 << 16

#: Numbers below this are worth remembering; larger ones are offsets and the like, each different.
MOSTLY_REPEATED = 1 << 16

#: So many lines are joined for a write: blocks that the allocator keeps, rather than returns to the kernel each time.
LINES_AT_ONCE = 64

#: A character of its own, whatever stands before and after it.
_SEPARATOR = b"\0"

V = TypeVar("V")
K = TypeVar("K")


class Wait(NamedTuple):
    """A goroutine begins to wait for something, or does so no more. waits: which; ended: it is gone."""

    goid: int
    at_ns: int
    waits: bool
    ended: bool


class CallBatch(NamedTuple):
    """Calls in the order of their ends, and what happened in between; there may be no calls.

    name_stack: names the frames of an item of `records.stacks`; None if stacks are not wanted. others: events, and
    before which of the calls each came, by index. waits: those that are to be added up, in their order.
    """

    records: RingBatch
    name_stack: Callable[[bytes], tuple[Frame, ...]] | None = None
    others: Sequence[tuple[int, Event]] = ()
    waits: Sequence[Wait] = ()

    def events(self) -> list[SyscallEvent]:
        """Return the calls one by one."""
        return self.records.tuples(SyscallEvent, self.name_stack)

    def all_events(self) -> Iterator[Event]:
        """Return calls and other events one by one, in their order."""
        return self.between(self.events(), lambda event: event)

    def between(self, calls: Sequence[V], make: Callable[[Event], V]) -> Iterator[V]:
        """Return *calls*, one for each call, and what *make* makes of the other events, in their order."""
        last = 0
        for index, event in self.others:
            yield from calls[last:index]
            last = index
            yield make(event)
        yield from calls[last:]

    def select(self, indexes: Sequence[int]) -> "CallBatch":
        """Return the batch without other calls than these."""
        others = [(bisect_left(indexes, index), event) for index, event in self.others]
        return self._replace(records=self.records.select(indexes), others=others)


class Remembered(Generic[K, V]):
    """A function whose values are kept."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._values = Table(make)

    def of(self, keys: Sequence[K]) -> list[V]:
        """Return the function's value for each key."""
        if len(self._values) > _MAX_REMEMBERED:
            self._values.clear()
        return list(map(self._values.__getitem__, keys))


class OfStack(Generic[V]):
    """A function of stacks whose values are kept; the same stack is mostly the same tuple (`FrameNames`)."""

    def __init__(self, make: Callable[[tuple[Frame, ...]], V]) -> None:
        self._make = make
        self._values: dict[int, tuple[tuple[Frame, ...], V]] = {}

    def __call__(self, stack: tuple[Frame, ...]) -> V:
        """Return the function's value."""
        kept = self._values.get(id(stack))
        if kept is not None and kept[0] is stack:
            return kept[1]
        if len(self._values) > _MAX_REMEMBERED:
            self._values.clear()
        value = self._make(stack)
        self._values[id(stack)] = stack, value
        return value


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
