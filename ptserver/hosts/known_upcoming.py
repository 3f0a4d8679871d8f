"""Folders that the session has opened because the program may open them next: the host's half.

An openat of such a folder returns at once, if it is known which number it gets (`known_numbers`). The session hears
by `Taken` what became of each folder. docs/latency.md says for how long, and until what, a folder may be used.

Not trusted: the server.
Thread rules: the host's thread.
"""

import time
from collections.abc import Callable

from ptserver.hosts.known_file import FRESH_SECONDS
from ptserver.hosts.known_folders import is_lasting
from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import Ahead, Message, Taken, Upcoming

_INT = 0xFFFFFFFF


class KnownUpcoming:
    """The folders that may come. post: sends what nobody waits for."""

    def __init__(self, post: Callable[[Message], None]) -> None:
        self._post = post
        self._folders: dict[bytes, tuple[float, Upcoming]] = {}
        self._written_before = 0

    def take(self, upcoming: Upcoming) -> None:
        """Hear of a folder."""
        earlier = self._folders.pop(upcoming.path, None)
        if earlier is not None:
            self._drop(earlier[1])
        if self._written_before:
            self._drop(upcoming)
        else:
            self._folders[upcoming.path] = time.monotonic(), upcoming

    def open(self, call: PendingCall, number: int | None) -> Ahead | None:
        """Open what an openat is about, as descriptor *number*; None if that, or the folder, is not known."""
        if not self._folders:
            return None
        path = call.gathered.ins.get(1, b"")
        if not is_lasting(call.args[0], path):
            return None
        self._drop_old()
        _, upcoming = self._folders.pop(path, (0.0, None))
        if upcoming is None:
            return None
        if number is None or upcoming.how != call.args[2] & _INT or not upcoming.ahead.folder:
            self._drop(upcoming)
            return None
        self._post(Taken(upcoming.ahead.id, number))
        return upcoming.ahead

    def forget(self) -> None:
        """Know of none any more."""
        for _, upcoming in self._folders.values():
            self._drop(upcoming)
        self._folders.clear()

    def written(self, next_call_id: int) -> None:
        """Hear of a posted write to a file: what is told before it is made may be wrong.

        next_call_id: calls from that on are made after it.
        """
        self._written_before = next_call_id
        self.forget()

    def heard(self, call_id: int) -> None:
        """Hear that the session has made a call, and so all that was posted before it."""
        if call_id >= self._written_before:
            self._written_before = 0
        if self._folders:
            self._drop_old()

    def _drop_old(self) -> None:
        since = time.monotonic() - FRESH_SECONDS
        for path in [path for path, (told, _) in self._folders.items() if told < since]:
            self._drop(self._folders.pop(path)[1])

    def _drop(self, upcoming: Upcoming) -> None:
        self._post(Taken(upcoming.ahead.id, -1))
