"""What of one process of the program is local: descriptors, epoll sets, the working directory.

A local descriptor has a number that the shadow has reserved, with a placeholder of its own, so numbers never collide;
what the number stands for is open in this process, under another number, one for each of the program's. Then
duplicates, forks, offsets that are shared, and the end of the last reference mean what they mean natively, because
this process's kernel sees the same descriptors.

An epoll set is the server's. If local descriptors are in it, a set of this process holds those.

Thread rules: the host's thread.
"""

import contextlib
import fcntl
import os
from dataclasses import dataclass, field


@dataclass
class TrackedSocket:
    """A socket of the server's that may become local when its address is known.

    kind, protocol: as socket(2) has them, kind with its flags; options: (level, name, value) as they were set;
    events: the epoll events that were asked for, by epoll descriptor.
    """

    family: int
    kind: int
    protocol: int
    options: list[tuple[int, int, bytes]] = field(default_factory=list)
    nonblocking: bool | None = None
    events: dict[int, bytes] = field(default_factory=dict)


class LocalTable:
    """See the module's text. All by the program's numbers.

    files, sets: descriptors of this process; reserved: the numbers that stand for nothing else at the server; paths:
    where the server's descriptors lead, if that is known; sockets: the server's that may become local. folder: the
    working directory, None while unknown; folder_is_local: whose.
    """

    def __init__(self) -> None:
        self.files: dict[int, int] = {}
        self.reserved: set[int] = set()
        self.sets: dict[int, int] = {}
        self.paths: dict[int, str] = {}
        self.sockets: dict[int, TrackedSocket] = {}
        self.folder: str | None = None
        self.folder_is_local = False

    def fork(self) -> "LocalTable":
        """Return the table of a child."""
        child = LocalTable()
        child.files = {number: _copy(fd) for number, fd in self.files.items()}
        child.sets = {number: _copy(fd) for number, fd in self.sets.items()}
        child.reserved = set(self.reserved)
        child.paths, child.sockets = dict(self.paths), dict(self.sockets)
        child.folder, child.folder_is_local = self.folder, self.folder_is_local
        return child

    def knows(self, number: int) -> bool:
        """Whether anything is noted of *number*."""
        return any(number in notes for notes in (self.files, self.sets, self.paths, self.sockets))

    def drop(self, number: int) -> None:
        """The number stands for nothing any more."""
        for owned in (self.files, self.sets):
            fd = owned.pop(number, None)
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.reserved.discard(number)
        self.paths.pop(number, None)
        self.sockets.pop(number, None)

    def drop_range(self, first: int, last: int) -> None:
        """The numbers from *first* to *last* stand for nothing any more."""
        for number in {*self.files, *self.sets, *self.paths, *self.sockets}:
            if first <= number <= last:
                self.drop(number)

    def duplicate(self, number: int, new: int, *, close_on_exec: bool) -> None:
        """*new* stands for what *number* does."""
        if new == number:
            return
        self.drop(new)
        for owned in (self.files, self.sets):
            if number in owned:
                owned[new] = _copy(owned[number], close_on_exec=close_on_exec)
        if number in self.reserved:
            self.reserved.add(new)
        if number in self.paths:
            self.paths[new] = self.paths[number]
        if number in self.sockets:
            self.sockets[new] = self.sockets[number]

    def inherited(self) -> dict[int, int]:
        """Return the local descriptors that a program which is executed would have natively, by their numbers."""
        return {number: fd for number, fd in sorted(self.files.items()) if os.get_inheritable(fd)}

    def close(self) -> None:
        """Give up everything."""
        self.drop_range(0, 1 << 31)


def _copy(fd: int, *, close_on_exec: bool | None = None) -> int:
    if close_on_exec is None:
        close_on_exec = bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC if close_on_exec else fcntl.F_DUPFD, 3)
