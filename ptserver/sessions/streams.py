"""All streams that a session's process carries: the program's standard streams, and relays.

Not trusted: the stub host.
Thread rules: the session's thread.
"""

import select
from collections.abc import Callable

from ptserver.errors import ProtocolError
from ptserver.messages import FIRST_RELAY, StreamCredit, StreamData, StreamEnd
from ptserver.net.poll_loop import PollLoop
from ptserver.sessions.relays import SessionRelays
from ptserver.sessions.stdio import OwnStdio, Stdio


class SessionStreams:
    """Carries *stdio* and *relays*. loop: where they wait."""

    def __init__(self, stdio: Stdio | OwnStdio, relays: SessionRelays, loop: PollLoop) -> None:
        self._stdio = stdio
        self._relays = relays
        self._loop = loop
        self._changed = True
        self._congested = False
        stdio.tell(loop.unwatch)

    def take_data(self, message: StreamData) -> None:
        """Take data. Raises: ProtocolError: there may be none."""
        if message.stream >= FIRST_RELAY:
            self._relays.take(message)
            return
        if message.stream or self._stdio.incoming is None:
            raise ProtocolError(
                f"the host sent data of stream {message.stream}, which is not carried that way"
            )
        self._stdio.incoming.receive(message.data)
        self._changed = True

    def take_credit(self, message: StreamCredit) -> None:
        """Take credit."""
        if message.stream >= FIRST_RELAY:
            self._relays.take(message)
        elif message.stream in self._stdio.outgoing:
            self._stdio.outgoing[message.stream].add_credit(message.size)
            self._changed = True

    def take_end(self, message: StreamEnd) -> None:
        """Take an end. Raises: ProtocolError: there is no such stream."""
        if message.stream >= FIRST_RELAY:
            self._relays.take(message)
        elif not self._stdio.end(message.stream):
            raise ProtocolError(f"the host ended stream {message.stream}, which is not carried")
        self._changed = True

    def watch(self, *, congested: bool) -> None:
        """Wait for what matters now; if the connection is *congested*, for nothing that would be sent."""
        if len(self._relays):
            self._relays.watch(congested=congested)
        if not self._changed and congested == self._congested:
            return
        self._changed, self._congested = False, congested
        for outgoing in self._stdio.outgoing.values():
            wanted = outgoing.wants_read and not congested
            self._loop.watch(
                outgoing.fd, self._changing(outgoing.on_readable), select.POLLIN if wanted else 0
            )
        incoming = self._stdio.incoming
        if incoming is not None:
            handler = self._changing(incoming.on_writable)
            self._loop.watch(incoming.fd, handler, select.POLLOUT if incoming.wants_write else 0)

    def finish(self) -> bool:
        """Whether all that the program has written is sent; nothing more is written to it."""
        self._stdio.end_input()
        self._changed = True
        is_sent = self._relays.finish()
        return is_sent and all(stream.ended for stream in self._stdio.outgoing.values())

    def _changing(self, handler: Callable[[], None]) -> Callable[[], None]:
        """Return *handler* for a loop that looks at the streams only after something has happened to them."""

        def handle() -> None:
            self._changed = True
            handler()

        return handle
