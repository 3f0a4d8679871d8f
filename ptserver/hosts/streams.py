"""The user's standard streams at a stub host, carried to and from the session that has the program's.

Not trusted: the server. Streams that are not carried are none of its business.
Thread rules: the host's thread.
"""

import select
from collections.abc import Callable, Collection

from ptserver.messages import StreamCredit, StreamData, StreamEnd, StreamId
from ptserver.net.poll_loop import PollLoop
from ptserver.net.streams import IncomingStream, OutgoingStream, Send, carried


class HostStreams:
    """Carries *streams* of this process, by number. loop: where they wait; send: queues a message."""

    def __init__(self, streams: Collection[StreamId], loop: PollLoop, send: Send) -> None:
        self._loop = loop
        self._changed = True
        self._outgoing: dict[int, OutgoingStream] = {}
        self._incoming: dict[int, IncomingStream] = {}
        if 0 in streams:
            self._outgoing[0] = OutgoingStream(0, 0, send, owned=False)
        for number in (1, 2):
            if number in streams:
                self._incoming[number] = IncomingStream(number, number, send, owned=False)

    @property
    def wants_write(self) -> bool:
        """Whether something waits for the user to take it."""
        return any(stream.wants_write for stream in self._incoming.values())

    def take(self, message: StreamData | StreamCredit | StreamEnd) -> None:
        """Take what the server says of a stream.

        Raises:
            ProtocolError: it may not say that.
        """
        self._changed = True
        number = message.stream
        match message:
            case StreamData():
                carried(self._incoming, number).receive(message.data)
            case StreamCredit():
                carried(self._outgoing, number).add_credit(message.size)
            case StreamEnd() if number in self._outgoing:
                self._outgoing[number].stop()
            case StreamEnd():
                carried(self._incoming, number).end()

    def stop(self) -> None:
        """Read nothing of the user's any more: there is nobody to send it to."""
        self._changed = True
        for stream in self._outgoing.values():
            stream.stop()

    def changed(self) -> None:
        """Look anew at what is to be waited for."""
        self._changed = True

    def watch(self, *, congested: bool) -> None:
        """Wait for what matters now; if the connection is *congested*, for nothing that would be sent."""
        if not self._changed:
            return
        self._changed = False
        for outgoing in self._outgoing.values():
            wanted = outgoing.wants_read and not congested
            handler = self._changing(outgoing.on_readable)
            self._loop.watch(outgoing.fd, handler, select.POLLIN if wanted else 0)
        for incoming in self._incoming.values():
            handler = self._changing(incoming.on_writable)
            self._loop.watch(incoming.fd, handler, select.POLLOUT if incoming.wants_write else 0)

    def _changing(self, handler: Callable[[], None]) -> Callable[[], None]:
        """Return *handler* for a loop that looks at the streams only after something has happened to them."""

        def handle() -> None:
            self._changed = True
            handler()

        return handle
