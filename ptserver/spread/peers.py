"""The connections of one host of a spread program with the others, over which they pass pages to each other.

What the home says decides: who is not announced by it cannot connect, and what a peer sends is taken only as the
pages that the home has announced (`ptserver.spread.passing`). Each `Link` of the home is answered by one `Unlinked`
in the end; afterwards nothing of that connection is taken.

Not trusted: the other hosts, and who else connects.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ptserver.errors import ConnectionLostError, ProtocolError, PtServerError, UntrustedError
from ptserver.net.connection import Connection, Stream
from ptserver.net.meanwhile import meanwhile
from ptserver.net.poll_loop import PollLoop
from ptserver.net.wire import Codec
from ptserver.spread.bundle import MOST_MESSAGES, Bundle
from ptserver.spread.message_base import Several, SpreadMessage
from ptserver.spread.passing_messages import FromPeer, Link, Linked, Listening, PassedPage, Unlink, Unlinked
from ptserver.spread.peer_link import SECONDS, Listener, call
from stepping.maps import PAGE_BYTES

#: The largest frame of a peer: as many pages as go together, and room for what they say of each.
_MAX_FRAME_BYTES = MOST_MESSAGES * (PAGE_BYTES + 64) + 1024
#: How many who have connected may be about to prove who they are.
_MAX_STRANGERS = 16


@dataclass(slots=True)
class _Peer:
    """What the home has announced. read: takes what comes over the connection; bundle: what is to be said there."""

    secret: bytes
    connection: Connection[FromPeer] | None = None
    bundle: Bundle | None = None
    read: Callable[[], None] = lambda: None


class Peers:
    """The peers of host *number*, in *loop*. home: the connection to the home; emit: says something to it.

    patience_seconds: how long a peer's machine may answer nothing, 0 for ever. listening: what others need to
    connect, None if they cannot.
    """

    def __init__(
        self,
        number: int,
        home: Stream,
        loop: PollLoop,
        emit: Callable[[SpreadMessage], None],
        patience_seconds: float,
    ) -> None:
        self._number = number
        self._loop = loop
        self._emit = emit
        self._take: Callable[[int, PassedPage], None] = lambda peer, page: None
        self._forget: Callable[[int], None] = lambda peer: None
        self._patience_seconds = patience_seconds
        self._peers: dict[int, _Peer] = {}
        self._announced = threading.Condition()  # of changes to `_peers` that who connects may wait for
        self._strangers = 0
        self._listener: Listener | None = None
        self.listening: Listening | None = None
        self.takers: dict[type, Callable[..., None]] = {Link: self._link, Unlink: self._unlink}
        with contextlib.suppress(PtServerError):  # pages go through the home then
            self._listener = Listener(home)
            self.listening = self._listener.listening
            self._listener.sock.setblocking(False)
            loop.watch(self._listener.sock.fileno(), self._accept)

    def begin(self, take: Callable[[int, PassedPage], None], forget: Callable[[int], None]) -> None:
        """Have *take* take pages of peers, which may raise ProtocolError, and *forget* forget those not used yet."""
        self._take, self._forget = take, forget

    def say(self, peer: int, message: PassedPage) -> bool:
        """Send a page to a peer; return False if there is no connection."""
        known = self._peers.get(peer)
        if known is None or known.bundle is None:
            return False
        known.bundle.say(message)
        return True

    def flush(self) -> None:
        """Send what can be sent, and watch for what comes."""
        for peer in self._peers.values():
            if peer.bundle is not None and peer.connection is not None:
                events = select.POLLIN if peer.bundle.flush() else select.POLLIN | select.POLLOUT
                self._loop.watch(peer.connection.fileno(), peer.read, events)

    def close(self) -> None:
        """Let all go."""
        for peer in self._peers.values():
            if peer.connection is not None:
                peer.connection.close()
        if self._listener is not None:
            self._listener.sock.close()

    # What the home says.

    def _link(self, message: Link) -> None:
        peer = _Peer(message.secret)
        with self._announced:
            self._peers[message.peer] = peer
            self._announced.notify_all()
        if not message.address:
            return

        def found(stream: "Stream | PtServerError") -> None:
            if isinstance(stream, PtServerError):
                self._over(message.peer, peer, str(stream))
            else:
                self._begin(message.peer, message.secret, stream)

        meanwhile(
            self._loop,
            message.address,
            lambda: call(message.address, message.certificate, self._number, message.peer, message.secret),
            found,
        )

    def _unlink(self, message: Unlink) -> None:
        peer = self._peers.get(message.peer)
        if peer is not None:
            self._over(message.peer, peer, "")

    # Connections.

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.sock.accept()
        except OSError:  # gone again, or there is no descriptor for it
            return
        if self._strangers >= _MAX_STRANGERS:
            sock.close()
            return
        self._strangers += 1
        listener = self._listener
        meanwhile(self._loop, "who connects", lambda: self._welcome(listener, sock), self._welcomed)

    def _welcome(self, listener: Listener, sock: socket.socket) -> tuple[int, bytes, Stream]:
        deadline = time.monotonic() + SECONDS

        def secret_of(peer: int) -> bytes | None:
            with self._announced:  # who connects may have heard of it from the home before this host does
                if not self._announced.wait_for(lambda: peer in self._peers, deadline - time.monotonic()):
                    return None
                return self._peers[peer].secret

        return listener.welcome(sock, self._number, secret_of)

    def _welcomed(self, found: tuple[int, bytes, Stream] | PtServerError) -> None:
        self._strangers -= 1
        if not isinstance(
            found, PtServerError
        ):  # who is refused was none of the hosts, which say so to the home
            self._begin(*found)

    def _begin(self, number: int, secret: bytes, stream: Stream) -> None:
        peer = self._peers.get(number)
        if peer is None or peer.secret != secret or peer.connection is not None:  # it was given up meanwhile
            stream.close()
            return
        connection: Connection[FromPeer]
        connection = Connection(stream, Codec("msgpack"), FromPeer, _MAX_FRAME_BYTES)
        if self._patience_seconds:
            connection.set_patience(self._patience_seconds)
        peer.connection, peer.bundle = connection, Bundle(connection)
        peer.read = self._reader(number, peer, connection)
        self._emit(Linked(number))
        if connection.has_received:
            peer.read()

    def _reader(self, number: int, peer: _Peer, connection: Connection[FromPeer]) -> Callable[[], None]:
        def read() -> None:
            try:
                for message in connection.receive():
                    for page in message.messages if isinstance(message, Several) else (message,):
                        self._take(number, page)
            except (ConnectionLostError, ProtocolError, UntrustedError) as error:
                self._over(number, peer, str(error))

        return read

    def _over(self, number: int, peer: _Peer, reason: str) -> None:
        """Have nothing to do with a peer any more, and say so, once."""
        if self._peers.get(number) is not peer:
            return
        del self._peers[number]
        if peer.connection is not None:
            self._loop.unwatch(peer.connection.fileno())
            peer.connection.close()
        self._forget(number)
        self._emit(Unlinked(number, reason))
