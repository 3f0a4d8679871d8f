"""Relays at the session's process: descriptors of the host's in programs that are executed at the server.

A relay is announced before an exec, opened by the shadow that makes it (`ptserver.shadow.relays`), and begins when
the program is executed. Each of its streams ends by itself; the server says so last.

Nothing that the host hears may be later than what a program has written before: so `look` is called before each
message that could tell of it, such as that of its end.

Not trusted: the stub host. Its numbers are the program's, its streams are new, and not too many.
Thread rules: the session's thread.
"""

import contextlib
import errno
import functools
import os
import select
from collections.abc import Callable
from dataclasses import dataclass

from ptserver.errors import ProtocolError
from ptserver.messages import (
    FIRST_RELAY,
    MAX_RELAY_STREAMS,
    Message,
    Relay,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamNumber,
)
from ptserver.net.poll_loop import PollLoop
from ptserver.net.streams import OutgoingStream
from ptserver.sessions.feeds import Feed
from ptserver.shadow.descriptors import Descriptors


@dataclass
class _Waiting:
    """A relay whose program has not been executed yet. fd: the session's end, -1 while there is none."""

    message: Relay
    fd: int = -1


class SessionRelays:
    """send: to the host, past `look`."""

    def __init__(self, loop: PollLoop, send: Callable[[Message], None], descriptors: Descriptors) -> None:
        self._loop = loop
        self._send = send
        self._descriptors = descriptors
        self._next = FIRST_RELAY
        self._waiting: list[_Waiting] = []
        self._feeds: dict[int, Feed] = {}
        self._outgoing: dict[int, OutgoingStream] = {}
        self._inputs: dict[int, int] = {}  # by the output of the same relay, 0 if it has none
        self._edges: select.epoll | None = None  # of sockets

    def __len__(self) -> int:
        """How many streams there are that have not ended."""
        return len(self._feeds) + len(self._outgoing)

    def announce(self, message: Relay) -> None:
        """Take a relay. Raises: ProtocolError: it may not be."""
        streams = [stream for stream in (message.input, message.output) if stream]
        if not streams or min(streams) < self._next or len(set(streams)) < len(streams):
            raise ProtocolError(f"the host announced a relay of the streams {streams}, which are not new")
        if len(self) + len(streams) > MAX_RELAY_STREAMS:
            raise ProtocolError(f"the host announced relays of more than {MAX_RELAY_STREAMS} streams")
        if max(message.fds) >= self._descriptors.program_limit:
            raise ProtocolError("the host announced a relay at a descriptor that is not the program's")
        self._next = max(streams) + 1
        self._waiting.append(_Waiting(message))
        if message.input:
            self._feeds[message.input] = Feed(message, self._send, self._forget, self._loop.later)
        if message.output:
            self._inputs[message.output] = message.input
            send = functools.partial(self._send_after, message.output)
            outgoing = OutgoingStream(message.output, -1, send, owned=True)
            outgoing.forget = self._loop.unwatch
            self._outgoing[message.output] = outgoing

    def opened(self, stream: StreamNumber, fd: int) -> None:
        """Take *fd*, the session's end of the relay that has *stream*; it becomes one of our own."""
        for waiting in self._waiting:
            if stream in (waiting.message.input, waiting.message.output) and waiting.fd < 0:
                with contextlib.suppress(OSError):
                    waiting.fd = self._descriptors.copy(fd)
        os.close(fd)

    def take_own(self, message: Relay, fd: int) -> None:
        """As `opened`, in the process that made it."""
        self.opened(message.input or message.output, fd)

    def executed(self, pid: int) -> None:
        """Begin the relays of process *pid*, which has become the program that has them."""
        for waiting in self._leave_waiting(lambda message: message.pid == pid):
            try:
                self._begin(waiting)
            except OSError:  # there are no more descriptors
                self._drop(waiting)

    def answered(self, call_id: int) -> None:
        """Drop the relays of the exec with that number, if it is one: it has failed."""
        if self._waiting:
            for waiting in self._leave_waiting(lambda message: message.id == call_id):
                self._drop(waiting)

    def gone(self, pid: int) -> None:
        """Drop the relays that process *pid*, which has ended, has not begun."""
        for waiting in self._leave_waiting(lambda message: message.pid == pid):
            self._drop(waiting)

    def take(self, message: StreamData | StreamCredit | StreamEnd) -> None:
        """Take what the host says of a stream. Raises: ProtocolError: it may not say that."""
        stream = message.stream
        feed, outgoing = self._feeds.get(stream), self._outgoing.get(stream)
        match message:
            case _ if feed is None and outgoing is None and FIRST_RELAY <= stream < self._next:
                return  # it has ended meanwhile
            case StreamData() if feed is not None:
                feed.receive(message.data)
            case StreamCredit() if outgoing is not None:
                outgoing.add_credit(message.size)
            case StreamEnd() if feed is not None:
                feed.end()
            case StreamEnd() if outgoing is not None:
                self._stop(outgoing)
            case _:
                raise ProtocolError(f"the host spoke of stream {stream}, which is not carried that way")
        self._clear_away()

    def look(self) -> None:
        """Send what was written until now, and tell what was read."""
        for feed in list(self._feeds.values()):
            feed.look()
        for outgoing in self._outgoing.values():
            if outgoing.fd >= 0:
                outgoing.drain()
        self._clear_away()

    def watch(self, *, congested: bool) -> None:
        """Wait for what matters now; if the connection is *congested*, for nothing that would be sent."""
        for outgoing in self._outgoing.values():
            if outgoing.fd >= 0:
                wanted = outgoing.wants_read and not congested
                handler = functools.partial(self._handle, functools.partial(self._read, outgoing))
                self._loop.watch(outgoing.fd, handler, select.POLLIN if wanted else 0)
        for feed in self._feeds.values():
            if feed.fd >= 0 and not feed.is_socket:
                self._loop.watch(feed.fd, functools.partial(self._handle, feed.advance), feed.events)

    def finish(self) -> bool:
        """Whether all is sent that programs have written, when they are all gone."""
        for waiting in self._leave_waiting(lambda message: True):
            self._drop(waiting)
        for feed in list(self._feeds.values()):
            feed.stop()
        self._clear_away()
        return not self._outgoing

    def _begin(self, waiting: _Waiting) -> None:
        """Begin a relay. Raises: OSError, and the relay is as it was."""
        message, fd = waiting.message, waiting.fd
        if fd < 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        outgoing, feed = self._outgoing.get(message.output), self._feeds.get(message.input)
        if feed is None:
            if outgoing is None:  # nobody reads what it writes
                os.close(fd)
            else:
                outgoing.fd = fd
            return
        if outgoing is not None:
            outgoing.fd = self._descriptors.copy(fd)
        if feed.is_socket:
            self._watch_edges(fd)
        feed.open(fd)
        feed.start()

    def _send_after(self, output: StreamNumber, message: Message) -> None:
        """Send *message* of an output; its end after that of its input, if the socket of both is closed."""
        feed = self._feeds.get(self._inputs[output])
        if feed is not None and type(message) is StreamEnd:
            feed.look(was_reset=self._outgoing[output].failure == errno.ECONNRESET)
        self._send(message)

    def _read(self, outgoing: OutgoingStream) -> None:
        """Send what a program has written, after telling what it has read: that was before, most often."""
        feed = self._feeds.get(self._inputs[outgoing.stream])
        if feed is not None:
            feed.look()
        outgoing.on_readable()

    def _watch_edges(self, fd: int) -> None:
        if self._edges is None:
            with self._descriptors.unlimited():
                edges = select.epoll()
            with edges:
                self._edges = select.epoll.fromfd(self._descriptors.copy(edges.fileno()))
            self._loop.watch(self._edges.fileno(), self._on_edges)
        self._edges.register(fd, select.EPOLLOUT | select.EPOLLET)

    def _on_edges(self) -> None:
        assert self._edges is not None
        fds = {fd for fd, _ in self._edges.poll(0)}
        for feed in list(self._feeds.values()):
            if feed.fd in fds:
                feed.advance()
        self._clear_away()

    def _handle(self, handler: Callable[[], None]) -> None:
        handler()
        self._clear_away()

    def _leave_waiting(self, which: Callable[[Relay], bool]) -> list[_Waiting]:
        left = [waiting for waiting in self._waiting if which(waiting.message)]
        self._waiting = [waiting for waiting in self._waiting if not which(waiting.message)]
        return left

    def _drop(self, waiting: _Waiting) -> None:
        if waiting.fd >= 0:
            os.close(waiting.fd)
        message = waiting.message
        if message.input:
            self._feeds[message.input].stop()
            del self._feeds[message.input]
        if message.output in self._outgoing:
            self._stop(self._outgoing[message.output])
            self._clear_away()

    def _stop(self, outgoing: OutgoingStream) -> None:
        """Read nothing of a program any more."""
        if outgoing.fd >= 0:
            outgoing.stop()
        outgoing.ended = True
        self._send(StreamEnd(outgoing.stream))

    def _forget(self, fd: int) -> None:
        self._loop.unwatch(fd)
        if self._edges is not None and any(feed.fd == fd and feed.is_socket for feed in self._feeds.values()):
            self._edges.unregister(fd)

    def _clear_away(self) -> None:
        for stream in [stream for stream, outgoing in self._outgoing.items() if outgoing.ended]:
            del self._outgoing[stream], self._inputs[stream]
        for stream in [stream for stream, feed in self._feeds.items() if feed.has_ended]:
            del self._feeds[stream]
