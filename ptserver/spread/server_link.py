"""The server at an address of a spread program: it hears of goroutines and says where they are to run, no more.

The program's calls are its hosts' own. So it goes on without its server when that is lost, which is said in a line;
what the server has wanted holds until then. Nobody waits for the server: events for which there is no room are left
out, and counted.
"""

import os
import select
import time
from collections.abc import Sequence

from ptserver.errors import ConnectionLostError, ProtocolError, RefusedError
from ptserver.hosts.endings import exit_of
from ptserver.hosts.to_user import say
from ptserver.machine import this_machine, version
from ptserver.messages import (
    CODECS,
    MAX_GOROUTINE_EVENTS,
    PROTOCOL_VERSION,
    Exited,
    Goodbye,
    GoroutineEvent,
    GoroutineEvents,
    Hello,
    Ping,
    PlaceGoroutine,
    Pong,
    Program,
    Refused,
    ToHost,
)
from ptserver.net.connection import client_handshake
from ptserver.net.keepalive import KeepAlive
from ptserver.net.poll_loop import PollLoop
from ptserver.net.reach import reach
from ptserver.running.remotely import read_token
from ptserver.spread.goroutine_events import Place

#: How long the server may take to say that it has heard of the program's end.
_GOODBYE_SECONDS = 10.0


class ServerLink:
    """A connection to the server at *address*, as a `goroutine_events.Decider`.

    Raises (when made):
        ConnectError, ConnectionLostError, ProtocolError, KeysError, TokenError: there is none to talk with.
        RefusedError: it does not take the program, or wants no events.
    """

    def __init__(
        self, address: str, keys: str | None, token_file: str | None, path: str, argv: Sequence[bytes]
    ) -> None:
        token = read_token(token_file)
        stream, token_of_keys = reach(address, keys)
        hello = Hello(
            versions=(PROTOCOL_VERSION,),
            codecs=CODECS,
            software=f"ptserver {version()}",
            machine=this_machine(),
            program=Program.shown(os.path.abspath(path), argv),
            token=token or token_of_keys,
            streams=(),
            spread=True,
        )
        welcome, self._connection = client_handshake(stream, hello)
        if not welcome.goroutine_events or welcome.resources != "host":
            self._connection.close()
            raise RefusedError(
                "spread", f"the server {welcome.server} at {address} wants no events of goroutines"
            )
        self.kinds = frozenset(welcome.goroutine_events)
        self._address = address
        self._loop: PollLoop | None = None
        self._place: Place | None = None
        self._lost = 0

    def begin(self, loop: PollLoop, place: Place, keepalive_seconds: float) -> None:
        """Take what the server says, in *loop*."""
        self._loop, self._place = loop, place
        loop.watch(self._connection.fileno(), self._receive)
        KeepAlive(self._connection, loop.later, keepalive_seconds, self._broke)
        if self._connection.has_received:
            self._receive()

    def take(self, events: Sequence[GoroutineEvent], lost: int, place: Place) -> None:
        """Tell the server of events, if it takes them."""
        self._lost += lost
        if self._loop is None:
            return
        if self._connection.congested:
            self._lost += len(events)
            return
        for start in range(0, max(len(events), 1), MAX_GOROUTINE_EVENTS):
            part = tuple(events[start : start + MAX_GOROUTINE_EVENTS])
            lost, self._lost = self._lost, 0
            self._connection.send(GoroutineEvents(part, lost))
        self._flush()

    def end(self, status: int | None) -> None:
        """Tell the server that the program is gone. status: its raw wait status; None: end without a word."""
        if self._loop is None or status is None:
            self._connection.close()
            return
        self._loop.unwatch(self._connection.fileno())
        self._loop = None
        self._connection.send(Exited(*exit_of(status)))
        deadline = time.monotonic() + _GOODBYE_SECONDS
        poll = select.poll()
        try:
            while (left := deadline - time.monotonic()) > 0:
                events = select.POLLIN if self._connection.flush() else select.POLLIN | select.POLLOUT
                poll.register(self._connection.fileno(), events)
                poll.poll(left * 1000)
                if any(isinstance(message, Goodbye) for message in self._connection.receive()):
                    break
        except (ConnectionLostError, ProtocolError):
            pass  # the program has ended all the same
        self._connection.close()

    def _receive(self) -> None:
        try:
            for message in self._connection.receive():
                self._take(message)
        except (ConnectionLostError, ProtocolError) as error:
            self._broke(str(error))
        else:
            self._flush()

    def _take(self, message: ToHost) -> None:
        match message:
            case PlaceGoroutine(goid, host):
                assert self._place is not None
                self._place(goid, host)
            case Ping(id):
                self._connection.send(Pong(id))
            case Pong():
                pass
            case Refused(_, reason):
                raise ConnectionLostError(f"it says: {reason}")
            case _:
                raise ProtocolError(
                    f"it sent {type(message).__name__}, which is nothing for a spread program"
                )

    def _flush(self) -> None:
        if self._loop is None:
            return
        try:
            events = select.POLLIN if self._connection.flush() else select.POLLIN | select.POLLOUT
        except ConnectionLostError as error:
            self._broke(str(error))
        else:
            self._loop.watch(self._connection.fileno(), self._receive, events)

    def _broke(self, reason: str) -> None:
        if self._loop is not None:
            self._loop.unwatch(self._connection.fileno())
            self._loop = None
            self._connection.close()
            say(f"the server at {self._address} is lost ({reason}); the program goes on without it")
