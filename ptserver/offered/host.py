"""The stub host of a program that a server has offered: its user, terminal and shell are at the server.

The signals of this machine are not the program's: SIGTERM means that this host stops, and ends the session. When the
program is stopped the server hears of it, and says when it goes on.

Not trusted: the server, see `ptserver.hosts.remote`.
"""

import signal

from ptserver.hosts.remote import RemoteHost
from ptserver.messages import Refused, Stopped


class OfferedHost(RemoteHost):
    """Serves a program that was launched with `stoppable`."""

    stops_like_a_job = True

    def _on_signal(self) -> None:
        for signo, _ in self._signals.receive():
            if signo == signal.SIGCHLD:
                self._follow_stop()
            elif signo == signal.SIGTERM and self.lost is None:
                self._connection.send(Refused("internal", "the host is stopping"))
                self._connection.flush()
                self._lose("this host is stopping")
                self._signal_program(signal.SIGKILL)

    def _program_stopped(self, signo: int) -> None:
        if self.lost is None:
            self._connection.send(Stopped(signo))
            self.keepalive.suspend()  # the server stops as well, and says so when it goes on
