"""Files that a program sends by direct sockets, as servers do with sendfile(2): what is known of one is written here.

What the program reads itself (`local_files`), it sends itself. A sendfile that goes to the session ends the direct
socket for a while, since the session sends then: so it is with what is not known, large files for one, whose bytes
never come here.

Thread rules: the host's thread.
"""

from ptserver.hosts.direct_sockets import DirectSockets
from ptserver.hosts.known_lasting import LastingCalls
from stepping.listener import Notification

_INT = 0xFFFFFFFF


class DirectSending:
    """Of the first process of a program."""

    def __init__(self, sockets: DirectSockets, calls: LastingCalls) -> None:
        self._sockets = sockets
        self._calls = calls

    def quick(self, call: Notification) -> tuple[int, int] | None:
        """Make a sendfile at the file's own offset; return its value and errno, None if nothing has happened."""
        out, fd, has_offset, size = call.a0 & _INT, call.a1 & _INT, call.a2, call.a3
        if has_offset or not size or not self._sockets.has(out):
            return None
        self._calls.lasting.catch_up()
        data = self._calls.look(fd, size)
        if data is None:
            return None
        count, error = self._sockets.write(out, data)
        self._calls.move(fd, count)
        if self._calls.lasting.own is not None:
            self._calls.lasting.own.let()
        return count, error
