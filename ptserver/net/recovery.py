"""Gets a lost connection back within a stated time, or gives it up.

    broke()  -->  suspended: what is sent is kept  -- the source has a stream -->  the connection goes on
                          |-- the time is over, or there is no session any more -->  given up

One end connects anew (`ptserver.net.messenger`), the other is connected to (`ptserver.sessions.kept`): each is a
`Source` of streams. The end that is connected to may learn of the loss from the new connection.

Thread rules: the connection's thread.
"""

import select
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from ptserver.errors import ConnectionLostError, ProtocolError, RefusedError
from ptserver.net.keepalive import KeepAlive
from ptserver.net.lasting import LastingConnection
from ptserver.net.poll_loop import PollLoop


class Source(Protocol):
    """Where streams come from that a connection can go on over."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when `take` has something to say."""

    def ask(self, received_bytes: int, seconds: float) -> None:
        """Begin to look for a stream, for so long; *received_bytes* is what has come of the connection."""

    def take(self, connection: LastingConnection[Any]) -> tuple[socket.socket, int] | None:
        """Return a stream, and how many bytes of *connection* its peer has; None if it was no use.

        Raises:
            RefusedError: there is no session to go on with.
            ConnectionLostError: this source has no more streams.
        """

    def close(self) -> None:
        """Give up the descriptors."""


class Recovery:
    """Brings *connection* back whenever it is lost, each time within *seconds*.

    resumed: called when it goes on; lost: called with the reason when it will not; say: tells a user or a log.
    """

    def __init__(
        self,
        connection: LastingConnection[Any],
        source: Source,
        seconds: float,
        loop: PollLoop,
        keepalive: KeepAlive,
        *,
        resumed: Callable[[], None],
        lost: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._source = source
        self._seconds = seconds
        self._loop = loop
        self._keepalive = keepalive
        self._resumed = resumed
        self._lost = lost
        self._say = say
        self._losses = 0
        self._reason = ""
        self._is_over = False
        loop.watch(source.fileno(), self._on_source)

    @property
    def is_waiting(self) -> bool:
        """Whether the connection is lost at present."""
        return self._connection.is_suspended and not self._is_over

    def broke(self, reason: str) -> None:
        """Begin to wait: the connection is of no use any more."""
        if self.is_waiting:
            return
        if self._is_over:
            self._lost(reason)
            return
        self._suspend(reason)
        self._say(f"the connection is lost: {reason}; waiting {self._seconds:g} s for another")
        self._loop.later(self._seconds, self._giving_up(self._losses))
        self._source.ask(self._connection.received_bytes, self._seconds)

    def await_end(self) -> None:
        """Block until the connection is back, or given up; at once if it is not lost."""
        deadline = time.monotonic() + self._seconds
        poll = select.poll()
        poll.register(self._source.fileno(), select.POLLIN)
        while self.is_waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                self._give_up("")
                return
            poll.poll(left * 1000)
            self._on_source()

    def stop(self) -> None:
        """End all of it; nothing is called any more."""
        self._losses += 1
        self._loop.unwatch(self._source.fileno())
        self._source.close()

    def _give_up(self, why: str) -> None:
        self._is_over = True
        self._lost(self._reason + why)

    def _suspend(self, reason: str) -> None:
        self._losses += 1
        self._reason = reason
        self._loop.unwatch(self._connection.fileno())
        self._connection.suspend()
        self._keepalive.suspend()

    def _giving_up(self, loss: int) -> Callable[[], None]:
        def give_up() -> None:
            if self.is_waiting and loss == self._losses:
                self._give_up("")

        return give_up

    def _on_source(self) -> None:
        try:
            found = self._source.take(self._connection)
            if found is None:
                return
            if not self.is_waiting:
                self._suspend("there is a new one")
            self._connection.resume(*found)
        except (RefusedError, ProtocolError, ConnectionLostError) as error:
            self._loop.unwatch(self._source.fileno())
            if self.is_waiting:
                self._give_up(f"; {error}")
            self._is_over = True
            return
        self._keepalive.go_on()
        self._say("the connection is back")
        self._resumed()
