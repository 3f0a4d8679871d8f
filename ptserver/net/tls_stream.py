"""TLS over a connected socket, shaped like a socket, for `ptserver.net.connection`.

Records are decoded and made in memory (`ssl.MemoryBIO`), and the socket is read and written here. That keeps three
promises that a poll loop needs and `ssl.SSLSocket` does not give:

- one `recv_into` takes all that one read of the socket brought, so that nothing is left where poll cannot see it, as
  long as the caller's buffer has `RECEIVE_BYTES`; what a smaller one leaves is told by `pending`;
- one read of the socket for any number of records, where OpenSSL reads each header by itself;
- `send` tells of bytes as sent only when their ciphertext has gone out, so that who still has bytes to send, and
  waits for room, is exactly who has ciphertext to send.

Not trusted: the peer. Its records are OpenSSL's to judge; what answers them (key updates) is bounded.
Thread rules: one thread.
"""

import contextlib
import errno
import os
import select
import socket
import ssl
import time
from typing import cast

from ptserver.errors import ConnectionLostError, UntrustedError
from ptserver.net.transport import RECEIVE_BYTES

#: How much is encrypted before it is sent: the most that is held twice.
_SEND_BYTES = 256 << 10
_RECORD_BYTES = 16 << 10
#: How much of the socket is read at a time: with a record that was incomplete before, it is no more than is returned.
_READ_BYTES = RECEIVE_BYTES - _RECORD_BYTES - 512
#: The most of answers to the peer's key updates that may wait for a peer who does not read.
_MAX_ANSWERS_BYTES = 64 << 10


class TlsStream:
    """One end of a TLS connection over *sock*, which it takes over; call :meth:`handshake` first.

    name: of the server that must be there, its host name or address; None at the server's end.
    It blocks as `settimeout` and `setblocking` say; a timeout is for the whole of one operation.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str | None) -> None:
        sock.setblocking(False)
        self.family = sock.family
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=name is None, server_hostname=name
        )
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._ciphertext = b""  # made, and not sent yet
        self._owed = 0  # the plaintext bytes in it that `send` has not told of
        self._more = False  # there may be something that has been received and not returned
        self._timeout: float | None = None

    def handshake(self) -> None:
        """Do the handshake, within the timeout.

        Raises:
            ssl.SSLError: it failed, and the peer has been told, if it reads.
            TimeoutError: it takes too long.
            OSError: the connection broke (ECONNRESET if the peer closed it).
        """
        deadline = self._deadline()
        while True:
            try:
                self._tls.do_handshake()
                self._send_answers(deadline)
                self._more = bool(self.pending())
                return
            except ssl.SSLWantReadError:
                self._send_answers(deadline)
                self._wait(select.POLLIN, deadline)
                if not self._fill():
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from None
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._send_answers(deadline)  # the alert
                raise

    def fileno(self) -> int:
        """Return the socket's number; -1 when closed."""
        return self._sock.fileno()

    def getsockname(self) -> object:
        """Return the socket's own address, as of a socket."""
        return self._sock.getsockname()

    def getpeername(self) -> object:
        """Return the peer's address, as of a socket."""
        return self._sock.getpeername()

    def setblocking(self, blocking: bool) -> None:
        """Wait for ever, or never."""
        self._timeout = None if blocking else 0.0

    def settimeout(self, seconds: float | None) -> None:
        """Wait at most *seconds*, None for ever."""
        self._timeout = seconds

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option of the socket."""
        self._sock.setsockopt(level, option, value)

    def pending(self) -> int:
        """Return how many bytes have been received, decoded or not, that `recv` has not returned."""
        return self._tls.pending() + self._incoming.pending

    def recv(self, size: int) -> bytes:
        """Return up to *size* bytes, none at the end. Raises: as `socket.recv`."""
        data = bytearray(size)
        count = self.recv_into(data)
        return bytes(data[:count])

    def recv_into(self, buffer: bytearray) -> int:
        """Fill *buffer* as far as there is something; return how far, 0 at the end.

        Raises:
            BlockingIOError: nothing is there, and it must not wait.
            TimeoutError: nothing came in time.
            OSError: the connection broke.
            UntrustedError, ConnectionLostError: the peer said so, or sends what is no TLS.
        """
        deadline = self._deadline()
        count = self._decode(buffer) if self._more else -1
        while count < 0:
            while True:
                try:
                    self._fill()
                    break
                except BlockingIOError:
                    if self._timeout == 0.0:
                        raise
                    self._wait(select.POLLIN, deadline)
            count = self._decode(buffer)
            if count < 0 and self._timeout == 0.0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return count

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send from the start of *data*; return how many bytes have gone out, at least 1.

        Bytes that are not told of as sent must come again at the start of the next *data*.
        Raises: OSError, as `socket.send`.
        """
        deadline = self._deadline()
        sent = 0
        with memoryview(data) as view:
            while True:
                if self._ciphertext:
                    try:
                        while self._ciphertext:
                            self._ciphertext = self._ciphertext[self._sock.send(self._ciphertext) :]
                    except BlockingIOError:
                        if sent:
                            return sent
                        if self._timeout == 0.0:
                            raise
                        self._wait(select.POLLOUT, deadline)
                        continue
                sent += self._owed
                self._owed = 0
                if sent >= len(view):
                    return sent
                end = min(len(view), sent + _SEND_BYTES)
                position = sent
                while position < end:
                    position += self._tls.write(view[position : min(end, position + _RECORD_BYTES)])
                self._ciphertext = self._outgoing.read()
                self._owed = end - sent

    def sendall(self, data: bytes | bytearray) -> None:
        """Send all of *data*. Raises: as :meth:`send`."""
        left = memoryview(data)
        while left:
            left = left[self.send(bytes(left)) :]

    def shutdown(self, _how: int) -> None:
        """Say that no more will be sent. Raises: OSError if the connection is gone."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._send_answers(time.monotonic())
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket at once."""
        self._sock.close()

    def _fill(self) -> int:
        """Read the socket once; return how much came, 0 at its end."""
        count = self._sock.recv_into(self._buffer)
        if count:
            self._incoming.write(self._view[:count])
        else:
            self._incoming.write_eof()
        return count

    def _decode(self, buffer: bytearray) -> int:
        """Decode what has come into *buffer*; return how many bytes, 0 at the end, -1 if there is nothing yet."""
        total = -1
        size = len(buffer)
        read = self._tls.read
        with memoryview(buffer) as view:
            while total < size:
                start = max(total, 0)
                try:
                    count = cast(int, read(size - start, view[start:]))
                except ssl.SSLWantReadError:
                    break
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    count = 0
                except ssl.SSLError as error:
                    raise _meaning(error) from error
                total = start + count
                if not count or not (self._incoming.pending or self._tls.pending()):
                    break
        self._more = total == size
        if self._outgoing.pending:
            self._ciphertext += self._outgoing.read()
            if len(self._ciphertext) - self._owed > _MAX_ANSWERS_BYTES + _SEND_BYTES:
                raise OSError(errno.ENOBUFS, "the peer asks for new keys and does not take them")
        return total

    def _send_answers(self, deadline: float | None) -> None:
        """Send what OpenSSL wants to say by itself."""
        self._ciphertext += self._outgoing.read()
        while self._ciphertext:
            try:
                self._ciphertext = self._ciphertext[self._sock.send(self._ciphertext) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _wait(self, events: int, deadline: float | None) -> None:
        """Wait until the socket has one of *events*. Raises: TimeoutError."""
        poll = select.poll()
        poll.register(self._sock, events)
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
        if not poll.poll(left):
            raise TimeoutError("timed out")


def _meaning(error: ssl.SSLError) -> UntrustedError | ConnectionLostError:
    """Return what an alert of the peer means that comes after the handshake of the end that connects.

    In TLS 1.3 that end is done before the other has seen its certificate.
    """
    reason = error.reason or ""
    if "ALERT" not in reason:
        return ConnectionLostError(f"the TLS connection broke: {reason.lower().replace('_', ' ') or error}")
    if "CERTIFICATE_REQUIRED" in reason:
        return UntrustedError(
            "the other side wants a certificate of ours: cert.pem and key.pem are missing from the folder of keys"
        )
    if "CERTIFICATE_EXPIRED" in reason:
        return UntrustedError(
            "the other side finds our certificate expired: make new keys with `ptserver keys`"
        )
    words = reason.lower().replace("_", " ")
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason or "DECRYPT" in reason:
        return UntrustedError(f"the other side does not trust our certificate: is it of its CA? ({words})")
    return ConnectionLostError(f"the other side ended TLS: {words}")
