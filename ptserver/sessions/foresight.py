"""The session's half of working ahead: with a file or folder that was opened for reading, its host is told what it
will probably ask next. docs/latency.md says what that is good for, and why it changes nothing.

What is told are answers of calls that change nothing, made at the very moment of the open: attributes, the beginning
of a file, the entries of a folder, and, for a program that has looked at attributes of entries before, those.
Files whose reading does something, or whose contents are made when they are read (/proc, /sys, devices), are left out
by their file system's type.

Not trusted: the stub host; nothing is told but answers to calls that it could make itself.
Thread rules: the session's thread.
"""

import contextlib
import ctypes
import itertools
import os
import stat
from collections.abc import Callable, Iterator

import msgspec

from ptserver.messages import Ahead, Listed, Message, Named, Syscall, Taken
from ptserver.server import RuntimeServer
from ptserver.sessions.lasting_files import LastingFiles
from ptserver.sessions.told_folders import NAMES, ToldFolders
from ptserver.sessions.upcoming import UpcomingFolders, entries
from ptserver.shadow.descriptors import free_above
from ptserver.shadow.execute import Executed, attributes, execute
from stepping.syscalls import SYSCALLS

#: The calls whose answers are given in advance, or which a host makes in the program's stead: a server that wants to
#: hear of one of them must hear of each.
FORESEEN = frozenset(
    "openat read pread64 lseek fstat newfstatat getdents64 close fcntl epoll_ctl readlinkat"
    " write writev sendto recvfrom epoll_wait epoll_pwait epoll_pwait2".split()
)

#: The calls that `Foresight.look` is to see.
LOOKED_AT = frozenset({"openat", "getdents64", "newfstatat"})
#: The calls that a host may answer itself.
POSTED = frozenset({"lseek", "fcntl", "close", "epoll_ctl", "recvfrom", "write", "writev", "sendto"})

#: How much of a file, a folder, and of how many entries, is told with the open.
_DATA_BYTES = 64 << 10
_LISTINGS = 64
_LISTINGS_BYTES = 512 << 10
#: How many numbers are looked at above that of a file that lasts: as many as a program gives files itself.
_ROOM = 64

_NOT_FORESEEN = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT | os.O_PATH
_F_GETFL = 3
_SOME_ADDRESS = 1 << 12
_INT = 0xFFFFFFFF
_AT_FDCWD = -100 & _INT
#: File systems that hold bytes. Source: statfs(2), <linux/magic.h>.
_PLAIN = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
        0x2FC12FC1,  # zfs
        0xF2F52010,  # f2fs
        0xCA451A4E,  # bcachefs
        0x4D44,  # fat
        0x2011BAB0,  # exfat
        0x9660,  # iso9660
        0x73717368,  # squashfs
        0xE0F5E1E2,  # erofs
        0x6969,  # nfs
        0x01021997,  # 9p, virtiofs has fuse's number
    }
)
_STATFS_BYTES = 120
_FSTAT, _GETDENTS = SYSCALLS["fstat"], SYSCALLS["getdents64"]
_STAT_BYTES = 144


def may_work_ahead(server: type[RuntimeServer]) -> bool:
    """Whether *server* does not mind that calls are made which the program did not, or not in this order."""
    return server.finished is RuntimeServer.finished and not FORESEEN & {
        name for name, interest in server.declared_interest().items() if interest != "ignore"
    }


class Foresight:
    """Tells by *send* what may be asked next, and which files are *lasting*.

    keep, later, first_own: as for `UpcomingFolders`.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        keep: Callable[[int], int],
        later: Callable[[float, Callable[[], None]], None],
        first_own: int,
        lasting: LastingFiles,
    ) -> None:
        self._send = send
        self._lasting = lasting
        self._plain_devices: dict[int, bool] = {}
        self._listing_bytes = 8192  # what Go asks for; then what this program does
        self._wants_attributes = False
        self._folders = ToldFolders()
        self._upcoming = UpcomingFolders(send, self._describe, keep, later, first_own)

    def look(self, message: Syscall, executed: Executed) -> None:
        """Consider what follows a call that was just made, and whose result has not been sent yet."""
        if executed[1]:
            return
        match message.name:
            case "openat" if not message.args[2] & _NOT_FORESEEN:
                self._opened(message, executed[0])
            case "getdents64":
                self._listing_bytes = message.outs.get(1, self._listing_bytes)
            case "newfstatat":
                self._looked_at(message, executed[2])

    def taken(self, message: Taken) -> None:
        """Hear what became of a folder that the program might open. Raises: ProtocolError."""
        told = self._upcoming.taken(message)
        if told is not None:
            self._folders.opened(_AT_FDCWD, *told)

    def forget(self, first: int, last: int) -> None:
        """Hear that the numbers from *first* to *last* no longer stand for what they did."""
        self._folders.closed(first, last)

    def _opened(self, message: Syscall, fd: int) -> None:
        facts = os.fstat(fd)
        number, path = 0, message.ins.get(1, b"")
        is_findable = message.args[0] & _INT == _AT_FDCWD or path.startswith(b"/")
        if is_findable and stat.S_ISREG(facts.st_mode) and facts.st_size <= _DATA_BYTES:
            number = self._lasting.opened(path, message.args[2] & _INT, fd)
        ahead = self._describe(message.id, fd)
        if ahead is None:
            return
        if number and ahead.end and self._lasting.is_lasting(number):
            ahead = msgspec.structs.replace(ahead, lasting=number, room=free_above(fd, _ROOM))
        self._send(ahead)
        if ahead.folder:
            self._folders.opened(message.args[0] & _INT, path, (named.name for named in ahead.names))
            if is_findable:
                self._upcoming.opened(path, message.args[2] & _INT, ahead)

    def _looked_at(self, message: Syscall, outs: dict[int, bytes]) -> None:
        """Tell attributes of more that is in a folder when the program wants those of something in it."""
        path = message.ins.get(1, b"")
        folder, name_at = message.args[0] & _INT, path.rfind(b"/") + 1
        key, name = (folder, path[:name_at]), path[name_at:]
        is_seen_from_descriptor = folder != _AT_FDCWD and path[:1] != b"/"
        if not name or (name_at and is_seen_from_descriptor) or not self._folders.wants(key, name):
            return
        self._wants_attributes = True
        with contextlib.suppress(OSError):
            how = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = os.open(key[1] or b".", how, dir_fd=folder if is_seen_from_descriptor else None)
            try:
                if self.is_plain(fd, os.fstat(fd).st_dev):
                    found = attributes(fd, self._folders.next_names(key, name, fd))
                    self._send(Ahead(message.id, 0, outs[2], names=tuple(itertools.starmap(Named, found))))
            finally:
                os.close(fd)

    def _describe(self, number: int, fd: int) -> Ahead | None:
        """Return what is to be told of *fd*, which was opened for reading by call *number*; None if nothing is."""
        facts = os.fstat(fd)
        value, failure, outs = execute(_FSTAT, (fd, _SOME_ADDRESS, 0, 0, 0, 0), {}, {1: _STAT_BYTES})
        if value or failure or not self.is_plain(fd, facts.st_dev):
            return None
        flags = execute(SYSCALLS["fcntl"], (fd, _F_GETFL, 0, 0, 0, 0), {}, {})[0]
        if stat.S_ISREG(facts.st_mode):
            data = os.pread(fd, _DATA_BYTES, 0) if facts.st_size else b""
            return Ahead(number, flags, outs[1], data=data, end=len(data) == facts.st_size)
        if not stat.S_ISDIR(facts.st_mode):
            return None
        listing = tuple(self._listing(fd))
        names = tuple(self._attributes(fd, listing)) if self._wants_attributes else ()
        return Ahead(number, flags, outs[1], folder=True, listing=listing, names=names)

    def is_plain(self, fd: int, device: int) -> bool:
        """Whether *fd*, a file or folder on *device*, is on a file system that holds bytes."""
        known = self._plain_devices.get(device)
        if known is None:
            buffer = ctypes.create_string_buffer(_STATFS_BYTES)
            failed = ctypes.CDLL(None).fstatfs(fd, buffer)
            kind = int.from_bytes(buffer.raw[:8], "little")
            known = self._plain_devices[device] = not failed and kind in _PLAIN
        return known

    def _listing(self, fd: int) -> Iterator[Listed]:
        size = self._listing_bytes
        for _ in range(min(_LISTINGS, _LISTINGS_BYTES // max(size, 1))):
            value, failure, outs = execute(_GETDENTS, (fd, _SOME_ADDRESS, size, 0, 0, 0), {}, {1: size})
            if failure:
                break
            yield Listed(size, outs.get(1, b""), os.lseek(fd, 0, os.SEEK_CUR))
            if not value:
                break
        os.lseek(fd, 0, os.SEEK_SET)

    @staticmethod
    def _attributes(fd: int, listing: tuple[Listed, ...]) -> Iterator[Named]:
        """Yield the attributes of entries. An entry that has gone meanwhile is not told of."""
        names = (name for listed in listing for name, _ in entries(listed.data))
        yield from itertools.starmap(Named, attributes(fd, itertools.islice(names, NAMES)))
