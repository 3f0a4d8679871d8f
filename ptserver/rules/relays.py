"""Local descriptors in programs that are executed at the server: relays, carried to and from there.

An executed program's calls are its own kernel's, so it has the end of a pipe in place of a local descriptor, whose
other end is the server's (`ptserver.sessions.relays`). What it writes is written here; what is here is sent when it
may want it, and taken when it has read it.

Which way a descriptor is used is not known if it is open for both: 0 is read, 1 and 2 are written, which decides for
other numbers of the same open file, too; what has none of these has both ways, by a socket.

Not trusted: the server. It gets what it may read here anyway, as a call of the program would, and only of descriptors
that the program hands on to what it executes.
Thread rules: the host's thread.
"""

import fcntl
import functools
import os
import select
import stat
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from ptserver.errors import ProtocolError
from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import (
    FIRST_RELAY,
    MAX_RELAY_NUMBERS,
    MAX_RELAY_STREAMS,
    MAX_RELAY_WINDOW_BYTES,
    Message,
    Relay,
    StreamCredit,
    StreamData,
    StreamEnd,
)
from ptserver.net.poll_loop import PollLoop
from ptserver.net.streams import WINDOW_BYTES
from ptserver.rules.local_ends import (
    Sink,
    Source,
    is_relayed,
    is_same,
    sink_of,
    source_of,
)

Send = Callable[[Message], None]
_Way = Literal["read", "write", "both"]

#: What is written to a file is written at once; so the server need not hold anything back.
_FILE_CREDIT_BYTES = 1 << 30
_GONE = select.POLLERR | select.POLLHUP


class HostRelays:
    """loop: where local descriptors wait; send: to the server."""

    def __init__(self, loop: PollLoop, send: Send) -> None:
        self._loop = loop
        self._send = send
        self._next = FIRST_RELAY
        self._readers: dict[int, _Reader] = {}
        self._writers: dict[int, _Writer] = {}
        self._inputs: dict[int, int] = {}  # of relays that have both, by the output

    @property
    def is_writing(self) -> bool:
        """Whether something waits for a local descriptor to take it."""
        return any(writer.is_writing for writer in self._writers.values())

    def announce(self, call: PendingCall, files: Mapping[int, int]) -> Collection[int]:
        """Relay *files*, descriptors of this process by the program's numbers, to what *call* executes.

        Return the numbers that are relayed.
        """
        relayed: list[int] = []
        for numbers, way in _ways({number: fd for number, fd in files.items() if is_relayed(fd)}):
            streams = 1 + (way == "both")
            if len(self._readers) + len(self._writers) + streams > MAX_RELAY_STREAMS:
                break
            try:
                self._begin(call, numbers[:MAX_RELAY_NUMBERS], way, files[numbers[0]])
            except OSError:  # it cannot be opened anew, or there are no more descriptors
                continue
            relayed += numbers[:MAX_RELAY_NUMBERS]
        return relayed

    def take(self, message: StreamData | StreamCredit | StreamEnd) -> None:
        """Take what the server says of a relay. Raises: ProtocolError: it may not say that."""
        stream = message.stream
        reader, writer = self._readers.get(stream), self._writers.get(stream)
        match message:
            case StreamData() if writer is not None:
                writer.receive(message.data)
            case StreamCredit() if reader is not None:
                reader.add_credit(message.size)
            case StreamEnd() if writer is not None:
                writer.end(shuts_down=self._inputs.pop(stream, 0) in self._readers)
            case StreamEnd() if reader is not None:
                reader.end(message.taken)
                del self._readers[stream]
            case _:
                raise ProtocolError(f"the server spoke of stream {stream}, which is not carried that way")
        self._clear_away()

    def watch(self, *, congested: bool) -> None:
        """Wait for what matters now; if the connection is *congested*, for nothing that would be sent."""
        for reader in self._readers.values():
            events = select.POLLIN if reader.wants_read and not congested else 0
            self._loop.watch(reader.fd, reader.on_readable, events)
        for writer in self._writers.values():
            if not writer.is_gone:
                events = select.POLLOUT if writer.is_writing else select.POLLERR
                self._loop.watch(writer.fd, functools.partial(self._on_writer, writer), events)

    def leave(self) -> None:
        """The program is gone: nobody reads any more what it alone could, a fifo that it had open for both."""
        for writer in self._writers.values():
            writer.leave()

    def stop(self) -> None:
        """The server says nothing any more: read nothing, write what is left."""
        self.leave()
        for reader in self._readers.values():
            reader.end(0)
        self._readers.clear()
        for writer in self._writers.values():
            writer.end()
        self._clear_away()

    def _begin(self, call: PendingCall, numbers: list[int], way: _Way, fd: int) -> None:
        source = source_of(fd) if way != "write" else None
        try:
            sink = sink_of(fd) if way != "read" else None
        except OSError:
            if source is not None:
                source.close()
            raise
        reads_on = source is not None and source.reads_on
        window = source.window_bytes if source is not None else MAX_RELAY_WINDOW_BYTES
        first = self._next
        of_input, of_output = first if source else 0, (first + bool(source)) if sink else 0
        self._next = max(of_input, of_output) + 1
        self._send(Relay(call.id, call.process.id, tuple(numbers), of_input, of_output, window, reads_on))
        if source is not None:
            self._readers[of_input] = _Reader(of_input, source, window, self._send, self._loop.unwatch)
        if sink is not None:
            if source is not None:
                self._inputs[of_output] = of_input
            credit = _FILE_CREDIT_BYTES if stat.S_ISREG(os.fstat(fd).st_mode) else WINDOW_BYTES
            reads_itself = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
            self._writers[of_output] = _Writer(
                of_output, sink, credit, self._send, self._loop.unwatch, reads_itself=reads_itself
            )

    def _on_writer(self, writer: "_Writer") -> None:
        writer.on_ready()
        self._clear_away()

    def _clear_away(self) -> None:
        for stream in [stream for stream, writer in self._writers.items() if writer.has_ended]:
            del self._writers[stream]


class _Reader:
    """Sends what *source* has as stream *stream*, *window* bytes at most before they are read."""

    def __init__(
        self, stream: int, source: Source, window: int, send: Send, forget: Callable[[int], None]
    ) -> None:
        self._stream = stream
        self._source = source
        self._window = window
        self._send = send
        self._forget = forget
        self._begun = self._at_end = False
        self._sent = self._taken = 0
        self.fd = source.fd

    @property
    def wants_read(self) -> bool:
        """Whether more may be sent."""
        ahead = self._sent - self._taken
        return (
            self._begun
            and not self._at_end
            and (ahead < self._window if self._source.reads_on else not ahead)
        )

    def on_readable(self) -> None:
        """Send what there is."""
        if not self.wants_read:
            return
        ahead = self._sent - self._taken
        try:
            data = self._source.peek(ahead, self._window - ahead)
        except BlockingIOError:
            return
        except OSError:  # as at the end: a terminal that is hung up, a connection that is broken
            data = b""
        if data:
            self._sent += len(data)
            self._send(StreamData(self._stream, data))
        else:
            self._at_end = True
            self._send(StreamEnd(self._stream))

    def add_credit(self, size: int) -> None:
        """Begin, and then take what was read."""
        if self._begun:
            self._take(self._taken + size)
        self._begun = True

    def end(self, taken: int) -> None:
        """Take what was read, in all, and close."""
        self._take(taken)
        self._forget(self.fd)
        self._source.close()

    def _take(self, taken: int) -> None:
        size = min(taken, self._sent) - self._taken
        if size > 0:
            self._taken += size
            try:
                self._source.take(size)
            except OSError:
                self._at_end = True  # a connection that is broken


class _Writer:
    """Writes what comes as stream *stream* to *sink*, and gives *credit* bytes.

    reads_itself: whether who has the sink may be the only one that reads it.
    """

    def __init__(
        self,
        stream: int,
        sink: Sink,
        credit: int,
        send: Send,
        forget: Callable[[int], None],
        *,
        reads_itself: bool,
    ) -> None:
        self._stream = stream
        self._sink = sink
        self._send = send
        self._forget = forget
        self._reads_itself = reads_itself and stat.S_ISFIFO(os.fstat(sink.fd).st_mode)
        self._buffer = bytearray()
        self._credit = credit
        self._written = 0  # since credit was last given
        self._ending = self._shuts_down = False
        self.is_gone = False  # nobody can be written to any more
        self.fd = sink.fd
        send(StreamCredit(stream, credit))

    @property
    def is_writing(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._buffer)

    @property
    def has_ended(self) -> bool:
        """Whether nothing comes any more, and all is written."""
        return self._ending and self.is_gone

    def receive(self, data: bytes) -> None:
        """Write what the server sent. Raises: ProtocolError: it may not."""
        self._credit -= len(data)
        if self._credit < 0 or self._ending:
            raise ProtocolError(f"the server sent more of stream {self._stream} than it may")
        if not self.is_gone:
            self._buffer += data
            self._write()

    def end(self, *, shuts_down: bool = False) -> None:
        """Take the server's end; shuts_down: others that have the same connection cannot write any more, either."""
        self._ending, self._shuts_down = True, shuts_down
        if not self._buffer:
            self._close()

    def leave(self) -> None:
        """Write nothing more that only the program could have read."""
        if self._reads_itself and not self.is_gone:
            self._lose()

    def on_ready(self) -> None:
        """Write on, or notice that nobody reads any more."""
        if self.is_gone:
            return
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if any(events & _GONE for _, events in poll.poll(0)):
            self._lose()
        else:
            self._write()

    def _write(self) -> None:
        try:
            while self._buffer:
                with memoryview(self._buffer) as view:
                    count = self._sink.write(view)
                del self._buffer[:count]
                self._written += count
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it, the disk is full: the program finds a closed pipe
            self._lose()
            return
        if self._ending and not self._buffer:
            self._close()
        elif self._written and (self._written >= WINDOW_BYTES // 4 or not self._buffer) and not self._ending:
            self._credit += self._written
            self._send(StreamCredit(self._stream, self._written))
            self._written = 0

    def _lose(self) -> None:
        self._close()
        if not self._ending:
            self._send(StreamEnd(self._stream))

    def _close(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._buffer.clear()
            self._forget(self.fd)
            if self._shuts_down:
                self._sink.shut_down()
            self._sink.close()


def _ways(files: Mapping[int, int]) -> list[tuple[list[int], _Way]]:
    """Return which numbers are to have one relay, and its way."""
    open_files: list[list[int]] = []
    for number in sorted(files):
        same = next((found for found in open_files if is_same(files[found[0]], files[number])), None)
        if same is None:
            open_files.append([number])
        else:
            same.append(number)
    ways: list[tuple[list[int], _Way]] = []
    for numbers in open_files:
        access = fcntl.fcntl(files[numbers[0]], fcntl.F_GETFL) & os.O_ACCMODE
        is_written = not {1, 2}.isdisjoint(numbers)
        if access != os.O_RDWR:
            ways.append((numbers, "read" if access == os.O_RDONLY else "write"))
        elif 0 not in numbers:
            ways.append((numbers, "write" if is_written else "both"))
        elif is_written:
            ways += [([0], "read"), (numbers[1:], "write")]
        else:
            ways.append((numbers, "read"))
    return ways
