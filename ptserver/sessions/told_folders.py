"""Of which entries of folders the host has been told attributes, and which it may ask for next.

A program goes through a folder in the order of the names, or in that of the folder. As long as it is not known which,
half of what is told follows in the one, half in the other.

Thread rules: the session's thread.
"""

import bisect
import collections
import itertools
import os
import time
from collections.abc import Iterable, Sequence

from ptserver.sessions.upcoming import prefix_of

#: Of how many entries is told at a time, how long they are not told of again, and how many a folder may have.
NAMES = 1024
_AGAIN_SECONDS = 0.9
_MAX_ENTRIES = 50_000
_FOLDERS = 64

#: What a path is relative to, and how it begins up to the name of the entry.
Key = tuple[int, bytes]


class _Told:
    __slots__ = ("by_name", "is_listed", "listed", "names", "next", "since")

    def __init__(self, names: Iterable[bytes]) -> None:
        self.since = time.monotonic()
        self.names = set(names)
        self.is_listed = False
        self.listed: Sequence[bytes] = ()  # the entries, in the folder's order; none if there are too many
        self.by_name: Sequence[bytes] = ()
        self.next: tuple[bytes, bytes] = (b"", b"")  # what follows in the order of names, and in the folder's


class ToldFolders:
    """The folders that were opened last."""

    def __init__(self) -> None:
        self._folders: collections.OrderedDict[Key, _Told] = collections.OrderedDict()

    def opened(self, folder: int, path: bytes, names: Iterable[bytes]) -> None:
        """Hear that a folder has been opened, and of which of its entries the host was told."""
        for known in ((folder, path[: path.rfind(b"/") + 1]), (folder, prefix_of(path))):
            if known in self._folders:
                self._folders.move_to_end(known)
        self._keep((folder, prefix_of(path)), _Told(names))

    def closed(self, first: int, last: int) -> None:
        """Hear that the descriptors *first* to *last* stand for something else from now on."""
        for key in [key for key in self._folders if first <= key[0] <= last]:
            del self._folders[key]

    def _keep(self, key: Key, told: _Told) -> None:
        self._folders[key] = told
        if len(self._folders) > _FOLDERS:
            self._folders.popitem(last=False)

    def wants(self, key: Key, name: bytes) -> bool:
        """Whether the host is to be told of entries after *name*, for whose attributes it has asked."""
        told = self._folders.get(key)
        if told is None:
            if not key[1]:  # seen from a descriptor; the next look at something in it counts
                self._keep(key, _Told((name,)))
            return False
        if time.monotonic() - told.since > _AGAIN_SECONDS:
            told = self._folders[key] = _Told(())
        return name not in told.names

    def next_names(self, key: Key, name: bytes, fd: int) -> list[bytes]:
        """Return of which entries to tell; *fd*: the folder, opened for reading. Raises: OSError."""
        told = self._folders[key]
        if not told.is_listed:
            told.is_listed = True
            with os.scandir(fd) as found:
                listed_now = [os.fsencode(entry.name) for entry in itertools.islice(found, _MAX_ENTRIES + 1)]
            if len(listed_now) <= _MAX_ENTRIES:
                told.listed, told.by_name = listed_now, sorted(listed_now)
        if len(told.listed) <= NAMES:
            told.names.update(told.listed, (name,))
            return list(told.listed)
        by_name = bisect.bisect_left(told.by_name, name)
        listed = told.listed.index(name) if name in told.listed else len(told.listed)
        shares = (
            (NAMES, 0) if name == told.next[0] else (0, NAMES) if name == told.next[1] else (NAMES // 2,) * 2
        )
        after = by_name + shares[0], listed + shares[1]
        told.next = (
            told.by_name[after[0]] if after[0] < len(told.by_name) else b"",
            told.listed[after[1]] if after[1] < len(told.listed) else b"",
        )
        names = dict.fromkeys((*told.by_name[by_name : after[0]], *told.listed[listed : after[1]]))
        told.names.update(names, (name,))
        return list(names)
