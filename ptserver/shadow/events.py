"""Calls that wait for an epoll instance, on the session's own loop: no thread waits, and none is woken.

An epoll descriptor is itself readable when it has events, and looking at it takes none away, so the loop watches it
among its own descriptors, and asks it by a call with timeout 0 when it is. Edges are kept by the instance. Each
instance is watched through a duplicate of our own, since the program may close its number while another of its
threads waits there.

Thread rules: the session's thread.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ptserver.net.poll_loop import PollLoop
from ptserver.shadow.execute import Executed


class Ask(Protocol):
    """Makes a call that waits without waiting."""

    def __call__(self, epfd: int | None = None) -> Executed | None:
        """Return its result, None if there is nothing yet. epfd: the instance, if it has another number now."""


NOTHING: Executed = (0, 0, {})


class _Waiter(NamedTuple):
    """A call: how to ask for events, when it gives up (time.monotonic, or None), and whose it is."""

    ask: Ask
    deadline: float | None
    instance: "_Instance"


class _Instance:
    """An epoll instance: our duplicate, and the ids of the calls that wait for it, oldest first."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.calls: list[int] = []
        self.is_forgotten = False


class EventWaits:
    """Calls that wait. copy: makes a duplicate of our own of a descriptor; settle: takes the result of a call."""

    def __init__(
        self, loop: PollLoop, copy: Callable[[int], int], settle: Callable[[int, Executed], None]
    ) -> None:
        self._loop = loop
        self._copy = copy
        self._settle = settle
        self._instances: dict[int, _Instance] = {}
        self._waiters: dict[int, _Waiter] = {}
        self._armed: float | None = None

    def start(self, call_id: int, epfd: int, timeout: float | None, ask: Ask) -> None:
        """Settle *call_id* when *ask* gives something, or after *timeout* seconds with nothing.

        epfd: the program's number of an epoll instance, which had nothing when it was asked.

        Raises:
            OSError: it is no open descriptor, or we have no more of our own.
        """
        instance = self._instances.get(epfd)
        if instance is None:
            instance = self._instances[epfd] = _Instance(self._copy(epfd))
        deadline = None if timeout is None else time.monotonic() + timeout
        self._waiters[call_id] = _Waiter(ask, deadline, instance)
        instance.calls.append(call_id)
        if len(instance.calls) == 1:
            self._loop.watch(instance.fd, lambda: self._look(instance))
        if deadline is not None and (self._armed is None or deadline < self._armed):
            self._arm(deadline)

    def cancel(self, call_id: int) -> None:
        """Forget a call, if it waits here."""
        waiter = self._waiters.pop(call_id, None)
        if waiter is not None:
            self._leave(waiter.instance, call_id)

    def forget(self, first: int, last: int) -> None:
        """Hear that the program's numbers from *first* to *last* no longer stand for what they did."""
        for number in [number for number in self._instances if first <= number <= last]:
            instance = self._instances.pop(number)
            instance.is_forgotten = True
            if not instance.calls:
                os.close(instance.fd)

    def _look(self, instance: _Instance) -> None:
        for call_id in list(instance.calls):
            executed = self._waiters[call_id].ask(instance.fd)
            if executed is None:
                return  # another process took it
            self.cancel(call_id)
            self._settle(call_id, executed)

    def _leave(self, instance: _Instance, call_id: int) -> None:
        instance.calls.remove(call_id)
        if not instance.calls:
            self._loop.unwatch(instance.fd)
            if instance.is_forgotten:
                os.close(instance.fd)

    def _arm(self, deadline: float) -> None:
        self._armed = deadline
        self._loop.later(deadline - time.monotonic(), lambda: self._expire(deadline))

    def _expire(self, armed: float) -> None:
        """Settle the calls whose time is over, and arm for the next; one timer at a time counts."""
        if armed != self._armed:
            return
        self._armed = None
        now = time.monotonic()
        deadlines = [(waiter.deadline, call_id) for call_id, waiter in self._waiters.items()]
        for deadline, call_id in deadlines:
            if deadline is not None and deadline <= now:
                self.cancel(call_id)
                self._settle(call_id, NOTHING)
        left = [waiter.deadline for waiter in self._waiters.values() if waiter.deadline is not None]
        if left and self._armed is None:
            self._arm(min(left))
