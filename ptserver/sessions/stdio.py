"""The program's standard streams in the session's process: a pseudo-terminal, pipes, or /dev/null.

Descriptors 0, 1 and 2 are the program's; what they lead to here is carried to and from the stub host by
`ptserver.net.streams`. With a terminal at the host, all three are one pseudo-terminal of which this process is the
controlling process: its line discipline turns Ctrl-C into a signal to this process, as sshd's does.

Not trusted: the stub host; terminal sizes are bounded by their type.
Thread rules: one thread.
"""

import fcntl
import os
import struct
import termios

from ptserver.messages import Hello, StreamId, StreamNumber, WindowSize
from ptserver.net.streams import Forget, IncomingStream, OutgoingStream, Send
from ptserver.shadow.descriptors import Descriptors

_END_OF_FILE = b"\x04"  # Ctrl-D, a terminal's VEOF as it is set by default
_WINSIZE = struct.Struct("=HHHH")


class OwnStdio:
    """The program's standard streams are this process's own, and nothing is carried.

    The attributes and methods are those of `Stdio`.
    """

    def __init__(self) -> None:
        self.incoming: IncomingStream | None = None
        self.outgoing: dict[int, OutgoingStream] = {}

    def tell(self, forget: Forget) -> None:
        """Do nothing: no descriptor of our own is closed."""

    def resize(self, size: WindowSize) -> None:
        """Do nothing: the terminal is the user's own."""

    def end(self, stream: StreamNumber) -> bool:
        """Return whether the stream is carried: never."""
        return False

    def end_input(self) -> None:
        """Do nothing."""


class Stdio:
    """incoming: standard input, if it is carried; outgoing: what is read from the program, by stream number."""

    def __init__(self, hello: Hello, descriptors: Descriptors, send: Send) -> None:
        """Take over descriptors 0, 1 and 2 of this process, which must be a session leader for a terminal."""
        self.incoming: IncomingStream | None = None
        self.outgoing: dict[int, OutgoingStream] = {}
        self._master = -1
        self._keep = descriptors.keep
        self._send = send
        null = self._keep(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        if hello.terminal is not None:
            self._open_terminal(hello)
            return
        for stream in sorted(set(hello.streams)):
            self._open_pipe(stream)

    def tell(self, forget: Forget) -> None:
        """Have *forget* called with each of our own descriptors that is about to be closed."""
        for stream in self.outgoing.values():
            stream.forget = forget
        if self.incoming is not None:
            self.incoming.forget = forget

    def resize(self, size: WindowSize) -> None:
        """Give the pseudo-terminal, if there is one, the size of the user's."""
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, _WINSIZE.pack(size.rows, size.columns, 0, 0))

    def end(self, stream: StreamNumber) -> bool:
        """Take the peer's end of a stream; return whether the stream is one that is carried."""
        if stream == 0 and self.incoming is not None:
            self.incoming.end()
        elif stream in self.outgoing:
            self.outgoing[stream].stop()
        else:
            return False
        return True

    def end_input(self) -> None:
        """Write no more to the program: it is gone."""
        if self.incoming is not None:
            self.incoming.stop()

    def _open_terminal(self, hello: Hello) -> None:
        assert hello.terminal is not None
        master, slave = os.openpty()
        self._master = self._keep(master)
        slave = self._keep(slave)
        self.resize(WindowSize(hello.terminal.rows, hello.terminal.columns))
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for number in set(hello.streams):
            os.dup2(slave, number)
        os.close(slave)
        os.set_blocking(self._master, False)
        if 0 in hello.streams:
            writing = self._keep(os.dup(self._master))
            self.incoming = IncomingStream(0, writing, self._send, owned=True, at_end=_END_OF_FILE)
        if 1 in hello.streams or 2 in hello.streams:
            stream: StreamId = 1 if 1 in hello.streams else 2
            reading = self._keep(os.dup(self._master))
            self.outgoing[stream] = OutgoingStream(stream, reading, self._send, owned=True)

    def _open_pipe(self, stream: StreamId) -> None:
        reading, writing = map(self._keep, os.pipe())
        ours, theirs = (writing, reading) if stream == 0 else (reading, writing)
        os.dup2(theirs, stream)
        os.close(theirs)
        os.set_blocking(ours, False)
        if stream == 0:
            self.incoming = IncomingStream(0, ours, self._send, owned=True)
        else:
            self.outgoing[stream] = OutgoingStream(stream, ours, self._send, owned=True)
