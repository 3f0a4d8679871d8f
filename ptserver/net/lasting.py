"""A connection that goes on over another stream when its own is lost, without a byte missing or coming twice.

Each end counts the bytes of frames that have come, and keeps what it has sent until the other end has said that it
came (`Received`). Over a new stream each end is told how many bytes the other has, and sends again from there. The
decoder keeps the part of a frame that had come. So whoever uses the connection sees one stream of messages, which is
why no call is made twice or lost: neither a message nor an answer is.

    one end   |---- acknowledged ----|---- sent, kept ----|---- to be sent ----|
              0                    _base            _base + _gone

Not trusted: the peer. It may acknowledge, and ask for, no byte that was not sent; and one that acknowledges nothing
makes the connection fail, not this process grow.
"""

import socket
from typing import Any, TypeVar

from ptserver.errors import ConnectionLostError, ProtocolError
from ptserver.messages import Received
from ptserver.net.connection import Connection, Stream
from ptserver.net.transport import tune
from ptserver.net.wire import Codec

T = TypeVar("T")

#: After so many bytes the other end is told that they came.
ACKNOWLEDGED_BYTES = 1 << 20
#: The most that is kept. What buffers on the way hold is a fraction of it.
_MAX_KEPT_BYTES = 64 << 20


class LastingConnection(Connection[T]):
    """A `Connection` that can be suspended when its stream is lost, and resumed over another."""

    __slots__ = ("_base", "_patience_seconds", "_told_bytes", "is_suspended")

    def __init__(self, sock: Stream, codec: Codec, incoming: Any) -> None:
        """Take over *sock* as `Connection` does. is_suspended: whether there is no stream at present."""
        super().__init__(sock, codec, incoming)
        self.is_suspended = False
        self._base = 0
        self._told_bytes = 0
        self._patience_seconds: float | None = None

    def set_patience(self, seconds: float) -> None:
        """As `Connection.set_patience`, and for later streams too."""
        self._patience_seconds = seconds
        super().set_patience(seconds)

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return self._gone < len(self._out)

    def receive(self) -> list[T]:
        """Return the messages that have come, as `Connection.receive` does.

        Raises:
            ConnectionLostError: as there; the connection can be resumed.
            ProtocolError: as there, or the peer acknowledges what was not sent, or nothing.
        """
        if self.is_suspended:
            return []
        messages: list[T] = []
        for message in super().receive():
            if isinstance(message, Received):
                self._acknowledge(message.bytes)
            else:
                messages.append(message)
        if self.received_bytes - self._told_bytes >= ACKNOWLEDGED_BYTES:
            self.acknowledge()
        if self._gone > _MAX_KEPT_BYTES:
            raise ProtocolError(f"the peer acknowledges nothing of {self._gone >> 20} MiB")
        return messages

    def flush(self) -> bool:
        """Send what the stream takes; return whether nothing waits that it could take."""
        if self.is_suspended or self._gone == len(self._out):
            return True
        try:
            with memoryview(self._out) as view:
                count = self._sock.send(view[self._gone :])
        except BlockingIOError:
            return False
        except OSError:
            self._lost = True  # which `receive` tells, after what the peer said last
            return True
        self.sent_bytes += count
        self._gone += count
        return self._gone == len(self._out)

    @property
    def has_all_arrived(self) -> bool:
        """Whether the peer has said that all came that was sent."""
        return not self._out

    def acknowledge(self) -> None:
        """Say how much has come, now."""
        self._told_bytes = self.received_bytes
        self.send(Received(self.received_bytes))

    def suspend(self) -> None:
        """Give up the stream, and go on without one: what is sent is kept."""
        self._sock.close()
        self.is_suspended = True
        self._lost = False

    def can_resume_at(self, position: int) -> bool:
        """Whether the peer, of whose stream *position* bytes have come, can be sent all that follows."""
        return self._base <= position <= self._base + self._gone

    def resume(self, stream: socket.socket, position: int) -> None:
        """Go on over *stream*, whose other end has received *position* bytes of this connection.

        Raises:
            ProtocolError: it cannot have.
        """
        if not self.can_resume_at(position):
            raise ProtocolError("the peer has lost what it said it had, or has what it was not sent")
        self._drop(position)
        self._gone = 0
        self.sent_bytes = position
        self._told_bytes = self.received_bytes
        self._sock = stream
        stream.setblocking(False)
        if self._patience_seconds is None:
            tune(stream)
        else:
            tune(stream, self._patience_seconds)
        self.is_suspended = False

    def finish(self, timeout: float = 1.0) -> None:
        """Send what is queued and close, unless there is no stream."""
        if self.is_suspended:
            self.close()
        else:
            super().finish(timeout)

    def await_messages(self, seconds: float) -> list[T]:
        """As `Connection.await_messages`; a lost connection is not waited for."""
        if self.is_suspended:
            raise ConnectionLostError("the connection is lost")
        return super().await_messages(seconds)

    def _acknowledge(self, received_bytes: int) -> None:
        if received_bytes < self._base:
            return  # said before the connection was resumed, and sent again
        if not self.can_resume_at(received_bytes):
            raise ProtocolError("the peer acknowledges what it was not sent")
        self._gone -= received_bytes - self._base
        self._drop(received_bytes)

    def _drop(self, position: int) -> None:
        """Keep no more what comes before *position*."""
        del self._out[: position - self._base]
        self._base = position
