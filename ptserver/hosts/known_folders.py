"""Attributes of what is in folders: what newfstatat gives for their entries, as the session has told.

A folder is known by what paths into it begin with, and what that is relative to: (AT_FDCWD, b"some/folder/"), or (a
descriptor, b""). docs/latency.md says for how long it is used.

Thread rules: the host's thread.
"""

import collections
import stat
import time

from ptserver.hosts.known_file import FRESH_SECONDS
from ptserver.messages import Ahead
from stepping.errors import MemoryFaultError
from stepping.listener import Notification
from stepping.tracee_memory import TraceeMemory

_AT_SYMLINK_NOFOLLOW = 0x100
_AT_FDCWD = -100 & 0xFFFFFFFF
_MAX_FOLDERS = 64
_PATH_MAX = 4096
_UNKNOWN = (float("-inf"), b"")


def is_lasting(folder: int, path: bytes) -> bool:
    """Whether *path* leads to the same as long as the working directory does, whatever descriptor *folder* is."""
    return folder & 0xFFFFFFFF == _AT_FDCWD or path.startswith(b"/")


class KnownFolders:
    """The folders that were used last."""

    def __init__(self) -> None:
        self._folders: collections.OrderedDict[tuple[int, bytes], dict[bytes, tuple[float, bytes]]]
        self._folders = collections.OrderedDict()

    def opened(self, folder: int, path: bytes, fd: int, ahead: Ahead) -> None:
        """Hear of an openat of *path*, relative to *folder*, that has given *fd*."""
        keys = [(fd, b"")]
        if is_lasting(folder, path):
            keys.append((folder, b"" if path == b"." else path.rstrip(b"/") + b"/"))
        for key in keys:
            self._folders.pop(key, None)
            self._know(key, ahead)

    def looked_at(self, folder: int, path: bytes, ahead: Ahead) -> None:
        """Hear of a newfstatat of *path*, relative to *folder*, with which came what is beside it."""
        name_at = path.rfind(b"/") + 1
        if not name_at or is_lasting(folder, path):
            self._know((folder, path[:name_at]), ahead)

    def attributes(self, folder: int, path: bytes, flags: int) -> bytes | None:
        """Return what newfstatat gives, if that is known."""
        name_at = path.rfind(b"/") + 1
        key = folder, path[:name_at]
        entries = self._folders.get(key)
        if entries is None:
            return None
        self._folders.move_to_end(key)
        told, found = entries.get(path[name_at:], _UNKNOWN)
        if time.monotonic() - told > FRESH_SECONDS:
            return None
        if flags == _AT_SYMLINK_NOFOLLOW:
            return found
        is_link = stat.S_ISLNK(int.from_bytes(found[24:28], "little"))
        return None if flags or is_link else found

    def quick(self, notification: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        """Make the newfstatat of *notification*; return its value and errno, or None if nothing has happened."""
        if not self._folders:
            return None
        try:
            path = memory.read_string(notification.a1, _PATH_MAX)
            found = self.attributes(notification.a0, path, notification.a3 & 0xFFFFFFFF)
            if found is None:
                return None
            memory.write(notification.a2, found)
        except (MemoryFaultError, ValueError):
            return None
        return 0, 0

    def closed(self, fd: int) -> None:
        """Hear that *fd* is something else from now on."""
        self._folders.pop((fd, b""), None)

    def forget(self) -> None:
        """Know nothing any more."""
        self._folders.clear()

    def _know(self, key: tuple[int, bytes], ahead: Ahead) -> None:
        now = time.monotonic()
        self._folders.setdefault(key, {}).update({named.name: (now, named.stat) for named in ahead.names})
        self._folders.move_to_end(key)
        if len(self._folders) > _MAX_FOLDERS:
            self._folders.popitem(last=False)
