"""Calls that wait for what is ready on both machines: epoll sets with local descriptors in them, poll and select.

The server gets its half of the call and waits; this process watches the local half. When something is ready here, the
server's wait is cancelled, and the answer has what is ready on both sides. What an epoll set of this process has is
taken from it only when there is room for it, so edges are not lost.

Thread rules: the host's thread.
"""

import errno
import os
import select
from collections.abc import Callable

from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import Result
from ptserver.net.poll_loop import PollLoop
from ptserver.rules.paths import signed
from ptserver.rules.server import Server
from ptserver.rules.table import LocalTable
from ptserver.rules.waits import merge, split, without_waiting
from ptserver.shadow.execute import Executed, execute
from stepping.syscalls import SYSCALLS, Arch, Syscall

_EPOLL_DEL = 2
_EPOLL_BYTES: dict[Arch, int] = {"amd64": 12, "arm64": 16}


class LocalWaiting:
    """See the module's text."""

    def __init__(self, server: Server, loop: PollLoop, arch: Arch) -> None:
        self._server = server
        self._loop = loop
        self._event_bytes = _EPOLL_BYTES[arch]
        self._waits: dict[int, _Wait] = {}

    def abandon(self, call: PendingCall) -> None:
        """Let the server answer a call that nobody waits for any more."""
        wait = self._waits.get(call.id)
        if wait is not None:
            self._server.cancel(wait.asked)

    def control_set(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        """Serve epoll_ctl if it is about a local descriptor."""
        epfd, operation, number = signed(call.args[0]), call.args[1] & 0xFFFFFFFF, signed(call.args[2])
        event = call.gathered.ins.get(3)
        fd = table.files.get(number)
        if fd is None:
            tracked = table.sockets.get(number)
            if tracked is not None:
                if operation == _EPOLL_DEL:
                    tracked.events.pop(epfd, None)
                elif event is not None:
                    tracked.events[epfd] = event
            return False
        _, failure, _ = put_into_set(table, epfd, operation, fd, event)
        self._server.answer(call, 0, failure, {})
        return True

    def wait_for_set(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        """Serve a call that waits for an epoll set: something local may come into it at any time."""
        local_set = _local_set(table, signed(call.args[0]))
        wanted, size = signed(call.args[2]), self._event_bytes
        if wanted <= 0:
            return False

        def collect(remote: dict[int, bytes], count: int) -> tuple[int, dict[int, bytes]]:
            room = min(wanted, call.gathered.outs.get(1, 0) // size) - count
            if room <= 0:
                return count, remote
            args = (watched, 1, room, 0, 0, 0)
            more, failure, outs = execute(SYSCALLS["epoll_wait"], args, {}, {1: room * size})
            if failure:
                return count, remote
            return count + more, {**remote, 1: remote.get(1, b"")[: count * size] + outs.get(1, b"")}

        watched = os.dup(local_set)  # the program may close its own meanwhile
        self._start(call, row, _Wait(call.gathered.ins, watched, lambda: _is_ready(watched), collect))
        return True

    def wait_for_descriptors(self, call: PendingCall, row: Syscall, table: LocalTable) -> bool:
        """Serve a call of poll's or select's kind, if it names local descriptors."""
        args, ins, *_ = call.gathered
        halves = split(row.name, args, ins, table.files)
        if not halves.wanted:
            return False
        mine = {number: os.dup(table.files[number]) for number in halves.wanted}
        numbers = {fd: number for number, fd in mine.items()}
        poll, is_quick = select.poll(), False
        with select.epoll() as watched:
            for number, events in halves.wanted.items():
                poll.register(mine[number], events)
                try:
                    watched.register(mine[number], events)
                except PermissionError:  # a file, which is always ready
                    is_quick = True
            watched_fd = os.dup(watched.fileno())

        def collect(remote: dict[int, bytes], _: int) -> tuple[int, dict[int, bytes]]:
            ready = dict.fromkeys(halves.wanted, 0)
            ready.update((numbers[fd], events) for fd, events in poll.poll(0))
            return merge(row.name, args, ins, remote, ready)

        wait = _Wait(halves.ins, watched_fd, lambda: is_quick or bool(poll.poll(0)), collect)
        wait.also_closes = list(mine.values())
        self._start(call, row, wait)
        return True

    def _start(self, call: PendingCall, row: Syscall, wait: "_Wait") -> None:
        """Ask the server what is ready there, waiting unless something is here, and answer with both."""
        args, _, outs, *_ = call.gathered
        ins = wait.ins
        is_ready = wait.is_ready()
        if is_ready:
            args, ins = without_waiting(row, args, ins)
        wait.is_cancelled = False

        def answered(result: Result) -> None:
            self._loop.unwatch(wait.fd)
            was_cut_short = wait.is_cancelled and result.errno == errno.EINTR
            if result.errno and not was_cut_short:
                value, failure, filled = 0, result.errno, result.outs
            else:
                failure = 0
                remote = {} if was_cut_short else dict(result.outs)
                value, filled = wait.collect(remote, 0 if was_cut_short else result.value)
                if was_cut_short and not value:  # what was ready is not any more
                    self._start(call, row, wait)
                    return
            del self._waits[call.id]
            wait.close()
            self._server.answer(call, value, failure, filled)

        def ready() -> None:
            self._loop.unwatch(wait.fd)
            wait.is_cancelled = True
            self._server.cancel(wait.asked)

        self._waits[call.id] = wait
        wait.asked = self._server.ask(call, row.name, args, ins, outs, answered)
        if not is_ready:
            self._loop.watch(wait.fd, ready)


class _Wait:
    """A call that waits on both sides.

    ins: the server's half; fd: readable when something local is ready; is_ready: whether something is; collect:
    adds what is to the outs of the server and its count; asked: the id of the server's half.
    """

    def __init__(
        self,
        ins: dict[int, bytes],
        fd: int,
        is_ready: Callable[[], bool],
        collect: Callable[[dict[int, bytes], int], tuple[int, dict[int, bytes]]],
    ) -> None:
        self.ins = ins
        self.fd = fd
        self.is_ready = is_ready
        self.collect = collect
        self.asked = 0
        self.is_cancelled = False
        self.also_closes: list[int] = []

    def close(self) -> None:
        """Give up what was made for it."""
        for fd in (self.fd, *self.also_closes):
            os.close(fd)


def put_into_set(table: LocalTable, epfd: int, operation: int, fd: int, event: bytes | None) -> Executed:
    """Make epoll_ctl's call on the local part of the program's epoll set *epfd*."""
    ins = {} if event is None else {3: event}
    return execute(SYSCALLS["epoll_ctl"], (_local_set(table, epfd), operation, fd, 1, 0, 0), ins, {})


def _local_set(table: LocalTable, epfd: int) -> int:
    """Return the local part of the program's epoll set *epfd*, made now if need be."""
    if epfd not in table.sets:
        with select.epoll() as made:
            table.sets[epfd] = os.dup(made.fileno())
    return table.sets[epfd]


def _is_ready(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
