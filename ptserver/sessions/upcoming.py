"""Folders that the program may open next, opened before it does: the session's half.

A program that walks a tree opens a folder, then the first folder in that, or else the next one beside it. The next
few are opened here, and the host is told of each what it is told with an open (`ptserver.sessions.foresight`). The
descriptor is kept among our own until the host says `Taken`; other processes of the program have no part in it. Each
folder in vain costs credit, and what the program opens earns some; so who does not walk is soon left alone.

Thread rules: the session's thread.
"""

import bisect
import collections
import itertools
import os
import struct
from collections.abc import Callable, Iterator, Sequence

from ptserver.errors import ProtocolError
from ptserver.messages import Ahead, Message, Taken, Upcoming
from ptserver.shadow.descriptors import is_open

#: How many folders are told of at a time, how many can be kept, and from how many folders.
_NEXT = 4
_KEPT = 8
_FOLDERS = 64
#: How long after an open the next are looked for: its answer goes out first.
_SOON_SECONDS = 50e-6
_CREDIT, _EARNED = 8, 2
_DIRENT = struct.Struct("=QqHB")
_DT_DIR = 4


def prefix_of(path: bytes) -> bytes:
    """Return how the paths begin that lead to what is in the folder *path*, if the program says so again."""
    return b"" if path == b"." else path.rstrip(b"/") + b"/"


def entries(dirents: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield name and d_type of what getdents64 gave, but "." and "..". Source: getdents(2)."""
    at = 0
    while at < len(dirents):
        _, _, size, kind = _DIRENT.unpack_from(dirents, at)
        name = dirents[at + _DIRENT.size : at + size].partition(b"\0")[0]
        at += size
        if name not in (b".", b".."):
            yield name, kind


class UpcomingFolders:
    """Tells by *send* of folders.

    describe: gives what is to be told of a descriptor, by a number for it, None if nothing is; keep: makes a
    descriptor one of our own; later: calls back in so many seconds; first_own: the first that is not the program's.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        describe: Callable[[int, int], Ahead | None],
        keep: Callable[[int], int],
        later: Callable[[float, Callable[[], None]], None],
        first_own: int,
    ) -> None:
        self._send = send
        self._describe = describe
        self._keep = keep
        self._later = later
        self._first_own = first_own
        self._inside: collections.OrderedDict[bytes, Sequence[bytes]] = collections.OrderedDict()
        self._kept: dict[int, tuple[int, Upcoming]] = {}  # by number, with the descriptor
        self._ids = itertools.count(1)
        self._credit = _CREDIT

    def opened(self, path: bytes, how: int, ahead: Ahead) -> None:
        """Hear that the program has opened *path* with the flags *how*; ahead: what was told of it."""
        prefix, device = prefix_of(path), int.from_bytes(ahead.stat[:8], "little")
        found = (name for listed in ahead.listing for name, kind in entries(listed.data) if kind == _DT_DIR)
        inside = self._inside[prefix] = sorted(found)
        self._inside.move_to_end(prefix)
        if len(self._inside) > _FOLDERS:
            self._inside.popitem(last=False)
        name_at = path.rfind(b"/") + 1
        beside = self._inside.get(path[:name_at])
        if beside is None or not how & os.O_DIRECTORY:
            return  # where it is going is not known yet; what is no folder by then would be opened
        self._inside.move_to_end(path[:name_at])
        after = bisect.bisect_right(beside, path[name_at:])
        wanted = [prefix + name for name in inside[:_NEXT]]
        wanted += [path[:name_at] + name for name in beside[after : after + _NEXT]]
        self._later(_SOON_SECONDS, lambda: self._tell(wanted[:_NEXT], how, device))

    def taken(self, message: Taken) -> tuple[bytes, tuple[bytes, ...]] | None:
        """Let the program have a folder, or close it; return the path of one that it has, and the entries told of.

        Raises:
            ProtocolError: there is none, or not that number for it.
        """
        if message.id not in self._kept:
            raise ProtocolError(f"the host took folder {message.id}, of which it was not told")
        kept, upcoming = self._kept.pop(message.id)
        try:
            if message.fd < 0:
                return None
            if message.fd >= self._first_own or is_open(message.fd):
                raise ProtocolError(f"the host gave a folder the number {message.fd}, which is not free")
            try:
                os.dup2(kept, message.fd, inheritable=not upcoming.how & os.O_CLOEXEC)
            except OSError as error:
                raise ProtocolError(f"the host gave a folder the number {message.fd}: {error}") from error
        finally:
            os.close(kept)
        self._credit = min(self._credit + _EARNED, _CREDIT)
        self.opened(upcoming.path, upcoming.how, upcoming.ahead)
        return upcoming.path, tuple(named.name for named in upcoming.ahead.names)

    def _tell(self, paths: Sequence[bytes], how: int, device: int) -> None:
        known = {upcoming.path for _, upcoming in self._kept.values()}
        for path in paths:
            if path in known:
                continue
            if self._credit <= 0 or len(self._kept) >= _KEPT:
                return
            try:
                if os.lstat(path).st_dev != device:
                    continue  # to open what is mounted may do something
                fd = self._keep(os.open(path, how | os.O_CLOEXEC))
            except OSError:
                continue
            number = next(self._ids)
            ahead = self._describe(number, fd)
            if ahead is None:
                os.close(fd)
                continue
            self._credit -= 1
            upcoming = Upcoming(path, how, ahead)
            self._kept[number] = fd, upcoming
            self._send(upcoming)
