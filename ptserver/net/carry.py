"""Carries the bytes of a stream under TLS to and from a socket of this machine, in a process of its own.

A session's process is not the one that has accepted, or made, a later connection of its session, and the state of TLS
cannot be handed over as a descriptor can. So the process that has it stays and carries. Neither side is waited for
while the other has something, and each is read only as fast as the other takes.

Not trusted: the peer; its bytes are only passed on. Thread rules: it blocks, and has the process for itself.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable

from ptserver.errors import PtServerError
from ptserver.net.connection import Stream, linger
from ptserver.net.tls_stream import TlsStream
from ptserver.net.transport import RECEIVE_BYTES

#: How long the last bytes may take when one side is gone.
_LAST_SECONDS = 5.0


def as_descriptor(stream: Stream) -> tuple[socket.socket, Callable[[int], None]]:
    """Return a socket that stands for *stream*, to be handed over, and what to do when it was.

    That is nothing for a plain socket; under TLS it carries, until either side is gone or the descriptor that it is
    given has something to read.
    """
    if isinstance(stream, socket.socket):
        return stream, lambda stop_fd: None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def carry_on(stop_fd: int) -> None:
        theirs.close()
        carry(stream, ours, stop_fd)

    return theirs, carry_on


def carry(tls: TlsStream, sock: socket.socket, stop_fd: int = -1) -> None:
    """Carry until either side is gone, or *stop_fd* is readable; close both."""
    with contextlib.ExitStack() as stack:
        stack.callback(tls.close)
        stack.callback(sock.close)
        tls.setblocking(False)
        sock.setblocking(False)
        ways = (_Way(tls, sock), _Way(sock, tls))
        while all(way.is_open for way in ways):
            poll = select.poll()
            for fd, events in _wanted(ways).items():
                poll.register(fd, events)
            if stop_fd >= 0:
                poll.register(stop_fd, select.POLLIN)
            has_more = any(way.has_more for way in ways)
            if stop_fd in {fd for fd, _ in poll.poll(0 if has_more else None)}:
                return
            for way in ways:
                way.advance()
        for way in ways:
            way.finish()


class _Way:
    """One direction."""

    def __init__(self, source: Stream, target: Stream) -> None:
        self.source = source
        self.target = target
        self.is_open = True
        self.waiting = bytearray()
        self._buffer = bytearray(RECEIVE_BYTES)

    @property
    def has_more(self) -> bool:
        """Whether the source has something that poll does not see."""
        return not self.waiting and isinstance(self.source, TlsStream) and self.source.pending() > 0

    def advance(self) -> None:
        """Carry what can be carried now."""
        try:
            if not self.waiting:
                count = self.source.recv_into(self._buffer)
                self.is_open = count > 0
                self.waiting += memoryview(self._buffer)[:count]
            while self.waiting:
                del self.waiting[: self.target.send(self.waiting)]
        except BlockingIOError:
            pass
        except (OSError, PtServerError):
            self.is_open = False

    def finish(self) -> None:
        """Deliver what is left, and say that there is no more."""
        with contextlib.suppress(OSError, PtServerError):
            self.target.settimeout(_LAST_SECONDS)
            self.target.sendall(self.waiting)
        linger(self.target, time.monotonic() + 1.0)


def _wanted(ways: tuple[_Way, _Way]) -> dict[int, int]:
    events: dict[int, int] = {}
    for way in ways:
        if way.waiting:
            fd, event = way.target.fileno(), select.POLLOUT
        else:
            fd, event = way.source.fileno(), select.POLLIN
        events[fd] = events.get(fd, 0) | event
    return events
