"""Connections: messages over a connected socket, without blocking, made for a poll loop.

    with the socket's number from `fileno()` in a poll set, one round of the loop is
        if readable: for message in connection.receive(): ...
        connection.send(...), as often as there is something to say
        connection.flush()
        poll for reading always, unless `congested`; for writing if `wants_write`

so that a busy loop makes one recv and one send a round, however many messages they carry.

What a round trip costs is the sleeping, not the messages (`ptserver.net.poll_loop`). TCP_QUICKACK and SO_BUSY_POLL
change nothing on loopback, so they are not set.

Back-pressure: `send` only queues. Who queues faster than the peer reads sees `congested` and must stop taking
work (reading from this connection, from a stream or from the program) until it is false again.

The peer is not trusted: whatever it sends, `receive` raises `ProtocolError` or `ConnectionLostError`, nothing
else. A connection belongs to one thread. The handshakes block and have a deadline.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec

from ptserver.errors import ConnectError, ConnectionLostError, ProtocolError, PtServerError, RefusedError
from ptserver.messages import (
    CODECS,
    PROTOCOL_VERSION,
    FromWatcher,
    Hello,
    Message,
    Refused,
    Resume,
    ToHost,
    ToServer,
    ToWatcher,
    WatcherHello,
    WatcherWelcome,
    Welcome,
)
from ptserver.net.transport import RECEIVE_BYTES, tune
from ptserver.net.wire import HEADER_BYTES, MAX_FRAME_BYTES, MAX_HELLO_BYTES, Codec, FrameDecoder, frame_size

if TYPE_CHECKING:
    from ptserver.net.tls_stream import TlsStream

T = TypeVar("T")

#: What a connection runs over: a connected socket, or one under TLS.
Stream: TypeAlias = "socket.socket | TlsStream"

#: `congested` from this many queued bytes on: a large result and some.
HIGH_WATER_BYTES = 4 << 20

_LINGER_SECONDS = 1.0
_COMPACT_BYTES = 4 << 20
_JSON = Codec("json")
#: How an alert and a handshake of TLS begin; as a frame's size that would be too much.
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")


class Connection(Generic[T]):
    """One end of a connection after the handshake; T is what arrives there: `ToServer` or `ToHost`."""

    __slots__ = (
        "_buffer", "_decode", "_decoder", "_gone", "_lost", "_out", "_put_back", "_sock",
        "_view", "codec", "has_received", "reads", "received_bytes", "sent_bytes",
    )  # fmt: skip

    def __init__(
        self, sock: Stream, codec: Codec, incoming: Any, max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        """Take over `sock`, a connected stream socket or TLS over one, and make it non-blocking.

        incoming: the union of what the peer may send; anything else is a `ProtocolError`.
        has_received: whether `receive` must be called once before the first poll, since something is here that
        poll cannot see: TLS has brought it together with the handshake, or `put_back`. reads, received_bytes,
        sent_bytes: how often something has come, how much, and how much has gone, so far.
        """
        self.reads = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.has_received = not isinstance(sock, socket.socket) and sock.pending() > 0
        self.codec = codec
        self._sock = sock
        self._decode: Callable[[memoryview], T] = codec.decoder(incoming)
        self._decoder = FrameDecoder(max_frame_bytes)
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._out = bytearray()
        self._gone = 0  # bytes of _out that have been sent
        self._lost = False
        self._put_back: list[T] = []
        sock.setblocking(False)
        tune(sock)

    def fileno(self) -> int:
        """Return the socket's number, for a poll set; -1 when closed."""
        return self._sock.fileno()

    def set_patience(self, seconds: float) -> None:
        """Have the kernel give the peer's machine up when it answers nothing for that long."""
        tune(self._sock, seconds)

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait to be sent."""
        return len(self._out) - self._gone

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._out)

    @property
    def congested(self) -> bool:
        """Whether so much waits to be sent that no more work should be taken on."""
        return len(self._out) - self._gone >= HIGH_WATER_BYTES

    def receive(self) -> list[T]:
        """Return the messages that have come, by one read of the socket; none if nothing is there.

        Raises:
            ConnectionLostError: the peer has closed, or is gone, and all that came before has been returned.
            ProtocolError: the peer sent something else than messages; the connection is of no use any more.
        """
        if self._put_back:
            messages, self._put_back = self._put_back, []
            return messages
        try:
            count = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            if self._lost:
                raise ConnectionLostError("the connection was closed by the other side") from None
            return []
        except OSError as error:
            raise ConnectionLostError(f"the connection broke: {error.strerror or error}") from error
        if count == 0:
            middle = " in the middle of a message" if self._decoder.pending_bytes else ""
            raise ConnectionLostError(f"the connection was closed by the other side{middle}")
        self.reads += 1
        self.received_bytes += count
        decode = self._decode
        return [decode(frame) for frame in self._decoder.feed(self._view[:count])]

    def await_messages(self, seconds: float) -> list[T]:
        """Send what is queued and return the next messages. Blocks, outside of any poll loop.

        Raises:
            ConnectionLostError: nothing came for *seconds*, or as :meth:`receive`.
            ProtocolError: as :meth:`receive`.
        """
        deadline = time.monotonic() + seconds
        poll = select.poll()
        while True:
            poll.register(self.fileno(), select.POLLIN if self.flush() else select.POLLIN | select.POLLOUT)
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConnectionLostError(f"the other side said nothing for {seconds:g} s")
            poll.poll(left * 1000)
            messages = self.receive()
            if messages:
                return messages

    def put_back(self, messages: list[T]) -> None:
        """Let the next :meth:`receive` return *messages* first; `has_received` says so."""
        self._put_back += messages
        self.has_received = self.has_received or bool(messages)

    def send(self, message: Message) -> None:
        """Queue `message`; :meth:`flush` sends it.

        Raises:
            ProtocolError: it cannot be encoded; nothing is queued.
        """
        self.codec.encode_into(message, self._out)

    def flush(self) -> bool:
        """Send what the socket takes; return whether everything has gone out.

        If the peer is gone, what is queued is dropped: the next :meth:`receive` returns what it said last,
        and then raises ConnectionLostError.
        """
        left = len(self._out) - self._gone
        if not left:
            return True
        try:
            with memoryview(self._out) as view:
                count = self._sock.send(view[self._gone :])
        except BlockingIOError:
            return False
        except OSError:
            self._lost = True
            count = left
        self.sent_bytes += count
        self._gone += count
        if count == left:
            self._out.clear()
            self._gone = 0
            return True
        if self._gone > _COMPACT_BYTES:  # moving what is left costs as much as sending it
            del self._out[: self._gone]
            self._gone = 0
        return False

    def drain(self, timeout: float) -> bool:
        """Flush until everything has gone out, at most `timeout` seconds; return whether it has. Blocks."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLOUT)
        while not self.flush():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
        return True

    def finish(self, timeout: float = _LINGER_SECONDS) -> None:
        """Send what is queued and close, so that the peer can read all of it. Blocks for at most `timeout`."""
        deadline = time.monotonic() + timeout
        if self.drain(timeout):
            linger(self._sock, deadline)
        self.close()

    def close(self) -> None:
        """Close at once; what is queued is lost. Closing twice does nothing."""
        self._sock.close()


def client_handshake(sock: Stream, hello: Hello, timeout: float = 10.0) -> tuple[Welcome, Connection[ToHost]]:
    """Say hello on a connected socket and return the server's welcome and the open connection.

    It blocks for at most `timeout` seconds, and closes the socket if it raises.

    Raises:
        RefusedError: the server refuses, with its own code and words.
        ConnectError: it says nothing for that time.
        ConnectionLostError: it closes without an answer.
        ProtocolError: it answers something else, or welcomes with what was not offered.
    """
    with contextlib.ExitStack() as on_error:
        on_error.callback(sock.close)
        welcome: Welcome = _ask(sock, hello, Welcome, timeout)
        connection: Connection[ToHost] = _open(sock, hello, welcome, ToHost)
        on_error.pop_all()
    return welcome, connection


def watcher_handshake(
    sock: Stream, hello: WatcherHello, timeout: float = 10.0
) -> tuple[WatcherWelcome, Connection[ToWatcher]]:
    """Say a watcher's hello, as `client_handshake` says a host's."""
    with contextlib.ExitStack() as on_error:
        on_error.callback(sock.close)
        welcome: WatcherWelcome = _ask(sock, hello, WatcherWelcome, timeout)
        connection: Connection[ToWatcher] = Connection(sock, Codec(welcome.codec), ToWatcher)
        on_error.pop_all()
    return welcome, connection


def _ask(sock: Stream, hello: Hello | WatcherHello, expected: Any, timeout: float) -> Any:
    """Return the server's answer of the type *expected* to a hello, if it keeps to what was offered."""
    deadline = time.monotonic() + timeout
    try:
        send_all(sock, _JSON.encode(hello), deadline)
        answer = _JSON.decoder(expected | Refused)(read_frame(sock, MAX_FRAME_BYTES, deadline))
    except TimeoutError as error:
        raise ConnectError(f"the server said nothing for {timeout:g} s; is it a ptserver?") from error
    if isinstance(answer, Refused):
        raise RefusedError(answer.code, f"the server refuses: {answer.message}")
    if answer.version not in hello.versions or answer.codec not in {*hello.codecs} & {*CODECS}:
        raise ProtocolError(
            f"the server chose version {answer.version} and codec {answer.codec!r}, which were not offered"
        )
    return answer


def server_handshake(
    sock: Stream, timeout: float, choose: Callable[[Hello, int, str], Welcome]
) -> tuple[Hello, Welcome, Connection[ToServer]]:
    """Read the hello on an accepted socket, answer it, and return both messages and the open connection.

    choose: called with the hello, the version and the codec that were agreed on; returns the welcome, which
    names both, or raises `RefusedError` (for a token, an abstraction, a limit). Reading and writing each take
    at most `timeout` seconds. If it raises, the peer has been told why and the socket is closed.

    Raises:
        RefusedError: `choose` raised it, or nothing could be agreed on, or a host refuses what it was offered.
        ProtocolError: no complete, well-formed hello came in time.
        ConnectionLostError: the peer closed.
    """
    hello = receive_hello(sock, timeout)
    if not isinstance(hello, Hello):
        refuse(sock, error := RefusedError("watch", "no session of this server can be watched, or resumed"))
        raise error
    return hello, *answer_hello(sock, hello, timeout, choose)


def receive_hello(sock: Stream, timeout: float) -> Hello | WatcherHello | Resume:
    """Read the hello of a host, or of a watcher, or who resumes a session, on an accepted socket.

    Raises: as `server_handshake`; the peer has been told why and the socket is closed.
    """
    deadline = time.monotonic() + timeout
    with _telling(sock, timeout):
        return _decode_hello(read_frame(sock, MAX_HELLO_BYTES, deadline))
    raise AssertionError("not reached")


def answer_hello(
    sock: Stream, hello: Hello, timeout: float, choose: Callable[[Hello, int, str], Welcome]
) -> tuple[Welcome, Connection[ToServer]]:
    """Answer a hello as `server_handshake` does; return the welcome and the open connection."""
    with _telling(sock, timeout):
        welcome = choose(hello, *negotiate(hello))
        send_all(sock, _JSON.encode(welcome), time.monotonic() + timeout)
    return welcome, _open(sock, hello, welcome, ToServer)


def _open(sock: Stream, hello: Hello, welcome: Welcome, incoming: Any) -> Connection[Any]:
    """Return the connection after a handshake: one that lasts if a ticket was given for its session."""
    codec = Codec(welcome.codec)
    if (hello.wait_seconds and welcome.ticket) or hello.ticket:
        from ptserver.net.lasting import LastingConnection  # which imports this module

        return LastingConnection(sock, codec, incoming)
    return Connection(sock, codec, incoming)


def answer_watcher(
    sock: Stream,
    hello: WatcherHello,
    timeout: float,
    choose: Callable[[WatcherHello, int, str], WatcherWelcome],
) -> Connection[FromWatcher]:
    """Answer the hello of a watcher; return the open connection. *choose* and errors: as `server_handshake`."""
    with _telling(sock, timeout):
        welcome = choose(hello, *negotiate(hello))
        send_all(sock, _JSON.encode(welcome), time.monotonic() + timeout)
    return Connection(sock, Codec(welcome.codec), FromWatcher)


@contextlib.contextmanager
def _telling(sock: Stream, timeout: float) -> Iterator[None]:
    """Tell the peer of an error inside, and close the socket."""
    with contextlib.ExitStack() as on_error:
        on_error.callback(sock.close)
        try:
            yield
        except TimeoutError as error:
            slow = ProtocolError(f"the peer did not complete its hello within {timeout:g} s")
            refuse(sock, slow)
            raise slow from error
        except PtServerError as error:
            refuse(sock, error)
            raise
        on_error.pop_all()


def negotiate(hello: Hello | WatcherHello) -> tuple[int, str]:
    """Return the version and the codec to use: the best that both sides speak, by the host's preference.

    Raises:
        RefusedError: there is none.
    """
    check_versions(hello.versions)
    for codec in hello.codecs:
        if codec in CODECS:
            return PROTOCOL_VERSION, codec
    raise RefusedError("codec", f"this server speaks {' and '.join(CODECS)}, the host neither")


def refused_for(error: PtServerError) -> Refused:
    """Return what to tell a peer whose session ends by `error`: the one map from errors to codes."""
    match error:
        case RefusedError(code=code):
            return Refused(code, str(error)[:4096])
        case ProtocolError():
            return Refused("malformed", str(error)[:4096])
        case _:
            return Refused("internal", "the server failed; its log says how")


def refuse(sock: Stream, error: PtServerError) -> None:
    """Tell the peer of a connection that has no session why it gets none, and close. Blocks for a second."""
    deadline = time.monotonic() + _LINGER_SECONDS
    try:
        send_all(sock, _JSON.encode(refused_for(error)), deadline)
        linger(sock, deadline)
    except (OSError, ConnectError, ConnectionLostError):
        pass  # it does not listen any more
    finally:
        sock.close()


class _AnyHello(msgspec.Struct, tag_field="type", tag="hello"):
    """What a hello of any version has."""

    versions: tuple[int, ...]


class _AnyWatcherHello(_AnyHello, tag_field="type", tag="watcherhello"):
    """What a watcher's hello of any version has."""


def _decode_hello(payload: bytearray) -> Hello | WatcherHello | Resume:
    try:
        hello: Hello | WatcherHello | Resume | Refused
        hello = _JSON.decoder(Hello | WatcherHello | Resume | Refused)(payload)
    except ProtocolError:
        any_hello: _AnyHello = _JSON.decoder(_AnyHello | _AnyWatcherHello)(payload)
        check_versions(any_hello.versions)
        raise
    if isinstance(hello, Refused):
        raise RefusedError(hello.code, f"the host refuses: {hello.message}")
    return hello


def check_versions(versions: tuple[int, ...]) -> None:
    """Raise RefusedError if this version of the protocol is not among *versions*."""
    if PROTOCOL_VERSION not in versions:
        theirs = ", ".join(map(str, versions[:8])) or "none"
        raise RefusedError(
            "version",
            f"this server speaks version {PROTOCOL_VERSION} of the protocol, the host {theirs};"
            " install the same release on both sides",
        )


def read_frame(sock: Stream, max_frame_bytes: int, deadline: float) -> bytearray:
    """Return one payload and read nothing beyond it, since another codec may follow.

    Raises:
        TimeoutError: it is not there at *deadline* (time.monotonic()).
        ConnectionLostError: the peer closed.
        ProtocolError: it is larger than *max_frame_bytes*.
        RefusedError: it is TLS.
    """
    header = receive_exactly(sock, HEADER_BYTES, deadline)
    if header[:2] in _TLS_RECORDS:
        raise RefusedError(
            "tls", "one side speaks TLS and the other does not: give --keys DIR to both, or to none"
        )
    return receive_exactly(sock, frame_size(header, max_frame_bytes), deadline)


def receive_exactly(sock: Stream, size: int, deadline: float) -> bytearray:
    """Return *size* bytes and read nothing beyond them. Raises: as `read_frame`."""
    data = bytearray()
    with _translated():
        while len(data) < size:
            sock.settimeout(_left(deadline))
            piece = sock.recv(min(size - len(data), RECEIVE_BYTES))
            if not piece:
                raise ConnectionLostError("the other side closed the connection before the session began")
            data += piece
    return data


def send_all(sock: Stream, data: bytearray, deadline: float) -> None:
    """Send *data*. Raises: as `read_frame`."""
    with _translated():
        sock.settimeout(_left(deadline))
        sock.sendall(data)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        raise ConnectionLostError(
            f"the connection broke before the session began: {error.strerror or error}"
        ) from error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def linger(sock: Stream, deadline: float) -> None:
    """Send no more, and wait until the peer has closed: closing with unread input may destroy our last words."""
    try:
        sock.shutdown(socket.SHUT_WR)
        while True:
            sock.settimeout(_left(deadline))
            if not sock.recv(RECEIVE_BYTES):
                return
    except (OSError, ConnectError, ConnectionLostError):  # a timeout, or the peer is gone
        return
