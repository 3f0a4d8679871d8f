"""Serves one watcher, in a process of its own: lists the server's sessions, and passes on what they tell.

A session is reached by its Unix socket (`ptserver.sessions.registry`). This process takes from it at once whatever it
sends; what a slow watcher does not take waits here, up to `_ROOM_BYTES`, and what is beyond is dropped and counted.

Not trusted: the watcher; it may ask for what `messages.Watch` describes, and nothing that changes a session.
"""

import contextlib
import hmac
import os
import select
from typing import TYPE_CHECKING, Any

import msgspec

from ptserver.errors import ConnectionLostError, ProtocolError, RefusedError
from ptserver.messages import (
    FromWatcher,
    Ping,
    Pong,
    Unwatch,
    Watch,
    WatchedCalls,
    WatchedRows,
    WatchEnded,
    WatcherHello,
    WatcherWelcome,
)
from ptserver.net.connection import Connection, Stream, answer_watcher
from ptserver.net.wire import Codec
from ptserver.sessions.registry import SessionRegistry

if TYPE_CHECKING:
    from ptserver.sessions.start import SessionConfig

#: How much may wait for a watcher.
_ROOM_BYTES = 32 << 20
_MAX_WATCHES = 64

_FromSession = WatchedCalls | WatchedRows | WatchEnded


def relay_watcher(
    stream: Stream, hello: WatcherHello, config: "SessionConfig", registry: SessionRegistry
) -> None:
    """Serve a watcher that has said *hello* and may watch, until it goes.

    Raises:
        ProtocolError: it sent nonsense.
    """

    def choose(hello: WatcherHello, version: int, codec: str) -> WatcherWelcome:
        sessions, omitted = registry.sessions()
        return WatcherWelcome(
            version,
            codec,
            config.server.display_name(),
            config.software,
            os.uname().nodename,
            tuple(sessions),
            omitted,
        )

    connection = answer_watcher(stream, hello, config.hello_seconds, choose)
    with contextlib.suppress(ConnectionLostError):  # it has seen enough
        _Relay(connection, registry).run()


def check_token(token: str, config: "SessionConfig") -> None:
    """Raise RefusedError unless *token* is one that lets watch."""
    known = [each for each in (config.token, config.watch_token) if each is not None]
    if known and not any([hmac.compare_digest(token.encode(), each.encode()) for each in known]):
        raise RefusedError("token", "the token is wrong or missing: give this server's with --token-file")


class _Relay:
    def __init__(self, watcher: Connection[FromWatcher], registry: SessionRegistry) -> None:
        self._watcher = watcher
        self._registry = registry
        self._sessions: dict[str, Connection[_FromSession]] = {}
        self._watches: dict[int, str] = {}
        self._lost: dict[int, int] = {}

    def run(self) -> None:
        """Work until the watcher is gone."""
        self._receive()
        while True:
            everything: list[tuple[str, Connection[Any]]] = [("", self._watcher), *self._sessions.items()]
            poll = select.poll()
            for _, connection in everything:
                sent = connection.flush()
                poll.register(connection.fileno(), select.POLLIN | (0 if sent else select.POLLOUT))
            ready = {fd for fd, _ in poll.poll()}
            for name, connection in everything:
                if connection.fileno() not in ready:
                    continue
                if name:
                    self._receive_from(name)
                else:
                    self._receive()

    def _receive(self) -> None:
        for message in self._watcher.receive():
            match message:
                case Watch():
                    self._begin(message)
                case Unwatch():
                    name = self._watches.get(message.id)
                    if name is not None:
                        self._sessions[name].send(message)
                case Ping():
                    self._watcher.send(Pong(message.id))
                case Pong():
                    pass
                case _:
                    raise ProtocolError(f"the watcher sent {type(message).__name__} twice")

    def _begin(self, watch: Watch) -> None:
        if watch.id in self._watches:
            raise ProtocolError(f"the watcher began watch {watch.id} twice")
        if len(self._watches) >= _MAX_WATCHES:
            self._watcher.send(WatchEnded(watch.id, f"you watch {_MAX_WATCHES} things already"))
            return
        session = self._sessions.get(watch.session)
        if session is None:
            sock = self._registry.connect(watch.session)
            if sock is None:
                self._watcher.send(WatchEnded(watch.id, f"there is no session {watch.session!r} any more"))
                return
            session = self._sessions[watch.session] = Connection(sock, Codec("msgpack"), _FromSession)
        self._watches[watch.id] = watch.session
        session.send(watch)

    def _receive_from(self, name: str) -> None:
        session = self._sessions[name]
        try:
            for message in session.receive():
                self._pass_on(message)
        except ConnectionLostError:
            session.close()
            del self._sessions[name]
            for watch_id in [each for each, where in self._watches.items() if where == name]:
                self._pass_on(WatchEnded(watch_id, "the session has ended"))

    def _pass_on(self, message: _FromSession) -> None:
        if message.id not in self._watches:
            return
        lost = self._lost.get(message.id, 0)
        if isinstance(message, WatchEnded):
            if lost:  # nothing comes any more that could say so
                self._watcher.send(WatchedRows(message.id, (), lost))
            self._lost.pop(message.id, None)
            del self._watches[message.id]
            self._watcher.send(message)
        elif self._watcher.pending_bytes > _ROOM_BYTES:
            count = len(message.calls) if isinstance(message, WatchedCalls) else len(message.rows)
            self._lost[message.id] = lost + count + message.lost
        else:
            self._lost.pop(message.id, None)
            self._watcher.send(msgspec.structs.replace(message, lost=message.lost + lost))
