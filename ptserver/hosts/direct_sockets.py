"""The host's half of direct sockets: a program reads and writes connected TCP sockets without being stopped for it.

    program   read, write  <->  one end of a pair of Unix sockets, at the very number of the TCP socket
    host      this module  <->  the other end; `Direct` messages
    session   ptserver.sessions.direct_sockets  <->  the TCP socket

A TCP socket becomes direct when the program has first read from it or written to it by a call that was made as ever,
if it is this process's alone, does not block, and one epoll instance watches it for edges. That the program's calls
pass the filter then is done by `stepping.direct_calls`. Other calls that only move bytes (`writev`, ...) are
made here. What leaves the bytes alone (`getpeername`, options of TCP) goes to the session. Everything else ends the
direct state first (`end`): after that all is as it was before.

    order      what the program has written is on its way before any later call of the program's is
    taken      the session learns what the program has read; what it has not read stays in the TCP socket's queue
    events     by `ptserver.hosts.direct_events`

Not trusted: the server. The program, as ever.
Thread rules: the host's thread.
"""

import contextlib
import errno
import fcntl
import select
import socket
import termios
from collections.abc import Callable

from ptserver.hosts.direct_calls import (
    is_duplicate,
    is_passive,
    makes_blocking,
    makes_nonblocking,
    makes_tcp,
    names,
    shares_all,
)
from ptserver.hosts.direct_events import DirectEvents
from ptserver.hosts.known_files import KnownFiles
from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import (
    DIRECT_WINDOW_BYTES,
    Direct,
    DirectBegin,
    DirectBytes,
    DirectEnd,
    Message,
)
from ptserver.net.poll_loop import PollLoop
from stepping.direct_calls import TABLE_DESCRIPTORS, DirectTable
from stepping.errors import MemoryFaultError, NotificationGoneError
from stepping.listener import Listener
from stepping.syscalls import ArgKind

_MAX_SOCKETS = 4096
_PIECE_BYTES = 64 << 10
_EVENTS = 256
#: How often it is looked what the program has read, if it writes nothing; sooner if the window is filling.
_TAKEN_SECONDS, _SOON_SECONDS = 0.1, 0.003
_SOON_BYTES = DIRECT_WINDOW_BYTES // 4
#: From how much on it is looked what the program has read when it writes something.
_WORTH_TELLING_BYTES = 2048
_MSG_DONTWAIT, _MSG_NOSIGNAL = 0x40, 0x4000
_INT = 0xFFFFFFFF
_NO_NUMBER = bytes(4)
_PLAIN = frozenset({"read", "write"})


class _Socket:
    """ours, theirs: the pair, *theirs* is what the program has; given: bytes that came for the program and are not
    known to be taken; unsent: bytes that came and did not fit into the pair; ahead: what the session has not yet
    written; watched: by which instance, and its data there.
    """

    __slots__ = ("ahead", "fd", "given", "is_stopped", "ours", "theirs", "unsent", "watched")

    def __init__(self, fd: int, watched: tuple[int, int]) -> None:
        self.fd = fd
        self.watched = watched
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.given = 0
        self.ahead = 0
        self.unsent = bytearray()
        self.is_stopped = False


class DirectSockets:
    """Of the first process of a program.

    send: queues a message; next_id: gives numbers; answer: lets a call return; known: what
    else the host knows.
    """

    def __init__(
        self,
        table: DirectTable,
        loop: PollLoop,
        listener: Listener,
        send: Callable[[Message], None],
        next_id: Callable[[], int],
        answer: Callable[[PendingCall, int, int, dict[int, bytes]], None],
        events: DirectEvents,
        known: KnownFiles,
    ) -> None:
        self._table = table
        self._loop = loop
        self._listener = listener
        self._send = send
        self._next_id = next_id
        self._answer = answer
        self._events = events
        self._known = known
        self._own: set[int] = set()  # non-blocking sockets of this process alone, that may become direct
        self._tcp: set[int] = set()  # sockets of TCP
        self._sockets: dict[int, _Socket] = {}
        self._by_ours: dict[int, _Socket] = {}
        self._ours = select.epoll()
        self._is_armed = False
        loop.watch(self._ours.fileno(), self.collect)

    def pause(self, *, paused: bool) -> None:
        """Take nothing from the program for now, or again."""
        self._loop.watch(self._ours.fileno(), self.collect, 0 if paused else select.POLLIN)

    def close(self) -> None:
        """Give up every descriptor."""
        for sock in self._sockets.values():
            sock.ours.close()
            sock.theirs.close()
        self._sockets.clear()
        self._loop.unwatch(self._ours.fileno())
        self._ours.close()

    # The program's calls.

    def serve(self, call: PendingCall) -> bool:
        """Answer *call* of the first process, or prepare for its being sent, and return False."""
        row = call.row
        assert row is not None
        if shares_all(call):
            self.end_all()
            self._own.clear()
            return False
        sock = self._sockets.get(call.args[0] & _INT) if row.args and row.args[0].kind is ArgKind.FD else None
        if sock is not None and self._serve_socket(sock, row.name, call):
            return True
        is_copied = is_duplicate(call)
        for fd in names(call):
            sock = self._sockets.get(fd)
            if sock is not None and not is_passive(call):
                self.end(sock)
                if row.name == "sendfile":  # which leaves it what it was
                    self._own.add(fd)
            if is_copied or makes_blocking(call) or row.name == "close":
                self._own.discard(fd)
            if is_copied or row.name == "close":
                self._tcp.discard(fd)
        return False

    def has(self, fd: int) -> bool:
        """Whether *fd* is direct."""
        return fd in self._sockets

    def heard(self, call: PendingCall, value: int, *, may_begin: bool) -> None:
        """Hear of the result of a call of the first process, negative if it failed, before the program does.

        may_begin: whether sockets may become direct.
        """
        assert call.row is not None
        if value < 0:
            return
        if makes_tcp(call, self._tcp):
            self._tcp.add(value)
            if makes_nonblocking(call):
                self._own.add(value)
        elif call.row.name in _PLAIN and value and may_begin:
            self.consider(call.notification_id, call.args[0])

    def consider(self, notification_id: int, fd: int) -> None:
        """Make a socket direct that the program has just read or written, if it can be; its call still waits."""
        if fd not in self._own or fd in self._sockets:
            return
        watched = self._events.watch_of(fd)
        if watched is None or fd >= TABLE_DESCRIPTORS or len(self._sockets) >= _MAX_SOCKETS:
            return
        self._own.discard(fd)
        epfd, mask, data = watched
        try:
            sock = _Socket(fd, (epfd, data))
        except OSError:
            return  # this process has no more descriptors
        try:
            self._listener.put_fd(notification_id, sock.theirs.fileno(), fd)
            self._table.set(fd)
        except (NotificationGoneError, OSError, MemoryFaultError):
            sock.ours.close()
            sock.theirs.close()
            return
        self._known.of_streams.forget_contents(fd)
        self._send(DirectBegin(fd, epfd, mask, data))
        self._sockets[fd] = sock
        self._by_ours[sock.ours.fileno()] = sock
        self._ours.register(sock.ours.fileno(), select.EPOLLIN)
        self._events.add(epfd, sock.theirs.fileno(), mask, data)

    def _serve_socket(self, sock: _Socket, name: str, call: PendingCall) -> bool:
        """Answer a call on a direct socket if that can be done here."""
        args = call.args
        if name in ("read", "readv") or (name == "recvfrom" and not args[3] & ~_MSG_DONTWAIT and not args[4]):
            self._read(sock, call)
        elif name in ("write", "writev") or (
            name == "sendto" and not args[3] & ~(_MSG_DONTWAIT | _MSG_NOSIGNAL) and not args[4]
        ):
            self._write(sock, call, call.gathered.ins.get(1, b""))
        elif name == "close":
            self._close(sock, call)
        else:
            return False
        return True

    def _read(self, sock: _Socket, call: PendingCall) -> None:
        size = call.gathered.outs.get(1, 0)
        try:
            data = sock.theirs.recv(size) if size else b""
        except OSError as error:
            self._answer(call, 0, error.errno or errno.EIO, {})
            return
        self._answer(call, len(data), 0, {1: data} if data else {})

    def write(self, fd: int, data: bytes) -> tuple[int, int]:
        """Write to *fd*, which is direct, as far as there is room; return how many bytes that were, and errno."""
        try:
            count = self._sockets[fd].theirs.send(data) if data else 0
        except OSError as error:
            return 0, error.errno or errno.EIO
        self.collect()
        return count, 0

    def _write(self, sock: _Socket, call: PendingCall, data: bytes) -> None:
        count, error = self.write(sock.fd, data)
        self._answer(call, count, error, {})

    def _close(self, sock: _Socket, call: PendingCall) -> None:
        self._finish(sock)
        self._events.closed(sock.fd)
        self._known.close_direct(call)
        self._answer(call, 0, 0, {})  # what the program has there stays, until it has something else there

    # Bytes.

    def collect(self) -> None:
        """Send what the program has written."""
        if not self._sockets:
            return
        told: list[DirectBytes] = []
        while ready := self._ours.poll(0, _EVENTS):
            for fd, mask in ready:
                sock = self._by_ours[fd]
                if mask & select.EPOLLOUT:
                    self._give(sock)
                if mask & select.EPOLLIN:
                    self._collect_from(sock, told)
        if told:
            self._send(Direct(tuple(told)))
            self._events.look()

    def _collect_from(self, sock: _Socket, told: list[DirectBytes]) -> None:
        filled = _queued(sock.theirs, termios.TIOCOUTQ)
        seen = _queued(sock.ours, termios.FIONREAD)
        try:
            data = sock.ours.recv(_PIECE_BYTES)
        except OSError:
            return
        sock.ahead += len(data)
        taken = self._taken(sock) if sock.given >= _WORTH_TELLING_BYTES else 0
        told.append(DirectBytes(sock.fd, taken, data))
        if filled >= _PIECE_BYTES or len(data) >= _PIECE_BYTES // 4 or len(data) > seen:
            self._events.writable(sock.watched)  # the program may have found no room, perhaps since we looked
        if sock.ahead >= DIRECT_WINDOW_BYTES and not sock.is_stopped:
            sock.is_stopped = True
            self._watch_ours(sock)

    def take(self, message: Direct) -> bool:
        """Take what has come for the program; return whether something has."""
        has_data = False
        for each in message.sockets:
            sock = self._sockets.get(each.fd)
            if sock is None:
                continue  # closed, or given back, meanwhile
            if each.count:
                sock.ahead -= each.count
                if sock.is_stopped and sock.ahead < DIRECT_WINDOW_BYTES // 2:
                    sock.is_stopped = False
                    self._watch_ours(sock)
            data = each.data
            if data:
                has_data = True
                sock.given += len(data)
                if sock.unsent:
                    sock.unsent += data
                else:
                    try:
                        count = sock.ours.send(data)
                    except OSError:
                        count = 0
                    if count < len(data):
                        sock.unsent += data[count:]
                        self._watch_ours(sock)
        if has_data:
            self._arm()
            self._events.look()
        return has_data

    def take_end(self, message: DirectEnd) -> None:
        """Give a socket back of which the session says that it is not connected any more."""
        sock = self._sockets.get(message.fd)
        if sock is not None:
            self.end(sock)

    def _give(self, sock: _Socket) -> None:
        """Put what did not fit before into the pair."""
        try:
            count = sock.ours.send(sock.unsent) if sock.unsent else 0
        except OSError:
            return
        del sock.unsent[:count]
        if not sock.unsent:
            self._watch_ours(sock)
        self._events.look()

    def _watch_ours(self, sock: _Socket) -> None:
        events = 0 if sock.is_stopped else select.EPOLLIN
        self._ours.modify(sock.ours.fileno(), events | (select.EPOLLOUT if sock.unsent else 0))

    def _taken(self, sock: _Socket) -> int:
        """Return how many bytes the program has taken since this was last asked."""
        if not sock.given:
            return 0
        left = _queued(sock.theirs, termios.FIONREAD) + len(sock.unsent)
        taken, sock.given = sock.given - left, left
        if taken:
            self._known.of_streams.took(sock.fd, taken)
        return taken

    def _arm(self) -> None:
        if not self._is_armed:
            self._is_armed = True
            is_soon = any(sock.given >= _SOON_BYTES for sock in self._sockets.values())
            self._loop.later(_SOON_SECONDS if is_soon else _TAKEN_SECONDS, self._tell_taken)

    def _tell_taken(self) -> None:
        self._is_armed = False
        told = [
            DirectBytes(sock.fd, taken)
            for sock in self._sockets.values()
            if sock.given and (taken := self._taken(sock))
        ]
        if told:
            self._send(Direct(tuple(told)))
        if any(sock.given for sock in self._sockets.values()):
            self._arm()

    # The end of it.

    def end_all(self) -> None:
        """Give all sockets back."""
        for sock in list(self._sockets.values()):
            self.end(sock)

    def end_watched(self, epfd: int) -> None:
        """Give those back that the instance *epfd* watches."""
        for sock in [sock for sock in self._sockets.values() if sock.watched[0] == epfd]:
            self.end(sock)

    def end(self, sock: _Socket) -> None:
        """Give a socket back to the program's calls as they ever were."""
        self._finish(sock)
        self._known.of_streams.forget_contents(sock.fd)
        self._send(DirectEnd(sock.fd, self._next_id()))

    def _finish(self, sock: _Socket) -> None:
        """Let the program use the pair no more; send all that it has written, and what it has taken."""
        with contextlib.suppress(MemoryFaultError):
            self._table.clear(sock.fd)
            self._table.await_unused()
        del self._sockets[sock.fd]
        del self._by_ours[sock.ours.fileno()]
        self._ours.unregister(sock.ours.fileno())
        self._events.remove(sock.watched[0], sock.theirs.fileno())
        parts = []
        with contextlib.suppress(OSError):
            while data := sock.ours.recv(_PIECE_BYTES):
                parts.append(data)
        taken = self._taken(sock)
        sock.ours.close()
        sock.theirs.close()
        told = [DirectBytes(sock.fd, 0, part) for part in parts]
        if taken:
            told.append(DirectBytes(sock.fd, taken))
        if told:
            self._send(Direct(tuple(told)))


def _queued(sock: socket.socket, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(sock.fileno(), request, _NO_NUMBER), "little")
