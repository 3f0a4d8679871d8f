"""Tells which calls may keep their thread waiting, so that they are not made on the session's only loop.

The table says which calls can sleep for somebody else's sake at all; here the arguments decide whether this one
can. A call on regular files and folders counts as one that does not wait: it may take as long as the disk does.

A socket that does not block is remembered as such, so another process that shares it (a child, or one that got it in
a message) must not make it block.

Thread rules: one thread; what descriptors are is remembered until `forget` is called.
"""

import errno
import fcntl
import os
import stat
import struct

from stepping.syscalls import ArgKind, Syscall

Args = tuple[int, int, int, int, int, int]

_LOCKING = frozenset({fcntl.F_SETLKW, 38})  # F_OFD_SETLKW
#: Where the flags of these calls are.
_SPLICING = {"splice": 5, "tee": 3}
_SPLICE_F_NONBLOCK = 2
_MSG_DONTWAIT = 0x40
_OPENING = frozenset({"open", "openat", "openat2", "creat"})
#: Calls that wait for an epoll instance, their first argument.
EPOLLS = frozenset("epoll_wait epoll_pwait epoll_pwait2".split())
_POLLING = EPOLLS | frozenset("poll ppoll select pselect6".split())
_FIONBIO = 0x5421
_TIMESPEC = struct.Struct("=qq")
_SOME_ADDRESS = 8  # where a pointer was null: nobody follows it
_AT_FDCWD = -100
#: Devices of /dev/mem's family that never wait: null, zero, full, random, urandom (minor numbers of major 1).
_NEVER_WAIT = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))


#: Of a call: the indexes of its timeout and of its flags as a message, if it has them, and of its descriptors.
_Shape = tuple[int | None, int | None, tuple[int, ...]]


class Waiting:
    """Knows the program's descriptors as far as it must."""

    def __init__(self) -> None:
        self._quick: set[int] = set()
        self._nonblocking: set[int] = set()
        self._shapes: dict[str, _Shape] = {}

    def forget(self, first: int, last: int) -> None:
        """Forget what the descriptors *first* to *last* are: their numbers may stand for others now."""
        for known in (self._quick, self._nonblocking):
            if first == last:
                known.discard(first)
            else:
                known.difference_update([fd for fd in known if first <= fd <= last])

    def may_wait(self, row: Syscall, args: Args, ins: dict[int, bytes]) -> bool:
        """Whether the call may sleep without bound; never false if it may, except by a race for a name."""
        if not row.may_wait:
            return False
        name = row.name
        shape = self._shapes.get(name)
        if shape is not None:
            return self._shape_may_wait(row, shape, args, ins)
        if name == "fcntl":
            if args[1] & 0xFFFFFFFF == fcntl.F_SETFL:
                self._nonblocking.clear()  # duplicates share their flags
            return args[1] & 0xFFFFFFFF in _LOCKING
        if name == "ioctl" and args[1] & 0xFFFFFFFF == _FIONBIO:
            self._nonblocking.clear()
        if name == "flock":
            return not args[1] & (fcntl.LOCK_NB | fcntl.LOCK_UN)
        if name in _SPLICING:  # its own flag alone counts: an empty pipe with O_NONBLOCK is waited for
            return not args[_SPLICING[name]] & _SPLICE_F_NONBLOCK
        if name in _OPENING:
            return self._opening_may_wait(row, args, ins)
        shape = _shape_of(row)
        if name != "ioctl":
            self._shapes[name] = shape
        return self._shape_may_wait(row, shape, args, ins)

    def _shape_may_wait(self, row: Syscall, shape: _Shape, args: Args, ins: dict[int, bytes]) -> bool:
        timeout, flags, descriptors = shape
        if flags is not None:
            if args[flags] & _MSG_DONTWAIT:
                return False
        elif timeout is not None:
            return _timeout_is_not_zero(row.args[timeout].kind, args[timeout], ins.get(timeout))
        for index in descriptors:
            fd = args[index] & 0xFFFFFFFF
            if fd not in self._nonblocking and not self._is_quick(fd):
                return True
        return not descriptors

    def without_timeout(
        self, row: Syscall, args: Args, ins: dict[int, bytes]
    ) -> tuple[int, Args, dict[int, bytes]] | None:
        """Return a call that only asks what is ready now, and the index of its timeout; None for other calls.

        It returns 0 where the call itself would wait.
        """
        if row.name not in _POLLING:
            return None
        timeout = self._shapes[row.name][0]
        assert timeout is not None
        changed = list(args)
        if row.args[timeout].kind is ArgKind.INT:
            changed[timeout] = 0
        else:
            changed[timeout] = _SOME_ADDRESS
            ins = ins | {timeout: bytes(16)}
        return timeout, (changed[0], changed[1], changed[2], changed[3], changed[4], changed[5]), ins

    def timeout_of(self, row: Syscall, args: Args, ins: dict[int, bytes]) -> float | None:
        """Return how many seconds a call that waits for events may wait; None for ever."""
        timeout = self._shapes[row.name][0]
        assert timeout is not None
        if row.args[timeout].kind is ArgKind.INT:
            milliseconds = args[timeout] & 0xFFFFFFFF
            return None if milliseconds >> 31 else milliseconds / 1000
        data = ins.get(timeout)
        if data is None or len(data) < _TIMESPEC.size:
            return None
        seconds, nanoseconds = _TIMESPEC.unpack_from(data)
        return float(seconds + nanoseconds / 1e9)

    def _is_quick(self, fd: int) -> bool:
        """Whether calls on the descriptor return at once."""
        if fd in self._quick:
            return True
        try:
            status = os.fstat(fd)
            mode = status.st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or status.st_rdev in _NEVER_WAIT:
                self._quick.add(fd)
                return True
            if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK:
                return False
            if stat.S_ISSOCK(mode):
                self._nonblocking.add(fd)
            return True
        except (OSError, OverflowError):
            return True  # the call will fail

    def _opening_may_wait(self, row: Syscall, args: Args, ins: dict[int, bytes]) -> bool:
        """Whether opening the file may wait for another process: a FIFO's other end, a device."""
        index = next(i for i, arg in enumerate(row.args) if arg.kind is ArgKind.PATH)
        path = ins.get(index)
        if not path or b"\0" in path:
            return False
        folder: int | None = None
        if index:
            folder = args[0] & 0xFFFFFFFF
            folder = None if folder - (folder >> 31 << 32) == _AT_FDCWD else folder
        try:
            status = os.stat(path, dir_fd=None if path.startswith(b"/") else folder)
        except OverflowError:
            return False
        except OSError as error:
            return error.errno == errno.EINTR
        mode = status.st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or status.st_rdev in _NEVER_WAIT)


def _shape_of(row: Syscall) -> _Shape:
    timeout = next((index for index, arg in enumerate(row.args) if arg.name == "timeout"), None)
    flags = next((index for index, arg in enumerate(row.args) if arg.decoder == "msg_flags"), None)
    descriptors = tuple(index for index, arg in enumerate(row.args) if arg.kind is ArgKind.FD)
    return timeout, flags, descriptors


def _timeout_is_not_zero(kind: ArgKind, register: int, data: bytes | None) -> bool:
    if kind is ArgKind.INT:
        return bool(register & 0xFFFFFFFF)
    return data is None or data.strip(b"\0") != b""
