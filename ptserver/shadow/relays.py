"""The ends of relays in a shadow: what a program that is executed has in place of descriptors of the stub host's.

They are made when the exec is, and put at their numbers for that alone: if it fails, the numbers stand for what they
did before. The other ends are the session's process's (`ptserver.sessions.relays`).

Not trusted: the stub host; its numbers have been checked to be the program's.
Thread rules: the shadow's first thread.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable

from ptserver.messages import Relay
from ptserver.shadow.descriptors import Descriptors

#: So much a pipe is written to at a time that has room for no more: then it has room when all was read.
ONE_PIECE_BYTES = 4096


class RelayEnds:
    """What execs of one process are to hand on. descriptors: of this process."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._wanted: list[Relay] = []
        self._made: list[tuple[Relay, int]] = []
        self._replaced: list[
            tuple[int, int, bool]
        ] = []  # number; what it stood for, or -1; whether it is inherited

    def want(self, message: Relay) -> None:
        """Have the exec with that number hand on what *message* says."""
        self._wanted.append(message)

    def make(self, call_id: int, give: Callable[[Relay, int], None]) -> None:
        """Make the ends for the exec with that number; *give* gets the others, to close.

        What there is no descriptor for is not made.
        """
        wanted = [message for message in self._wanted if message.id == call_id]
        self._wanted.clear()
        for message in wanted:
            with contextlib.suppress(OSError), self._descriptors.unlimited():
                ours, theirs = map(self._descriptors.keep, _pair(message))
                os.set_blocking(ours, False)
                self._made.append((message, theirs))
                give(message, ours)

    def place(self) -> None:
        """Put the ends at their numbers."""
        for message, end in self._made:
            for number in message.fds:
                try:
                    inherited, old = os.get_inheritable(number), self._descriptors.copy(number)
                except OSError as error:
                    if error.errno != errno.EBADF:
                        continue  # it stays what it is
                    inherited, old = False, -1
                self._replaced.append((number, old, inherited))
                with self._descriptors.unlimited():
                    os.dup2(end, number)

    def withdraw(self) -> None:
        """Undo `place` and `make`: the exec has failed."""
        for number, old, inherited in reversed(self._replaced):
            if old < 0:
                os.close(number)
                continue
            with self._descriptors.unlimited():
                os.dup2(old, number, inherited)
            os.close(old)
        self._replaced.clear()
        self.forget()

    def forget(self) -> None:
        """Give up the ends that were made."""
        for _, end in self._made:
            os.close(end)
        self._made.clear()


def _pair(message: Relay) -> tuple[int, int]:
    """Return the session's end and the program's."""
    if message.input and message.output:
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    if message.output:
        return reading, writing
    if not message.reads_on:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, ONE_PIECE_BYTES)
    return writing, reading
