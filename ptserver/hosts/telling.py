"""What a stub host tells its server beside the program's calls: statistics, and what watchers want to know.

Nothing of it is waited for: it is sent while the connection has room, so that the program's calls never queue
behind it. Thread rules: those of the host.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ptserver.hosts.host import Host
from ptserver.messages import GoroutineStatistics, ToHost, Unwatch, Watch
from ptserver.net.connection import Connection
from ptserver.net.poll_loop import PollLoop

if TYPE_CHECKING:
    from ptserver.hosts.watches import HostWatches

#: How much may wait to be sent before what may be left out has to.
_ROOM_BYTES = 256 << 10


class HostTelling:
    """Tells of *host* by *connection*, while *connected*."""

    def __init__(
        self, host: Host, loop: PollLoop, connection: Connection[ToHost], connected: Callable[[], bool]
    ) -> None:
        self._host = host
        self._loop = loop
        self._connection = connection
        self._watches: HostWatches | None = None
        self._connected = connected

    def start_statistics(self, interval_ms: int) -> None:
        """Send statistics every so many milliseconds; never for 0."""
        if interval_ms:
            self._host.start_statistics(interval_ms / 1000, self._send_statistics)

    def take(self, message: Watch | Unwatch) -> None:
        """Do what a watcher wants.

        Raises:
            ProtocolError: it makes no sense.
        """
        if self._watches is None:
            from ptserver.hosts.watches import HostWatches  # few programs are watched

            self._watches = HostWatches(self._host, self._loop, self._connection.send, self._has_room)
        if isinstance(message, Watch):
            self._watches.take_watch(message)
        else:
            self._watches.take_unwatch(message)

    def program_ended(self, wait_status: int) -> None:
        """Tell watchers that the program is gone."""
        if self._watches is not None:
            self._watches.program_ended(wait_status)

    def close(self) -> None:
        """End what helps to tell."""
        if self._watches is not None:
            self._watches.close()

    def _has_room(self) -> bool:
        return self._connected() and self._connection.pending_bytes < _ROOM_BYTES

    def _send_statistics(self, statistics: GoroutineStatistics) -> None:
        if self._has_room():
            self._connection.send(statistics)
