"""What a session tells its host of the descriptors that its program writes to and reads from, so that the host can
answer writes before they are made, and reads with what is already there. docs/latency.md says why it changes nothing.

*Room* is what a descriptor will take without waiting, if nobody else fills it: of an empty queue of a socket a part
that the kernel certainly grants, of a pipe its empty slots, of a regular file any amount. What is there to be read
from a TCP socket is looked at and left where it is; the call that takes it comes when the program has read it.

Not trusted: the stub host; it is told nothing but what calls of its own would tell.
Thread rules: the session's thread.
"""

import fcntl
import os
import select
import socket
import stat
import struct
import termios
from collections.abc import Callable, Mapping

from ptserver.errors import ProtocolError
from ptserver.messages import DescriptorKind, DescriptorState, Message
from ptserver.shadow.execute_sockets import peek, take

#: How much may be under way to a file, and to a socket, and how much a pipe's slot or a terminal's buffer holds.
_FILE_BYTES, _SOCKET_BYTES, _PAGE_BYTES, _TERMINAL_BYTES = 1 << 20, 256 << 10, 4096, 2048
#: Of a socket's limit, which counts the kernel's own bytes, too, the part that a write into an empty queue gets.
_PART_OF_LIMIT = 4
#: How much of what can be read is told with the event that says so.
_PEEK_BYTES = 4096
_SIOCOUTQ = termios.TIOCOUTQ
_F_GETPIPE_SZ = 1032
_SYNCHRONOUS = os.O_SYNC | os.O_DSYNC | os.O_DIRECT | os.O_PATH
_EVENT = struct.Struct("=IQ") if os.uname().machine == "x86_64" else struct.Struct("=I4xQ")
_EPOLL_CTL_ADD, _EPOLL_CTL_MOD = 1, 3
_FAILURES = select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP
#: Of these the error of the next write is known, which must not be made behind.
_OVER = select.EPOLLERR | select.EPOLLHUP
#: What must not be there for a short read to have brought all: the end, and urgent data, at which reads stop.
_AFTER_DATA = select.POLLPRI | select.POLLRDHUP
_EDGES = select.EPOLLET | select.EPOLLIN | select.EPOLLONESHOT | select.EPOLLEXCLUSIVE
#: SO_SNDBUF, SO_SNDBUFFORCE.
_LIMITING = frozenset({(1, 7), (1, 32)})
_SEVERAL = -1
_NONE: Mapping[tuple[int, int], bool] = {}
_INT_BYTES = 4


class DescriptorStates:
    """Knows what descriptors are until `forget` is called.

    holds_bytes: whether a file, by its descriptor and device, is on a file system that does. first_own: the first
    number that is not the program's.
    """

    def __init__(
        self, send: Callable[[Message], None], holds_bytes: Callable[[int, int], bool], first_own: int
    ) -> None:
        self._send = send
        self._first_own = first_own
        self._holds_bytes = holds_bytes
        self._kinds: dict[int, DescriptorKind | None] = {}
        self._limits: dict[int, int] = {}  # of sockets
        self._shut: set[int] = set()  # sockets that nothing can be written to any more
        self._taken: dict[int, int] = {}  # how many bytes the host has taken out of queues by posted calls
        # What an event of an instance says, by what it was told: the descriptor, or _SEVERAL.
        self._watched: dict[tuple[int, int], int] = {}
        # Of each descriptor, by the same, whether the instance tells of each change.
        self._instances: dict[int, dict[tuple[int, int], bool]] = {}

    def forget(self, first: int, last: int) -> None:
        """Forget what the descriptors *first* to *last* are: their numbers may stand for others now."""
        for known in (self._kinds, self._limits, self._taken):
            if first == last:
                known.pop(first, None)
            else:
                for fd in [fd for fd in known if first <= fd <= last]:
                    del known[fd]
        if self._shut:
            self._shut = {fd for fd in self._shut if not first <= fd <= last}
        for fd in [first] if first == last else [fd for fd in self._instances if first <= fd <= last]:
            for key in self._instances.pop(fd, _NONE):
                if self._watched.get(key) == fd:
                    del self._watched[key]

    def option_set(self, fd: int, level: int, option: int) -> None:
        """Hear of a successful setsockopt."""
        if (level, option) in _LIMITING:
            self._limits.pop(fd, None)

    def shut_down(self, fd: int, how: int) -> None:
        """Hear of a successful shutdown."""
        if how != socket.SHUT_RD:
            self._shut.add(fd)

    def is_ours(self, fd: int) -> bool:
        """Whether a number is one of the session's own."""
        return fd >= self._first_own

    def kind(self, fd: int) -> DescriptorKind | None:
        """Return what can be written behind to *fd*; None if nothing can."""
        try:
            return self._kinds[fd]
        except KeyError:
            try:
                kind = self._kind(fd)
            except (OSError, OverflowError):
                return None
            if kind != "file":  # whose flags may change
                self._kinds[fd] = kind
            return kind

    def _kind(self, fd: int) -> DescriptorKind | None:
        status = os.fstat(fd)
        mode = status.st_mode
        if stat.S_ISREG(mode):
            is_plain = not fcntl.fcntl(fd, fcntl.F_GETFL) & _SYNCHRONOUS and self._holds_bytes(
                fd, status.st_dev
            )
            return "file" if is_plain else None
        if stat.S_ISFIFO(mode):
            return "pipe"
        if stat.S_ISSOCK(mode):
            return _kind_of_socket(fd)
        return "terminal" if stat.S_ISCHR(mode) and os.isatty(fd) else None

    def wrote(self, fd: int) -> None:
        """Tell how much can be written behind to *fd*, to which a write has just succeeded."""
        kind = self.kind(fd)
        room = 0 if kind is None else self._room(fd, kind)
        if kind is not None and room > 0:
            self._send(DescriptorState(fd, kind, room))

    def failed(self, fd: int, kind: DescriptorKind) -> None:
        """Tell that something that was written behind could not be."""
        self._send(DescriptorState(fd, kind, 0))

    def _room(self, fd: int, kind: DescriptorKind) -> int:
        if kind == "file":
            return _FILE_BYTES
        if kind == "terminal":
            return _TERMINAL_BYTES
        try:
            if kind == "pipe":
                slots = fcntl.fcntl(fd, _F_GETPIPE_SZ) // _PAGE_BYTES
                free = slots - min(slots, _number(fd, termios.FIONREAD))
                return min(free * _PAGE_BYTES, _FILE_BYTES)
            if fd in self._shut:
                return 0
            limit = self._limits.get(fd)
            if limit is None:
                limit = self._limits[fd] = _send_limit(fd)
            return min(limit // _PART_OF_LIMIT, _SOCKET_BYTES) - _number(fd, _SIOCOUTQ)
        except OSError:
            return 0

    def watches(self, epfd: int, operation: int, fd: int, event: bytes) -> None:
        """Hear of a successful epoll_ctl."""
        if operation in (_EPOLL_CTL_ADD, _EPOLL_CTL_MOD) and len(event) >= _EVENT.size:
            mask, data = _EVENT.unpack_from(event)
            key = epfd, data
            watched = self._watched.get(key, fd)
            self._watched[key] = fd if watched == fd else _SEVERAL
            known = self._instances.setdefault(fd, {})
            known[key] = mask & _EDGES == select.EPOLLET | select.EPOLLIN

    def take(self, fd: int, size: int) -> None:
        """Take *size* bytes out of a socket's queue, which the host has given to the program.

        Raises: ProtocolError, if it is no socket of which the host was told.
        """
        if self.is_ours(fd) or self.kind(fd) != "tcp":
            raise ProtocolError(f"the host read from descriptor {fd}, of which it knows nothing")
        take(fd, size)
        self._taken[fd] = self._taken.get(fd, 0) + size

    def read(self, fd: int) -> None:
        """Tell that a read which has just succeeded, and was not filled, has left nothing, if that is so."""
        for (epfd, _), tells_changes in self._instances.get(fd, _NONE).items():
            if tells_changes and self.kind(fd) == "tcp":
                poll = select.poll()
                poll.register(fd, _AFTER_DATA | select.POLLIN)
                if not poll.poll(0):
                    self._tell_queue(fd, b"", epfd)
            return

    def happened(self, epfd: int, events: bytes) -> None:
        """Tell what can be read from the sockets that *events*, of epoll_wait, are about."""
        told: dict[int, tuple[bytes, bool]] = {}
        poll = select.poll()
        for mask, data in _EVENT.iter_unpack(events):
            key = epfd, data
            fd = self._watched.get(key, _SEVERAL)
            if fd == _SEVERAL:
                self._send(DescriptorState(epfd, "epoll"))
            elif self.kind(fd) == "tcp" and mask & _OVER:
                self._send(DescriptorState(fd, "tcp"))
            elif self.kind(fd) == "tcp":
                is_short = False
                found = b""
                if mask & select.EPOLLIN and not mask & _FAILURES:
                    found = peek(fd, _PEEK_BYTES)
                    is_short = 0 < len(found) < _PEEK_BYTES and self._instances[fd].get(key, False)
                told[fd] = found, is_short
                if is_short:
                    poll.register(fd, _AFTER_DATA)
        has_more = {fd for fd, _ in poll.poll(0)}
        for fd, (found, is_short) in told.items():
            self._tell_queue(fd, found, epfd if is_short and fd not in has_more else -1)

    def _tell_queue(self, fd: int, found: bytes, watched: int) -> None:
        room = max(self._room(fd, "tcp"), 0)
        self._send(DescriptorState(fd, "tcp", room, found, self._taken.get(fd, 0), watched))


def _kind_of_socket(fd: int) -> DescriptorKind | None:
    sock = socket.socket(fileno=fd)
    try:
        if sock.type & 0xF != socket.SOCK_STREAM:
            return None
        if sock.family == socket.AF_UNIX:
            return "unix"
        is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto == socket.IPPROTO_TCP
        return "tcp" if is_tcp else None
    finally:
        sock.detach()


def _send_limit(fd: int) -> int:
    sock = socket.socket(fileno=fd)
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    finally:
        sock.detach()


def _number(fd: int, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, request, bytes(_INT_BYTES)), "little")
