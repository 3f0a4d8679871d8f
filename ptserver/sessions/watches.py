"""Passes on, in a session's process, what watchers want of the stub host, and what the host tells them.

Watchers come as relays (`ptserver.watching.relay`), processes of this machine that connect to the session's Unix
socket. A relay takes what it is sent at once, and deals itself with a slow watcher; one that does not is sent no more
than `_ROOM_BYTES`, and what it missed is counted.

Not trusted: the stub host and its data, which are only passed on. Thread rules: the session's main thread.
"""

import select
import socket
from collections.abc import Callable

import msgspec

from ptserver.errors import ConnectionLostError, ProtocolError
from ptserver.messages import Message, Unwatch, Watch, WatchedCalls, WatchedRows, WatchEnded
from ptserver.net.connection import Connection
from ptserver.net.poll_loop import PollLoop
from ptserver.net.wire import Codec

_ROOM_BYTES = 4 << 20
_MAX_RELAYS = 64
_FINISH_SECONDS = 0.5


class SessionWatches:
    """The watches of one session. listener: its socket; keep: moves a descriptor out of the program's way."""

    def __init__(
        self,
        listener: socket.socket,
        loop: PollLoop,
        send: Callable[[Message], None],
        keep: Callable[[int], int],
    ) -> None:
        self._listener = listener
        self._loop = loop
        self._send = send
        self._keep = keep
        self._relays: set[_Relay] = set()
        self._watches: dict[int, tuple[_Relay, int]] = {}
        self._last_id = 0
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._on_connection)

    def take(self, message: WatchedCalls | WatchedRows | WatchEnded) -> None:
        """Pass on what the host tells; what nobody wants any more is dropped."""
        if message.id not in self._watches:
            return
        relay, its_id = self._watches[message.id]
        ended = isinstance(message, WatchEnded)
        if ended:
            del self._watches[message.id]
            relay.watches.pop(its_id, None)
        if relay.connection.pending_bytes > _ROOM_BYTES and not ended:
            lost = len(message.calls) if isinstance(message, WatchedCalls) else len(message.rows)  # type: ignore[union-attr]
            relay.lost[its_id] = relay.lost.get(its_id, 0) + lost + message.lost  # type: ignore[union-attr]
            return
        changes: dict[str, int] = {"id": its_id}
        if not ended:
            changes["lost"] = message.lost + relay.lost.pop(its_id, 0)  # type: ignore[union-attr]
        relay.connection.send(msgspec.structs.replace(message, **changes))

    def before_waiting(self) -> None:
        """Send what is to be sent."""
        for relay in self._relays:
            sent = relay.connection.flush()
            events = select.POLLIN if sent else select.POLLIN | select.POLLOUT
            self._loop.watch(relay.connection.fileno(), relay.on_ready, events)

    def finish(self) -> None:
        """Say what is still to be said, and close."""
        for relay in self._relays:
            relay.connection.drain(_FINISH_SECONDS)
            relay.connection.close()
        self._relays.clear()
        self._listener.close()

    def _on_connection(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock = socket.socket(fileno=self._keep(sock.detach()))
        if len(self._relays) >= _MAX_RELAYS:
            sock.close()
            return
        connection: Connection[Watch | Unwatch] = Connection(sock, Codec("msgpack"), Watch | Unwatch)
        self._relays.add(_Relay(connection, self))

    def receive(self, relay: "_Relay") -> None:
        """Take what a relay has sent, and let it have what waits for it."""
        try:
            relay.connection.flush()
            for message in relay.connection.receive():
                if isinstance(message, Watch):
                    self._begin(relay, message)
                else:
                    self._end(relay, message.id)
        except (ConnectionLostError, ProtocolError):
            self._relays.discard(relay)
            self._loop.unwatch(relay.connection.fileno())
            relay.connection.close()
            for its_id in list(relay.watches):
                self._end(relay, its_id)

    def _begin(self, relay: "_Relay", watch: Watch) -> None:
        self._last_id += 1
        self._watches[self._last_id] = relay, watch.id
        relay.watches[watch.id] = self._last_id
        self._send(msgspec.structs.replace(watch, id=self._last_id))

    def _end(self, relay: "_Relay", its_id: int) -> None:
        own = relay.watches.pop(its_id, None)
        if own is not None:
            self._send(Unwatch(own))
            if relay not in self._relays:
                del self._watches[own]


class _Relay:
    """A watcher's relay. watches: the numbers here of its watches, by its own; lost: what it missed of each."""

    def __init__(self, connection: Connection[Watch | Unwatch], watches: SessionWatches) -> None:
        self.connection = connection
        self.watches: dict[int, int] = {}
        self.lost: dict[int, int] = {}
        self._all = watches

    def on_ready(self) -> None:
        """Take what has come."""
        self._all.receive(self)
