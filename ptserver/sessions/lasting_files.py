"""Files that are known at the host until they change: the session's half, which sees that by inotify.

A file is told of as *lasting* when the program opens it again. Then there are watches on it and on each folder of its
path, and it is open here. Before anything is sent from which the program could learn of others, `look` reads what
inotify has to say and sends `Revoked` ahead of it, in the same stream. The kernel queues an event before the call
returns that has made the change; so whoever tells of it afterwards, in whatever way, is behind it.

inotify does not tell of changes by a mapping. So a file is lasting only while nobody has it open for writing, which a
lease shows that is given back at once (a writable mapping keeps the file open); each later open is an event. It does
not tell of mounts either: the kernel says by /proc/self/mountinfo that there has been one. On network file systems,
or through symbolic links, nothing is lasting, nor where the kernel gives no lease (the file is another user's) or no
watch.

Not trusted: the stub host.
Thread rules: the session's thread.
Source: inotify(7), fcntl(2) "Leases", proc_pid_mountinfo(5).
"""

import collections
import contextlib
import ctypes
import fcntl
import itertools
import os
import select
import signal
import stat
import struct
from collections.abc import Callable, Iterable

from ptserver.errors import ProtocolError
from ptserver.messages import Message, Reopened, Revoked
from ptserver.shadow.descriptors import is_open

_IN_MODIFY, _IN_ATTRIB, _IN_CLOSE_WRITE, _IN_OPEN = 0x2, 0x4, 0x8, 0x20
_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE, _IN_DELETE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400
_IN_Q_OVERFLOW, _IN_IGNORED = 0x4000, 0x8000
_IN_ONLYDIR, _IN_DONT_FOLLOW = 0x1000000, 0x2000000
_OF_FILE = _IN_MODIFY | _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_OPEN | _IN_DELETE_SELF | _IN_DONT_FOLLOW
_OF_FOLDER = (
    _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_ATTRIB
) | _IN_ONLYDIR | _IN_DONT_FOLLOW  # fmt: skip
_EVENT = struct.Struct("=iIII")
_QUEUE_BYTES = 64 << 10
_F_SETSIG = 10
#: File systems that all changes go through this kernel's calls, which tell inotify. Source: <linux/magic.h>.
_LOCAL = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0xF2F52010,  # f2fs
        0xCA451A4E,  # bcachefs
    }
)
_STATFS_BYTES = 120
#: With these flags an open of a regular file does nothing but to open it for reading.
_OPENS_PLAINLY = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | 0o100000  # O_LARGEFILE

_MAX_FILES, _MAX_SEEN = 256, 256
_IDLE_SECONDS = 2.0
#: After how many opens of a file by others, in what time whatever, it is not lasting any more.
_MAX_OPENS = 100
#: How many opens of a file that cannot be lasting pass before it is tried again.
_PAUSE = 1000

_libc = ctypes.CDLL(None, use_errno=True)


class _Error(Exception):
    """A file that cannot be lasting."""


class _File:
    """fd: of our own; watches: with the name that matters in each, b"" for the thing itself."""

    __slots__ = ("facts", "fd", "how", "id", "opens", "path", "watches")

    def __init__(self, number: int, path: bytes, how: int, fd: int) -> None:
        self.id = number
        self.path = path
        self.how = how
        self.fd = fd
        facts = os.fstat(fd)
        self.facts = facts.st_dev, facts.st_ino
        self.watches: list[tuple[int, bytes]] = []
        self.opens = 0


class LastingFiles:
    """Tells by *send*, which must not look here, of files.

    keep: makes a descriptor one of our own; first_own: the first that is not the program's; later: calls back in so
    many seconds. Files are let go when nothing has been sent for a while: what is open cannot be unmounted.
    """

    def __init__(
        self,
        send: Callable[[Message], None],
        keep: Callable[[int], int],
        first_own: int,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._send = send
        self._keep = keep
        self._later = later
        self._is_used = self._is_armed = False
        self._first_own = first_own
        self._files: collections.OrderedDict[bytes, _File] = collections.OrderedDict()
        self._by_id: dict[int, _File] = {}
        self._revoked: dict[int, _File] = {}  # of which the host has not said that it is done with them
        self._seen: collections.OrderedDict[bytes, int] = collections.OrderedDict()
        self._watched: dict[int, dict[bytes, set[int]]] = {}  # by watch and name: whose
        self._ids = itertools.count(1)
        self._local_devices: dict[int, bool] = {}
        self._inotify = -1
        self._poll = select.poll()
        self._own = self._mounts = -1
        with contextlib.suppress(OSError):  # before this process has another root, perhaps
            self._own = keep(os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            self._mounts = keep(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
            self._poll.register(self._mounts, select.POLLPRI)

    def opened(self, path: bytes, how: int, fd: int) -> int:
        """Hear that the program has opened *path*, which is regular and not large, as *fd*; return its number.

        path: absolute, or relative to the working directory. 0: it is not lasting. What is read of it after this is
        so until `is_lasting` says otherwise.
        """
        if self._mounts < 0 or how & ~_OPENS_PLAINLY:
            return 0
        file = self._files.get(path)
        if file is not None:
            facts = os.fstat(fd)
            if (facts.st_dev, facts.st_ino) == file.facts and file.how == how:
                self._files.move_to_end(path)
                return file.id
            self._revoke((file.id,))
        count = self._seen[path] = self._seen.get(path, 0) + 1
        self._seen.move_to_end(path)
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        if count <= 1:
            return 0
        self._take_all()  # what happened to folders before is nothing to this file
        if len(self._files) >= _MAX_FILES:
            self._revoke((next(iter(self._files.values())).id,))
        try:
            return self._watch(path, how).id
        except (_Error, OSError):
            self._seen[path] = -_PAUSE
            return 0

    def is_lasting(self, number: int) -> bool:
        """Whether nothing has happened to a file, as far as anyone can have told of it."""
        self.look()
        return number in self._by_id

    def look(self) -> None:
        """Revoke what may have changed, before something is sent that tells of others."""
        if self._files:
            self._is_used = True
            self._take_all()

    def _take_all(self) -> None:
        """Go on until nothing has happened after the last look at who may write."""
        poll = self._poll.poll
        while events := poll(0):
            for fd, _ in events:
                if fd == self._mounts:
                    self.forget()
                else:
                    self._take_events()

    def forget(self) -> None:
        """Revoke all: paths may lead elsewhere."""
        self._revoke(list(self._by_id))

    def reopened(self, message: Reopened) -> None:
        """Open a file that the program has opened, or close it for good. Raises: ProtocolError."""
        file = self._by_id.get(message.id) or self._revoked.get(message.id)
        if file is None:
            raise ProtocolError(f"the host opened lasting file {message.id}, of which it was not told")
        if message.fd < 0:
            if self._revoked.pop(message.id, None) is None:
                raise ProtocolError(f"the host gave lasting file {message.id} up, which was not revoked")
            os.close(file.fd)
            return
        if message.fd >= self._first_own or is_open(message.fd):
            raise ProtocolError(f"the host gave a file the number {message.fd}, which is not free")
        # By our own descriptor: it may have another name by now, or none.
        how = file.how & ~os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(str(file.fd), how, dir_fd=self._own)
        except OSError:
            fd = os.dup(file.fd)  # it may not be read any more by who may have opened it
        if fd != message.fd:
            os.dup2(fd, message.fd)
            os.close(fd)
        os.set_inheritable(message.fd, not file.how & os.O_CLOEXEC)

    # How a file becomes lasting.

    def _watch(self, path: bytes, how: int) -> _File:
        """Watch what the path leads through, then what is there. Raises: _Error, OSError."""
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        if not names or b".." in names or path.endswith((b"/", b"/.")):
            raise _Error
        if self._inotify < 0:
            self._inotify = self._keep(_check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)))
            self._poll.register(self._inotify, select.POLLIN)
        at = b"/" if path.startswith(b"/") else b"."
        watches: list[tuple[int, bytes]] = []
        number = next(self._ids)
        file: _File | None = None
        try:
            for name in names:
                watches.append((self._add_watch(at, _OF_FOLDER, number, name), name))
                at = os.path.join(at, name)
            watches.append((self._add_watch(at, _OF_FILE, number, b""), b""))
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = _File(number, path, how, self._keep(os.open(at, flags)))
            if not stat.S_ISREG(os.fstat(file.fd).st_mode) or _may_be_written(file.fd):
                raise _Error
        except (_Error, OSError):
            self._drop_watches(number, watches)
            if file is not None:
                os.close(file.fd)
            raise
        file.watches = watches
        self._files[path] = self._by_id[number] = file
        self._is_used = True
        if not self._is_armed:
            self._is_armed = True
            self._later(_IDLE_SECONDS, self._let_go)
        return file

    def _let_go(self) -> None:
        """Know none any more if nobody has used them lately."""
        self._is_armed = bool(self._files) and self._is_used
        if self._is_armed:
            self._is_used = False
            self._later(_IDLE_SECONDS, self._let_go)
        else:
            self.forget()

    def _add_watch(self, path: bytes, mask: int, number: int, name: bytes) -> int:
        """Watch *path* for file *number*, which is *name* in it or leads there. Raises: _Error, OSError."""
        watch = _check(_libc.inotify_add_watch(self._inotify, path, mask))
        self._watched.setdefault(watch, {}).setdefault(name, set()).add(number)
        if not self._is_local(path):
            self._drop_watches(number, [(watch, name)])
            raise _Error
        return watch

    def _drop_watches(self, number: int, watches: Iterable[tuple[int, bytes]]) -> None:
        for watch, name in watches:
            by_name = self._watched.get(watch)
            if by_name is None:
                continue
            by_name[name].discard(number)
            if not by_name[name]:
                del by_name[name]
            if not by_name:
                del self._watched[watch]
                _libc.inotify_rm_watch(self._inotify, watch)

    def _is_local(self, path: bytes) -> bool:
        device = os.lstat(path).st_dev
        known = self._local_devices.get(device)
        if known is None:
            buffer = ctypes.create_string_buffer(_STATFS_BYTES)
            _check(_libc.statfs(path, buffer))
            known = int.from_bytes(buffer.raw[:8], "little") in _LOCAL
            self._local_devices[device] = known
        return known

    # How it ceases to be.

    def _take_events(self) -> None:
        try:
            data = os.read(self._inotify, _QUEUE_BYTES)
        except BlockingIOError:
            return
        gone: set[int] = set()
        opened: set[int] = set()
        at = 0
        while at < len(data):
            watch, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + size].rstrip(b"\0")
            at += size
            if mask & _IN_Q_OVERFLOW:
                gone.update(self._by_id)
                continue
            by_name = self._watched.get(watch)
            if by_name is None:
                continue
            if name:
                gone.update(by_name.get(name, ()))
            elif mask & _IN_OPEN:
                opened.update(by_name.get(b"", ()))
            else:
                gone.update(*by_name.values())
            if mask & _IN_IGNORED:
                del self._watched[watch]
        for number in opened - gone:
            file = self._by_id.get(number)
            if file is not None:
                file.opens += 1
                if file.opens > _MAX_OPENS or _may_be_written(file.fd):
                    gone.add(number)
        self._revoke(gone)

    def _revoke(self, numbers: Iterable[int]) -> None:
        gone = [self._by_id.pop(number) for number in numbers if number in self._by_id]
        if not gone:
            return
        for file in gone:
            del self._files[file.path]
            self._revoked[file.id] = file
            self._drop_watches(file.id, file.watches)
        self._send(Revoked(tuple(file.id for file in gone)))


def _may_be_written(fd: int) -> bool:
    """Whether somebody has the file open for writing, as far as the kernel says.

    Who opens it for writing in the moment of the lease waits for that long; the signal for it is one that a session
    ignores.
    """
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGPIPE)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _check(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
