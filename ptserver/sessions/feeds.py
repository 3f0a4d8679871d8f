"""The input of a relay at the session's process: gives an executed program what comes, and tells what it has read.

What was not read is still the host's, so this must be exact. How much of a pipe was read its kernel tells at any
time, but not by itself. If the host waits for that, the pipe is given one piece at a time, for which it has room when
the one before was read. If the host reads on, the pipe is filled; the host can send more than it holds, so there is
something to write when it has room. Only for its end it is asked again and again, for nothing can be asked of a pipe
that was closed. A socket tells only whether a piece was read, so it is asked after every read (its events are edges).

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
from collections.abc import Callable

from ptserver.errors import ProtocolError
from ptserver.messages import Relay, StreamCredit, StreamEnd
from ptserver.net.streams import Forget, Send
from ptserver.shadow.relays import ONE_PIECE_BYTES

_INT = struct.Struct("=i")
_SOCKET_PIECE_BYTES = 16 << 10
#: How soon a pipe is asked again whether all was read.
_FIRST_DELAY_SECONDS, _MOST_DELAY_SECONDS = 0.001, 0.25
_GONE = select.POLLERR | select.POLLHUP


class Feed:
    """The input of *relay*. fd: the session's end, -1 while there is none.

    forget: hears of the descriptor just before it is closed; later: has a function called after some seconds.
    """

    def __init__(
        self, relay: Relay, send: Send, forget: Forget, later: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self.stream = relay.input
        self.fd = -1
        self.is_socket = bool(relay.output)
        self._fills = relay.reads_on and not self.is_socket
        self._window = relay.window
        self._send = send
        self._forget = forget
        self._later = later
        self._delay_seconds = _FIRST_DELAY_SECONDS
        self._buffer = bytearray()
        self._room = 0  # for what may still come
        self._given = 0  # to the program
        self._taken = 0  # by it, as was told
        self._ending = self._ended = self._asks_again = self._was_reset = False

    @property
    def has_ended(self) -> bool:
        """Whether the last was said about it."""
        return self._ended

    @property
    def events(self) -> int:
        """What to wait for at the descriptor of a pipe."""
        outstanding = self._buffer or (not self._fills and (self._ending or self._given > self._taken))
        return select.POLLOUT if outstanding else select.POLLERR

    def open(self, fd: int) -> None:
        """Take *fd*, the session's end."""
        self.fd = fd

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

    def look(self, *, was_reset: bool = False) -> None:
        """Tell what was read until now, and whether nobody reads any more.

        was_reset: whether a socket was found closed with something unread in it, which its kernel tells but once.
        """
        if self.fd < 0:
            return
        self._was_reset = self._was_reset or was_reset
        if self._polled() & _GONE:
            self.stop()
        else:
            self._tell()

    def advance(self) -> None:
        """Give the program more, if it has read enough."""
        if self.fd < 0:
            return
        polled = self._polled()
        if polled & _GONE:
            self.stop()
        elif self._fills:
            self._tell(least=1 if self._ending or not self._room else self._window // 4)
            if self._buffer and polled & select.POLLOUT:
                self._write()
            if not self._buffer and (self._ending or not self._room):
                self._ask_later()
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

    def _ask_later(self) -> None:
        """End when all is read. Without an end, the program has a larger pipe than it was given, and may wait."""
        if self.fd >= 0 and self._ending and self._taken == self._given:
            self.stop()
        elif self.fd >= 0 and not self._asks_again:
            self._asks_again = True
            self._later(self._delay_seconds, self._ask_again)
            self._delay_seconds = min(2 * self._delay_seconds, _MOST_DELAY_SECONDS)

    def _ask_again(self) -> None:
        self._asks_again = False
        self.advance()

    def _write(self) -> None:
        size = (
            _SOCKET_PIECE_BYTES if self.is_socket else len(self._buffer) if self._fills else ONE_PIECE_BYTES
        )
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

    def _tell(self, *, all_read: bool = False, least: int = 1) -> None:
        """Tell how much was read since it was told last, if it is so much."""
        read = self._given - (0 if all_read else self._unread()) - self._taken
        if read >= least:
            self._taken += read
            self._room += read
            self._delay_seconds = _FIRST_DELAY_SECONDS
            self._send(StreamCredit(self.stream, read))

    def _polled(self) -> int:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return next((events for _, events in poll.poll(0)), 0)

    def _unread(self) -> int:
        """Return how many bytes of what was given nobody has read; of a piece in a socket all, or none."""
        if not self.is_socket:
            (unread,) = _INT.unpack(fcntl.ioctl(self.fd, termios.FIONREAD, bytes(_INT.size)))
            return int(unread)
        with socket.socket(fileno=os.dup(self.fd)) as end:
            if end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET:
                self._was_reset = True
        (waiting,) = _INT.unpack(fcntl.ioctl(self.fd, termios.TIOCOUTQ, bytes(_INT.size)))
        return self._given - self._taken if waiting or self._was_reset else 0
