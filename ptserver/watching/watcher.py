"""Watches sessions of a server from anywhere: the watcher's side of `ptserver.watching.relay`."""

import select
import time
from collections.abc import Iterator, Sequence
from typing import Self

import msgspec

from ptserver.errors import ConnectionLostError, ProtocolError, PtServerError
from ptserver.machine import version
from ptserver.messages import (
    CODECS,
    PROTOCOL_VERSION,
    Ping,
    Pong,
    SessionFacts,
    ToWatcher,
    Unwatch,
    Watch,
    WatchedCalls,
    WatchedRows,
    WatchEnded,
    WatcherHello,
    WatcherWelcome,
)
from ptserver.net.connection import Connection, watcher_handshake
from ptserver.net.reach import reach
from ptserver.running.remotely import read_token

Told = WatchedCalls | WatchedRows | WatchEnded


class NoSessionError(PtServerError):
    """There is no session of that name, or the host cannot tell what is wanted of it."""

    exit_status = 66


def find_session(sessions: Sequence[SessionFacts], name: str) -> SessionFacts:
    """Return the session *name*, or the only one whose name begins or ends so.

    Raises:
        NoSessionError: there is none, or there are several.
    """
    found = [each for each in sessions if each.id == name] or [
        each for each in sessions if each.id.startswith(name) or each.id.endswith(name)
    ]
    if len(found) == 1:
        return found[0]
    there = ", ".join(each.id for each in sessions[:10]) or "none"
    what = f"several sessions are called {name}" if found else f"there is no session {name}"
    raise NoSessionError(f"{what}; there are: {there}")


class Watcher:
    """A connection to a server whose sessions can be watched; `welcome` has what it said of them. Close it."""

    def __init__(self, welcome: WatcherWelcome, connection: Connection[ToWatcher]) -> None:
        self.welcome = welcome
        self._connection = connection
        self._last_id = 0

    @classmethod
    def connect(cls, address: str, token_file: str | None = None, keys: str | None = None) -> Self:
        """Connect to the server at *address*.

        Raises:
            AddressError, ConnectError, ConnectionLostError, KeysError, ProtocolError, RefusedError, TokenError.
        """
        token = read_token(token_file)
        stream, token_of_keys = reach(address, keys)
        hello = WatcherHello((PROTOCOL_VERSION,), CODECS, f"ptserver {version()}", token or token_of_keys)
        return cls(*watcher_handshake(stream, hello))

    @property
    def sessions(self) -> tuple[SessionFacts, ...]:
        """The sessions that there were when this connected."""
        return self.welcome.sessions

    def find(self, name: str) -> SessionFacts:
        """Return the session *name*, or the only one whose name begins or ends so.

        Raises:
            NoSessionError: there is none, or there are several.
        """
        return find_session(self.sessions, name)

    def fileno(self) -> int:
        """Return a descriptor that is readable when something has come."""
        return self._connection.fileno()

    def begin(self, watch: Watch) -> int:
        """Ask to be told of a session; return the watch's number (the one in *watch* is not used)."""
        self._last_id += 1
        self._connection.send(msgspec.structs.replace(watch, id=self._last_id))
        self._flush()
        return self._last_id

    def end(self, watch_id: int) -> None:
        """Want no more of a watch."""
        self._connection.send(Unwatch(watch_id))
        self._flush()

    def receive(self) -> list[Told]:
        """Return what has come; nothing if nothing has.

        Raises:
            ConnectionLostError, ProtocolError: the server is gone, or sent nonsense.
        """
        told: list[Told] = []
        for message in self._connection.receive():
            if isinstance(message, Ping):
                self._connection.send(Pong(message.id))
                self._flush()
            elif isinstance(message, WatchedCalls | WatchedRows | WatchEnded):
                told.append(message)
            elif not isinstance(message, Pong):
                raise ProtocolError(f"the server sent {type(message).__name__} to a watcher")
        return told

    def rows(self, watch: Watch) -> Iterator[bytes]:
        """Yield the rows of a watch that comes to its end by itself.

        Raises:
            NoSessionError: it cannot be told; or rows are missing, because this end was too slow.
        """
        number = self.begin(watch)
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        lost = 0
        first = self._connection.has_received
        while True:
            if not first:
                poll.poll()
            first = False
            for told in self.receive():
                if told.id != number:
                    continue
                if isinstance(told, WatchedRows):
                    lost += told.lost
                    yield from told.rows
                elif isinstance(told, WatchEnded):
                    if told.problem:
                        raise NoSessionError(told.problem)
                    if lost:
                        raise NoSessionError(
                            f"{lost} rows are missing: they came faster than they could be taken"
                        )
                    return

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _flush(self, seconds: float = 10.0) -> None:
        if not self._connection.drain(seconds):
            raise ConnectionLostError(f"the server has taken nothing for {seconds:g} s")


def age(facts: SessionFacts) -> float:
    """Return for how many seconds a session has been there."""
    return max(0.0, (time.time_ns() - facts.started_ns) / 1e9)
