"""What is said to the other side of a connection of a spread program in one round of its loop, as one message.

A fault is often answered with a dozen pages, each of which is a message of its own for who decides and who obeys.
To encode, to frame and to decode each alone costs more than to move it.
"""

from typing import Any

from ptserver.net.connection import Connection
from ptserver.spread.messages import Several, SpreadMessage

#: How many messages go together: those of so many pages are far from what a frame may have.
MOST_MESSAGES = 64


class Bundle:
    """What waits to be said over *connection*, in order."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._waiting: list[SpreadMessage] = []

    def say(self, message: SpreadMessage) -> None:
        """Have *message* said by the next `flush`, or earlier if there is much."""
        self._waiting.append(message)
        if len(self._waiting) >= MOST_MESSAGES:
            self._close()

    def flush(self) -> bool:
        """Send what the socket takes; return whether everything has gone out."""
        if self._waiting:
            self._close()
        elif not self._connection.wants_write:
            return True
        return self._connection.flush()

    def _close(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._connection.send(waiting[0] if len(waiting) == 1 else Several(tuple(waiting)))
