"""Standard streams over a connection: the same two halves at both ends.

`OutgoingStream` reads a descriptor and sends what it reads, within the credit that the peer has given.
`IncomingStream` writes what arrives to a descriptor as fast as that takes it, and gives credit for what is gone.
Neither waits: a poll loop calls `on_readable` and `on_writable` when `wants_read` and `wants_write` say so and
the descriptor is ready; what they have to say goes to `send`.

Whoever reads nothing any more (a closed pipe) says so with a `StreamEnd` of his own against the direction of
the stream; the other side then stops, and what was under way is thrown away.

Not trusted: the peer. Data beyond the credit given is a `ProtocolError`.
Thread rules: one thread.
"""

import errno
import fcntl
import os
import select
import stat
import struct
import termios
from collections.abc import Callable, Mapping
from typing import TypeVar

from ptserver.errors import ProtocolError
from ptserver.messages import Message, StreamCredit, StreamData, StreamEnd, StreamNumber

_Half = TypeVar("_Half")

#: How many bytes of a stream may be under way to a receiver.
WINDOW_BYTES = 256 << 10

_READ_BYTES = 64 << 10
#: What a pipe that polls as writable takes without blocking (PIPE_BUF).
_CAREFUL_BYTES = 4096
_CAREFUL_ROUNDS = 16
_INT = struct.Struct("=i")

#: A terminal whose other end is closed reads as EIO; the rest are other ways to be gone.
_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENXIO, errno.EBADF, errno.ENOSPC})

Send = Callable[[Message], None]
Forget = Callable[[int], None]


class OutgoingStream:
    """Reads *fd* and sends it as stream number *stream*.

    owned: whether the descriptor is closed when the stream ends; forget: if set, it is told so just before, as the
    number may soon be another's. Then `fd` is -1. failure: the errno by which it ended, 0 for a plain end.
    """

    __slots__ = ("_credit_bytes", "_owned", "_send", "ended", "failure", "fd", "forget", "stream")

    def __init__(self, stream: StreamNumber, fd: int, send: Send, *, owned: bool) -> None:
        self.stream: StreamNumber = stream
        self.fd = fd
        self.ended = False
        self.failure = 0
        self._send = send
        self._owned = owned
        self.forget: Forget | None = None
        self._credit_bytes = 0

    @property
    def wants_read(self) -> bool:
        """Whether there is credit for what *fd* may hold."""
        return self._credit_bytes > 0 and not self.ended

    def add_credit(self, size_bytes: int) -> None:
        """Take the peer's credit."""
        self._credit_bytes += size_bytes

    def on_readable(self) -> None:
        """Read once and send it; send the end of the stream if there is no more."""
        if not self.wants_read:
            return
        try:
            data = os.read(self.fd, min(self._credit_bytes, _READ_BYTES))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno not in _GONE:
                raise
            data, self.failure = b"", error.errno
        if data:
            self._credit_bytes -= len(data)
            self._send(StreamData(self.stream, data))
        else:
            self._send(StreamEnd(self.stream))
            self.stop()

    def drain(self) -> None:
        """Send what *fd*, a pipe or socket that does not block, has now, and the end if that is next."""
        (left,) = _INT.unpack(fcntl.ioctl(self.fd, termios.FIONREAD, bytes(_INT.size)))
        while self.wants_read and left >= 0:
            before = self._credit_bytes
            self.on_readable()
            left -= before - self._credit_bytes or 1

    def stop(self) -> None:
        """Send no more: the peer does not want it, or there is none."""
        if not self.ended:
            self.ended = True
            if self._owned:
                _close(self)


class IncomingStream:
    """Writes what comes as stream number *stream* to *fd*.

    owned, forget: as of `OutgoingStream`; at_end: bytes to write before the end (a terminal's end-of-file character).
    """

    __slots__ = (
        "_at_end",
        "_buffer",
        "_chunk_bytes",
        "_credit_bytes",
        "_ending",
        "_owned",
        "_send",
        "_written_bytes",
        "ended",
        "fd",
        "forget",
        "stream",
    )

    def __init__(
        self,
        stream: StreamNumber,
        fd: int,
        send: Send,
        *,
        owned: bool,
        at_end: bytes = b"",
    ) -> None:
        self.stream: StreamNumber = stream
        self.fd = fd
        self.ended = False
        self._send = send
        self._owned = owned
        self.forget: Forget | None = None
        self._at_end = at_end
        self._buffer = bytearray()
        self._ending = False
        self._written_bytes = 0  # since credit was last given
        self._credit_bytes = WINDOW_BYTES
        careful = os.get_blocking(fd) and not stat.S_ISREG(os.fstat(fd).st_mode)
        self._chunk_bytes = _CAREFUL_BYTES if careful else _READ_BYTES
        send(StreamCredit(stream, WINDOW_BYTES))

    @property
    def wants_write(self) -> bool:
        """Whether something waits for *fd* to take it."""
        return bool(self._buffer) and not self.ended

    def receive(self, data: bytes) -> None:
        """Take what the peer sent.

        Raises:
            ProtocolError: it is more than the credit, or comes after the end.
        """
        self._credit_bytes -= len(data)
        if self._credit_bytes < 0 or self._ending:
            raise ProtocolError(f"the peer sent more of stream {self.stream} than it may")
        if not self.ended:
            self._buffer += data

    def end(self) -> None:
        """Take the end of the stream: close *fd* once everything is written."""
        if not self._ending:
            self._ending = True
            self._buffer += self._at_end
            if not self._buffer:
                self.stop()

    def on_writable(self) -> None:
        """Write what *fd* takes, and give credit for it."""
        if not self.wants_write:
            return
        try:
            self._write()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._send(StreamEnd(self.stream))
            self.stop()
            return
        if self._written_bytes >= WINDOW_BYTES // 4 or (self._written_bytes and not self._buffer):
            if not self._ending:
                self._credit_bytes += self._written_bytes
                self._send(StreamCredit(self.stream, self._written_bytes))
            self._written_bytes = 0
        if self._ending and not self._buffer:
            self.stop()

    def stop(self) -> None:
        """Write no more; what has not been written is lost."""
        if not self.ended:
            self.ended = True
            self._buffer.clear()
            if self._owned:
                _close(self)

    def _write(self) -> None:
        poll: select.poll | None = None
        for _ in range(_CAREFUL_ROUNDS):
            with memoryview(self._buffer) as view:
                count = os.write(self.fd, view[: self._chunk_bytes])
            del self._buffer[:count]
            self._written_bytes += count
            if not self._buffer:
                return
            if poll is None:
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
            if not poll.poll(0):
                return


def carried(streams: Mapping[int, _Half], number: int) -> _Half:
    """Return the half of a stream that a server speaks of.

    Raises:
        ProtocolError: it is not carried that way.
    """
    if number not in streams:
        raise ProtocolError(f"the server spoke of stream {number}, which is not carried that way")
    return streams[number]


def _close(stream: OutgoingStream | IncomingStream) -> None:
    if stream.forget is not None:
        stream.forget(stream.fd)
    os.close(stream.fd)
    stream.fd = -1
