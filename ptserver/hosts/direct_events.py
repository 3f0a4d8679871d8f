"""Waits for epoll instances that have direct sockets: what is ready here and what is at the server, put together.

The session waits for its part of an instance all the time, by one call of the host's own (the *standing* wait), and
says when something is ready. The host's part is an epoll instance of the host's, with the ends of pairs that the
program has, for edges. So a wait of the program is answered at once with what is ready here, or has been at the
server; when nothing is, it waits for either.

    edges     that the session told of, and nobody waited for, are kept and given to the next wait
    levels    are not: they are asked for again
    at once   a wait that does not wait must see what the program has just done itself. So after calls that could make
              something ready at the server it asks there.

Thread rules: the host's thread.
"""

import collections
import errno
import os
import select
import struct
import time
from collections.abc import Callable, Collection
from typing import Protocol

from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import Result
from ptserver.net.poll_loop import PollLoop
from stepping.errors import MemoryFaultError
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS, Arch
from stepping.tracee_memory import TraceeMemory

_EVENT = struct.Struct("=IQ" if os.uname().machine == "x86_64" else "=I4xQ")
_TIMESPEC = struct.Struct("=qq")
_DEL = 2
_MAX_EVENTS = 128
_INT, _SIGN = 0xFFFFFFFF, 0x80000000
_SOME_ADDRESS = 1 << 12
#: Calls that wait for an epoll instance.
WAITS = frozenset({"epoll_wait", "epoll_pwait", "epoll_pwait2"})
_EDGE = select.EPOLLET
_KEEPS = _EDGE | select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP
#: Calls that make nothing ready.
_CAUSES_NOTHING = frozenset(
    "openat newfstatat fstat statx lseek pread64 getdents64 readlinkat getsockname getpeername uname".split()
)

Take = Callable[[Result], None]


class Session(Protocol):
    """What waits want of the session."""

    def ask(self, epfd: int, room: int, milliseconds: int, take: Take) -> int:
        """Have it wait for an instance, -1 for ever; *take* gets the result. Return the call's number."""

    def cancel(self, call_id: int) -> None:
        """Have such a call answered soon."""

    def wake(self, epfd: int, fd: int, event: bytes) -> None:
        """Have an instance tell of *fd* again, if it is ready."""

    def bring_back(self, epfd: int) -> None:
        """Have calls of the program that wait for an instance come back here, by `DirectEvents.come_back`."""

    def make(self, call: PendingCall) -> None:
        """Have it make a call as it is."""


class _Instance:
    """number: the program's. ready: what was at the server. waiters: calls, and until when they wait."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.here = select.epoll()
        self.data: dict[int, int] = {}  # by the descriptor in *here*
        self.ready: collections.OrderedDict[int, int] = collections.OrderedDict()  # masks by data
        self.waiters: collections.deque[tuple[PendingCall, int, float | None]] = collections.deque()
        self.asked = 0  # the standing wait, if there is one
        self.must_ask = True


class DirectEvents:
    """answer: lets a call return; word: hears that the program learns of others."""

    def __init__(
        self,
        loop: PollLoop,
        session: Session,
        answer: Callable[[PendingCall, int, int, dict[int, bytes]], None],
        word: Callable[[], None],
        arch: Arch,
    ) -> None:
        self._loop = loop
        self._session = session
        self._answer = answer
        self._word = word
        self._pwait = SYSCALLS["epoll_pwait"].numbers[arch]
        self._watches: dict[int, dict[int, tuple[int, int]]] = {}  # (mask, data) by descriptor and instance
        self._levels: dict[int, set[int]] = {}  # by instance: the data of what is not watched for edges
        self._instances: dict[int, _Instance] = {}
        self._shared: set[int] = (
            set()
        )  # instances that have, or had, more than one descriptor, or are watched

    # What is watched.

    def controlled(self, args: tuple[int, ...], event: bytes) -> None:
        """Hear of a successful epoll_ctl."""
        epfd, operation, fd = args[0] & _INT, args[1] & _INT, args[2] & _INT
        of_fd = self._watches.setdefault(fd, {})
        if operation == _DEL:
            of_fd.pop(epfd, None)
        elif len(event) >= _EVENT.size:
            mask, data = _EVENT.unpack_from(event)
            of_fd[epfd] = mask, data
            if not mask & _EDGE:
                self._levels.setdefault(epfd, set()).add(data)

    def closed(self, fd: int) -> None:
        """Hear that the program closes a descriptor: nothing is told of it any more."""
        for epfd, (_, data) in self._watches.pop(fd, {}).items():
            instance = self._instances.get(epfd)
            if instance is not None:
                instance.ready.pop(data, None)
        self._shared.discard(fd)
        self._levels.pop(fd, None)
        for of_fd in self._watches.values():
            of_fd.pop(fd, None)
        instance = self._instances.pop(fd, None)
        if instance is not None:
            self._session.cancel(instance.asked)
            instance.here.close()
            for call, _, _ in instance.waiters:
                self._session.make(call)

    def watch_of(self, fd: int) -> tuple[int, int, int] | None:
        """Return (instance, mask, data) if just one instance watches *fd*, for edges; else None."""
        watches = self._watches.get(fd)
        if watches is None or len(watches) != 1:
            return None
        ((epfd, (mask, data)),) = watches.items()
        if epfd in self._shared:
            return None
        return (
            (epfd, mask, data) if mask | _KEEPS == _KEEPS and mask & _EDGE and mask & select.EPOLLIN else None
        )

    def add(self, epfd: int, fd: int, mask: int, data: int) -> None:
        """Watch *fd*, the program's end of a pair, as *mask* says, for it."""
        instance = self._instances.get(epfd)
        if instance is None:
            instance = self._instances[epfd] = _Instance(epfd)
            self._session.bring_back(epfd)
        instance.data[fd] = data
        instance.here.register(fd, mask & ~select.EPOLLOUT)

    def remove(self, epfd: int, fd: int) -> None:
        """Watch it no more."""
        instance = self._instances.get(epfd)
        if instance is not None and fd in instance.data:
            del instance.data[fd]
            instance.here.unregister(fd)

    def writable(self, watched: tuple[int, int]) -> None:
        """Tell that there is room again in a pair, of which an instance knows by that data."""
        instance = self._instances.get(watched[0])
        if instance is not None:
            instance.ready[watched[1]] = instance.ready.get(watched[1], 0) | select.EPOLLOUT

    def has(self, fd: int) -> bool:
        """Whether *fd* is an instance that is waited for here."""
        return fd in self._instances

    def share(self, epfd: int) -> None:
        """Hear that an instance may be waited for in other ways: the session alone tells of it from now on.

        Its sockets are not direct any more. What it has told already it is made to tell again.
        """
        self._shared.add(epfd)
        instance = self._instances.pop(epfd, None)
        if instance is None:
            return
        self._session.cancel(instance.asked)
        self._wake(epfd, instance.ready)
        instance.here.close()
        for call, _, _ in instance.waiters:
            self._session.make(call)

    def _wake(self, epfd: int, told: Collection[int]) -> None:
        for fd, watches in self._watches.items():
            mask, data = watches.get(epfd, (0, 0))
            if data in told and mask & _EDGE:
                self._session.wake(epfd, fd, _EVENT.pack(mask, data))

    # Waits.

    def made(self, name: str) -> None:
        """Hear that a call of the program's goes to the session."""
        if name not in _CAUSES_NOTHING:
            for instance in self._instances.values():
                instance.must_ask = True

    def serve(self, call: PendingCall) -> bool:
        """Answer a wait, now or later, if its instance has direct sockets, or had."""
        assert call.row is not None
        if call.row.name not in WAITS:
            return False
        instance = self._instances.get(call.args[0] & _INT)
        room = min(call.args[2] & _INT, call.gathered.outs.get(1, 0) // _EVENT.size)
        if instance is None or not room or call.args[2] & _SIGN or call.args[4]:
            return False
        timeout = _timeout(call)
        self._wait(instance, call, min(room, _MAX_EVENTS), timeout)
        return True

    def quick(self, notification: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        """Answer a wait by its arguments alone, if something is ready, or nothing is and it does not wait."""
        if notification.nr != self._pwait or notification.a4:
            return None
        instance = self._instances.get(notification.a0)
        if instance is None or not 0 < notification.a2 <= 1 << 20:
            return None
        if instance.waiters:
            return None
        events = self._events(instance, min(notification.a2, _MAX_EVENTS))
        if not events and (notification.a3 & _INT or instance.must_ask):
            return None
        self._stand(instance)
        try:
            memory.write(notification.a1, events)
        except MemoryFaultError:
            return 0, errno.EFAULT
        return len(events) // _EVENT.size, 0

    def abandon(self, call: PendingCall) -> bool:
        """Forget a call; return whether it waited here."""
        for instance in self._instances.values():
            for waiter in instance.waiters:
                if waiter[0] is call:
                    instance.waiters.remove(waiter)
                    return True
        return False

    def look(self) -> None:
        """Answer those who wait, if something is ready here."""
        for instance in self._instances.values():
            if instance.waiters:
                self._serve_waiters(instance)

    def come_back(self, call: PendingCall) -> None:
        """Let a call wait here whose wait at the session was cancelled; one for a time is interrupted instead."""
        if _timeout(call) is not None or not self.serve(call):
            self._answer(call, 0, errno.EINTR, {})

    def close(self) -> None:
        """Give up every descriptor."""
        for instance in self._instances.values():
            instance.here.close()
        self._instances.clear()

    def _wait(self, instance: _Instance, call: PendingCall, room: int, timeout: float | None) -> None:
        if timeout == 0:
            events = self._events(instance, room)
            if not events and instance.must_ask:
                instance.must_ask = False
                self._session.ask(
                    instance.number, room, 0, lambda result: self._asked(instance, call, room, result)
                )
            else:
                self._give(call, events)
                self._stand(instance)
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        instance.waiters.append((call, room, deadline))
        self._serve_waiters(instance)
        self._stand(instance)
        if timeout is not None and any(waiter[0] is call for waiter in instance.waiters):
            self._loop.later(timeout, lambda: self._expire(instance, call))

    def _asked(self, instance: _Instance, call: PendingCall, room: int, result: Result) -> None:
        if self._is_gone(instance, result):
            self._answer(call, 0, errno.EINTR, {})
            return
        self._came(instance, result)
        self._give(call, self._events(instance, room))

    def _serve_waiters(self, instance: _Instance) -> None:
        while instance.waiters:
            events = self._events(instance, instance.waiters[0][1])
            if not events:
                return
            self._give(instance.waiters.popleft()[0], events)

    def _give(self, call: PendingCall, events: bytes) -> None:
        self._answer(call, len(events) // _EVENT.size, 0, {1: events} if events else {})

    def _expire(self, instance: _Instance, call: PendingCall) -> None:
        for waiter in instance.waiters:
            if waiter[0] is call:
                instance.waiters.remove(waiter)
                self._give(call, b"")
                return

    def _events(self, instance: _Instance, room: int) -> bytes:
        """Return up to *room* events that are ready, encoded."""
        data = instance.data
        found = {data[fd]: mask for fd, mask in instance.here.poll(0, room)} if data else {}
        ready = instance.ready
        while ready and len(found) < room:
            key, mask = ready.popitem(last=False)
            found[key] = found.get(key, 0) | mask
        return b"".join([_EVENT.pack(mask, key) for key, mask in found.items()])

    # The session's part.

    def _stand(self, instance: _Instance) -> None:
        """See that the session waits for its part."""
        if not instance.asked:
            instance.asked = self._session.ask(
                instance.number, _MAX_EVENTS, -1, lambda result: self._stood(instance, result)
            )

    def _is_gone(self, instance: _Instance, result: Result) -> bool:
        """Whether an instance is none of ours any more; then what came for it is told again."""
        if self._instances.get(instance.number) is instance:
            return False
        if instance.number in self._shared:
            self._wake(instance.number, {data for _, data in _events_of(result)})
        return True

    def _stood(self, instance: _Instance, result: Result) -> None:
        instance.asked = 0
        if self._is_gone(instance, result) or result.errno:
            return
        self._came(instance, result)
        if instance.waiters:
            self._serve_waiters(instance)
        levels = self._levels.get(instance.number, ())
        for data in [data for data in instance.ready if data in levels]:
            del instance.ready[data]  # it may not be so any more when somebody asks
            instance.must_ask = True
        if instance.waiters:
            self._stand(instance)

    def _came(self, instance: _Instance, result: Result) -> None:
        events = _events_of(result)
        if events:
            self._word()
        for mask, data in events:
            instance.ready[data] = instance.ready.get(data, 0) | mask


def _events_of(result: Result) -> list[tuple[int, int]]:
    """Return the events that a wait brought, as (mask, data)."""
    found = b"" if result.errno else result.outs.get(1, b"")
    return list(_EVENT.iter_unpack(found[: len(found) // _EVENT.size * _EVENT.size]))


def _timeout(call: PendingCall) -> float | None:
    """Return how long an epoll_wait of any kind waits, in seconds, None for ever."""
    assert call.row is not None
    if call.row.name == "epoll_pwait2":
        timespec = call.gathered.ins.get(3)
        if timespec is None:
            return None
        seconds, nanoseconds = _TIMESPEC.unpack(timespec)
        return float(seconds + nanoseconds / 1e9)
    milliseconds = call.args[3] & _INT
    return None if milliseconds & _SIGN else milliseconds / 1000
