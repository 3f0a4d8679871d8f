"""Finds out that the other side of a connection is gone, or does nothing any more, within a stated time.

    silent for a fifth of the time    a `Ping` goes out, to which a living peer answers
    silent for all of it              the peer is given up

While much waits to be sent, a peer that takes it, however slowly, is not silent: its answer has to wait until it has
all of that. (Less than `_MUCH_BYTES` proves nothing: the peer's kernel takes that although its process is dead.) Time
is counted in steps that this process has seen, so one that was itself stopped meanwhile does not blame the peer. A
stopped peer that has said so (`Stopped`) is left alone until its next word.

Thread rules: the connection's thread.
"""

import fcntl
import itertools
import struct
import termios
from collections.abc import Callable
from typing import Any

from ptserver.messages import Message, Ping
from ptserver.net.connection import Connection

#: How long a peer may be silent if nobody says otherwise.
DEFAULT_SECONDS = 30.0

_STEPS = 5
_MUCH_BYTES = 64 << 10
_INT = struct.Struct("=i")


class KeepAlive:
    """Watches *connection*. later: calls a function after so many seconds; *lost* is called with the reason, once.

    ping: makes what the peer is to answer, from a number.
    """

    def __init__(
        self,
        connection: Connection[Any],
        later: Callable[[float, Callable[[], None]], None],
        seconds: float,
        lost: Callable[[str], None],
        ping: Callable[[int], Message] = Ping,
    ) -> None:
        """Begin; with 0 *seconds* nothing is watched, and a peer may be silent for ever."""
        self._connection = connection
        self._later = later
        self._seconds = seconds
        self._lost = lost
        self._ping = ping
        self._silent_steps = 0
        self._suspended = False
        self._reads = -1
        self._taken_bytes, self._waiting_bytes = 0, 0
        self._ids = itertools.count(1)
        if seconds:
            connection.set_patience(seconds)
            self._later(seconds / _STEPS, self._step)

    def suspend(self) -> None:
        """Expect nothing of the peer until it says something."""
        self._suspended = True
        self._reads = self._connection.reads

    def go_on(self) -> None:
        """Expect the peer to say something, from now on."""
        self._suspended = False
        self._silent_steps = 0

    def stop(self) -> None:
        """Watch no more."""
        self._seconds = 0.0

    def _step(self) -> None:
        if not self._seconds:
            return
        if self._was_heard() or self._suspended or self._has_taken():
            self._silent_steps = 0
        else:
            self._silent_steps += 1
            if self._silent_steps >= _STEPS:
                self._lost(f"the other side said nothing for {self._seconds:g} s")
                return
            self._connection.send(self._ping(next(self._ids)))
        self._later(self._seconds / _STEPS, self._step)

    def _was_heard(self) -> bool:
        reads = self._connection.reads
        heard = reads != self._reads
        if heard:
            self._reads = reads
            self._suspended = False
        return heard

    def _has_taken(self) -> bool:
        """Whether the peer has taken some of much that was to be sent. Source: tcp(7), unix(7), SIOCOUTQ."""
        connection = self._connection
        waited_bytes, self._waiting_bytes = self._waiting_bytes, connection.pending_bytes
        try:
            answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(_INT.size))
        except OSError:
            return False
        (in_kernel,) = _INT.unpack(answer)
        self._waiting_bytes += in_kernel
        taken_bytes = connection.sent_bytes - in_kernel
        has_taken = taken_bytes > self._taken_bytes
        self._taken_bytes = max(taken_bytes, self._taken_bytes)
        return has_taken and waited_bytes > _MUCH_BYTES
