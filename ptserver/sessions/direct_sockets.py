"""The session's half of direct sockets: connected TCP sockets that a program reads and writes at its stub host.

What comes for the program is *looked at* in the socket's queue and sent; it is taken out of the queue when the
program has taken it there. So the queue holds at any time what the program has not read: its peer sees the window
that it would see natively, a close resets the connection if something is left, and the socket can be given back to
the program's own calls at any time. What the program has written there is written here, as soon as the buffer takes
it.

As soon as a socket is anything but connected both ways (its peer has ended, it has failed), it is given back: what
follows is for the program's own calls.

Not trusted: the stub host.
Thread rules: the session's thread.
"""

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable

from ptserver.errors import ProtocolError
from ptserver.messages import (
    DIRECT_WINDOW_BYTES,
    Direct,
    DirectBegin,
    DirectBytes,
    DirectEnd,
    Message,
    Syscall,
)
from ptserver.net.poll_loop import PollLoop
from ptserver.sessions.behind import WriteBehind
from ptserver.sessions.descriptor_states import DescriptorStates
from ptserver.shadow.execute import execute
from stepping.syscalls import SYSCALLS

_EPOLL_CTL = SYSCALLS["epoll_ctl"]
_ADD, _DEL, _MOD = 1, 2, 3
_EVENT = struct.Struct("=IQ" if os.uname().machine == "x86_64" else "=I4xQ")
_SOME_ADDRESS = 1 << 12
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_ENDS = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
_MAX_EVENTS = 256
#: From how much on the host is told that it has been written.
_TOLD_BYTES = DIRECT_WINDOW_BYTES // 4
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class _Socket:
    """outstanding: bytes that the host has and the program has not taken; unsent: what the program wrote.

    has_more: there may be more in the queue than the window let through; written: what the host has not been told;
    failure: of a write; watched: the event with which *epfd* is to watch it again, and is_watched: whether it still
    does; is_over: the host is to give it back.
    """

    __slots__ = (
        "epfd",
        "failure",
        "fd",
        "has_more",
        "is_over",
        "is_watched",
        "outstanding",
        "sock",
        "unsent",
        "watched",
        "written",
    )

    def __init__(self, fd: int, epfd: int, watched: bytes) -> None:
        self.fd = fd
        self.epfd = epfd
        self.watched = watched
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)
        self.outstanding = 0
        self.written = 0
        self.unsent = bytearray()
        self.has_more = False
        self.is_over = False
        self.is_watched = False
        self.failure = 0


class DirectSockets:
    """Moves bytes between sockets of the program, by their numbers, and `Direct` messages.

    copy: makes a duplicate of our own of a descriptor.
    """

    def __init__(
        self,
        loop: PollLoop,
        send: Callable[[Message], None],
        copy: Callable[[int], int],
        states: DescriptorStates,
        behind: WriteBehind,
    ) -> None:
        self._send = send
        self._copy = copy
        self._states = states
        self._behind = behind
        self._sockets: dict[int, _Socket] = {}
        self._closing: dict[int, _Socket] = {}  # by a number of our own: closed, but not yet written
        self._buffer = memoryview(bytearray(2 * DIRECT_WINDOW_BYTES))
        self._loop = loop
        self._epoll: select.epoll | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be written that the program has written."""
        return bool(self._closing) or any(sock.unsent for sock in self._sockets.values())

    def begin(self, message: DirectBegin) -> None:
        """Move the bytes of a socket from now on, or give it back at once. Raises: ProtocolError."""
        fd, epfd = message.fd, message.epfd
        if fd in self._sockets or self._states.is_ours(fd) or self._states.is_ours(epfd):
            raise ProtocolError(f"the host says that descriptor {fd} is direct, which cannot be")
        sock = self._sockets[fd] = _Socket(fd, epfd, _EVENT.pack(message.events, message.data))
        is_plain = self._states.kind(fd) == "tcp" and self._behind.is_quiet
        if not is_plain or self._control(epfd, _DEL, fd, b""):
            sock.is_watched = True
            self._give_back(sock)
            return
        if self._epoll is None:
            with select.epoll() as made:
                self._epoll = select.epoll.fromfd(self._copy(made.fileno()))
            self._loop.watch(self._epoll.fileno(), self.flush)
        self._epoll.register(fd, _EDGES)  # its first event tells what is there already

    def take(self, message: Direct) -> None:
        """Take what the program has read and written. Raises: ProtocolError."""
        told: list[DirectBytes] = []
        for fd, count, data in ((each.fd, each.count, each.data) for each in message.sockets):
            sock = self._sockets.get(fd)
            if sock is None or count > sock.outstanding:
                raise ProtocolError(f"the host used descriptor {fd} as it may not")
            if count:
                sock.outstanding -= count
                self._states.take(fd, count)
                if sock.has_more and not sock.is_over:
                    self._look(sock, told)
            if data:
                self._write(sock, data, told)
        if told:
            self._send(Direct(tuple(told)))

    def end(self, message: DirectEnd) -> None:
        """Leave a socket to the program's own calls. Raises: ProtocolError."""
        sock = self._sockets.pop(message.fd, None)
        if sock is None:
            raise ProtocolError(f"the host gave descriptor {message.fd} back, which it did not have")
        fd = message.fd
        self._leave(sock)
        # What the program has found empty meanwhile was not the socket: its instance tells anew what there is.
        self._control(sock.epfd, _MOD if sock.is_watched else _ADD, fd, sock.watched)
        if sock.failure:
            self._behind.note_failure(fd, sock.failure)
        elif sock.unsent:
            data = bytes(sock.unsent)
            args = (fd, _SOME_ADDRESS, len(data), 0, 0, 0)
            self._behind.write(
                Syscall(max(message.id, 1), 0, os.getpid(), "write", args, {1: data}, posted=True)
            )

    def closing(self, fd: int) -> None:
        """Hear that the program closes a descriptor, just before it is done."""
        sock = self._sockets.pop(fd, None)
        if sock is None:
            return
        self._leave(sock)
        if sock.unsent and not sock.failure:
            with contextlib.suppress(OSError):
                kept = self._copy(fd)
                last = self._closing[kept] = _Socket(kept, -1, b"")
                last.unsent = sock.unsent
                assert self._epoll is not None
                self._epoll.register(kept, select.EPOLLOUT | select.EPOLLET)

    def forget(self, first: int, last: int) -> None:
        """Forget the descriptors from *first* to *last*, which are closed or stand for others now."""
        for fd in [fd for fd in self._sockets if first <= fd <= last]:
            sock = self._sockets.pop(fd)
            sock.sock.detach()

    # Events.

    def look(self) -> None:
        """Tell what has come by now: whoever hears of others next must find it."""
        if self._sockets:
            self.flush()

    def pause(self, *, paused: bool) -> None:
        """Look at no socket for now, or again."""
        if self._epoll is not None:
            self._loop.watch(self._epoll.fileno(), self.flush, 0 if paused else select.POLLIN)

    def flush(self) -> None:
        """Deal with what has happened to the sockets."""
        if self._epoll is None:
            return
        told: list[DirectBytes] = []
        for fd, mask in self._epoll.poll(0, _MAX_EVENTS):
            sock = self._sockets.get(fd)
            if sock is None:
                self._finish_closing(fd, mask)
            elif sock.is_over:
                continue
            elif mask & _ENDS:
                self._give_back(sock)
            else:
                if mask & select.EPOLLOUT and sock.unsent:
                    self._write(sock, b"", told)
                if mask & select.EPOLLIN:
                    self._look(sock, told)
        if told:
            self._send(Direct(tuple(told)))

    def _look(self, sock: _Socket, told: list[DirectBytes]) -> None:
        """Tell what is in a socket's queue that the host has not got."""
        before = sock.outstanding
        if before >= DIRECT_WINDOW_BYTES:
            sock.has_more = True
            return
        view = self._buffer[:DIRECT_WINDOW_BYTES]
        try:
            count = sock.sock.recv_into(view, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            count = 0
        except OSError:
            self._give_back(sock)  # its error is for nobody: that it is over is told by its next read
            return
        sock.has_more = count == DIRECT_WINDOW_BYTES
        if count > before:
            sock.outstanding = count
            told.append(DirectBytes(sock.fd, 0, bytes(view[before:count])))

    def _write(self, sock: _Socket, data: bytes, told: list[DirectBytes]) -> None:
        """Write *data* after what is still to be written, as far as the socket takes it."""
        if sock.failure:
            return
        if sock.unsent:
            if len(sock.unsent) + len(data) > 2 * DIRECT_WINDOW_BYTES:
                raise ProtocolError("the host has more on its way than was agreed on")
            sock.unsent += data
            data = bytes(sock.unsent)
        try:
            count = sock.sock.send(data, _SEND_FLAGS)
        except BlockingIOError:
            count = 0
        except OSError as error:
            sock.failure = error.errno or errno.EIO
            sock.unsent.clear()
            self._give_back(sock)
            return
        if sock.unsent:
            del sock.unsent[:count]
        elif count < len(data):
            sock.unsent += data[count:]
        sock.written += count
        if sock.written >= _TOLD_BYTES and not sock.is_over:
            told.append(DirectBytes(sock.fd, sock.written))
            sock.written = 0

    def _give_back(self, sock: _Socket) -> None:
        """Have the host give a socket back."""
        if not sock.is_over:
            sock.is_over = True
            self._send(DirectEnd(sock.fd))

    def _finish_closing(self, kept: int, mask: int) -> None:
        """Write the rest of what was written to a socket before it was closed."""
        sock = self._closing.get(kept)
        if sock is None:
            return
        self._write(sock, b"", [])
        if not sock.unsent:
            del self._closing[kept]
            sock.sock.close()

    def _leave(self, sock: _Socket) -> None:
        if self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(sock.fd)
        sock.sock.detach()

    @staticmethod
    def _control(epfd: int, operation: int, fd: int, event: bytes) -> int:
        """Make epoll_ctl's call; return its errno."""
        return execute(
            _EPOLL_CTL, (epfd, operation, fd, _SOME_ADDRESS, 0, 0), {3: event} if event else {}, {}
        )[1]
