"""A host that goes to its server: connects where one waits with a program, executes that, and connects again.

One connection waits for an offer at a time; when that has come, and as long as there is room for more sessions, the
next is made. Where nobody listens, or nobody wants anything, it tries again after a while.

Not trusted: the server, as by `ptserver.offered.session`. Thread rules: trio's thread.
"""

from collections.abc import Callable

import trio

from ptserver.errors import PtServerError
from ptserver.net.transport import connect
from ptserver.sessions.acceptor import Acceptor
from ptserver.sessions.log import Log
from ptserver.sessions.spawner import Spawner

_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.25, 2.0


class Connector(Acceptor):
    """As `Acceptor`, but the connections are made to *address*."""

    def __init__(
        self, address: str, spawner: Spawner, max_sessions: int, log: Log, ended: Callable[[str], None]
    ) -> None:
        super().__init__(None, spawner, max_sessions, log, ended)
        self._address = address

    async def accept(self, nursery: trio.Nursery) -> None:
        """Connect until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        told = ""
        while True:
            await self.has_room()
            try:
                sock = await trio.to_thread.run_sync(connect, self._address, abandon_on_cancel=True)
            except PtServerError as error:
                if str(error) != told:
                    told = str(error)
                    self._log(f"trying again: {told}")
                was_wanted = False
            else:
                told = ""
                with trio.socket.from_stdlib_socket(sock) as connection:
                    was_wanted = await self._start(connection)
            pause = _FIRST_PAUSE_SECONDS if was_wanted else min(2 * pause, _LAST_PAUSE_SECONDS)
            await trio.sleep(pause)
