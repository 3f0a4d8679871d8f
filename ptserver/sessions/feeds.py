"""The input of a relay at the session's process: gives an executed program what comes, and tells what it has read.

What was not read is still the host's, so this must be exact. A pipe is given one piece at a time, for which it has
room when the one before was read; how much of a piece was read its kernel tells at any time. A socket tells only
whether a piece was read, so it is asked after every read (its events are edges).

Not trusted: the stub host, the program that reads.
Thread rules: the session's thread.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import termios

from ptserver.errors import ProtocolError
from ptserver.messages import StreamCredit, StreamEnd, StreamNumber
from ptserver.net.streams import Forget, Send
from ptserver.shadow.relays import ONE_PIECE_BYTES

_INT = struct.Struct("=i")
_SOCKET_PIECE_BYTES = 16 << 10
_GONE = select.POLLERR | select.POLLHUP


class Feed:
    """Stream *stream*, of which *window* bytes may be here. fd: the session's end, -1 while there is none.

    forget: hears of the descriptor just before it is closed.
    """

    def __init__(self, stream: StreamNumber, window: int, send: Send, forget: Forget) -> None:
        self.stream = stream
        self.fd = -1
        self.is_socket = False
        self._window = window
        self._send = send
        self._forget = forget
        self._buffer = bytearray()
        self._room = 0  # for what may still come
        self._given = 0  # to the program
        self._taken = 0  # by it, as was told
        self._ending = self._ended = False

    @property
    def has_ended(self) -> bool:
        """Whether the last was said about it."""
        return self._ended

    @property
    def events(self) -> int:
        """What to wait for at the descriptor of a pipe."""
        outstanding = self._buffer or self._ending or self._given > self._taken
        return select.POLLOUT if outstanding else select.POLLERR

    def open(self, fd: int, *, is_socket: bool) -> None:
        """Take *fd*, the session's end."""
        self.fd, self.is_socket = fd, is_socket

    def start(self) -> None:
        """Let the host send: the program is there to read."""
        self._room = self._window
        self._send(StreamCredit(self.stream, self._window))

    def receive(self, data: bytes) -> None:
        """Take what the host sent. Raises: ProtocolError: it may not."""
        self._room -= len(data)
        if self._room < 0 or self._ending:
            raise ProtocolError(f"the host sent more of stream {self.stream} than it may")
        self._buffer += data
        self.advance()

    def end(self) -> None:
        """Take the host's end."""
        self._ending = True
        self.advance()

    def look(self) -> None:
        """Tell what was read until now, and whether nobody reads any more."""
        if self.fd < 0:
            return
        if self._polled() & _GONE:
            self.stop()
        else:
            self._tell()

    def advance(self) -> None:
        """Give the program the next piece, if it has read the one before."""
        if self.fd < 0:
            return
        polled = self._polled()
        if polled & _GONE:
            self.stop()
        elif polled & select.POLLOUT and not (self.is_socket and self._unread()):
            self._tell(all_read=True)
            if self._buffer:
                self._write()
            elif self._ending:
                if self.is_socket:
                    with socket.socket(fileno=os.dup(self.fd)) as end:
                        end.shutdown(socket.SHUT_WR)
                self.stop()

    def stop(self) -> None:
        """Give no more: tell what was read, and close."""
        if self._ended:
            return
        self._ended = True
        self._buffer.clear()
        if self.fd >= 0:
            self._taken = max(self._given - self._unread(), self._taken)
            self._forget(self.fd)
            os.close(self.fd)
            self.fd = -1
        self._send(StreamEnd(self.stream, self._taken))

    def _write(self) -> None:
        size = _SOCKET_PIECE_BYTES if self.is_socket else ONE_PIECE_BYTES
        try:
            with memoryview(self._buffer) as view:
                count = os.write(self.fd, view[:size])
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self.stop()
            return
        del self._buffer[:count]
        self._given += count

    def _tell(self, *, all_read: bool = False) -> None:
        read = self._given - (0 if all_read else self._unread()) - self._taken
        if read > 0:
            self._taken += read
            self._room += read
            self._send(StreamCredit(self.stream, read))

    def _polled(self) -> int:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return next((events for _, events in poll.poll(0)), 0)

    def _unread(self) -> int:
        """Return how many bytes of what was given nobody has read; of a piece in a socket all, or none."""
        request = termios.TIOCOUTQ if self.is_socket else termios.FIONREAD
        (unread,) = _INT.unpack(fcntl.ioctl(self.fd, request, bytes(_INT.size)))
        return self._given - self._taken if self.is_socket and unread else int(unread)
