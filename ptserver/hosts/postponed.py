"""What a host says that nobody waits for: it goes along with the next message, or a little later.

Thread rules: the host's thread.
"""

from ptserver.messages import Message, ToHost
from ptserver.net.connection import Connection
from ptserver.net.poll_loop import PollLoop

#: How long it may wait for company; a poll's timeout is a millisecond at least.
_SECONDS = 0.001


class Postponed:
    """Sends by *connection*, which others send by, too."""

    def __init__(self, connection: Connection[ToHost], loop: PollLoop) -> None:
        self._connection = connection
        self._later = loop.later
        self._bytes = 0  # what is queued, if nobody waits for any of it
        self._is_armed = False

    def send(self, message: Message) -> None:
        """Queue *message*."""
        connection = self._connection
        is_alone = connection.pending_bytes == self._bytes
        connection.send(message)
        if is_alone:
            self._bytes = connection.pending_bytes

    @property
    def may_wait(self) -> bool:
        """Whether all that is queued may go later; it is flushed in time if this is asked before each wait."""
        if not self._bytes:
            return False
        if self._connection.pending_bytes != self._bytes:
            self._bytes = 0
            return False
        if not self._is_armed:
            self._is_armed = True
            self._later(_SECONDS, self._hurry)
        return True

    def _hurry(self) -> None:
        self._is_armed = False
        self._bytes = 0
