"""Lasting files that a program reads itself: what is in them is at its descriptors' numbers, in memory.

A lasting file (`known_lasting`) that the program opens is put at its number: a descriptor of its own for a sealed
memfd with the contents, and an entry in the table of `stepping.direct_calls`. So reads, the offset, and the refusal
of epoll stop no thread. What was at the number before is used again if it is the same file.

Before anything else is done with the descriptor, before the session has it, when the file is revoked, and when it has
been known for as long as it may be, that ends (`end`): what is left is the offset.

Thread rules: the host's thread.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable

from ptserver.hosts.known_file import FRESH_SECONDS, KnownFile
from stepping.direct_calls import TABLE_DESCRIPTORS, DirectTable
from stepping.errors import MemoryFaultError, NotificationGoneError
from stepping.listener import Listener

_MAX_CONTENTS, _MAX_PUT = 64, 256
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class LocalFiles:
    """Of the process whose *table* that is. later: calls back in so many seconds; may: whether files may be put."""

    def __init__(
        self,
        table: DirectTable,
        listener: Listener,
        later: Callable[[float, Callable[[], None]], None],
        may: Callable[[], bool],
    ) -> None:
        self._table = table
        self._listener = listener
        self._later = later
        self.may = may
        self._contents: dict[int, int] = {}  # memfds by the file's number
        self._put: dict[int, tuple[int, int]] = {}  # by descriptor: the file's number, and ours for the same
        self._open: dict[int, tuple[float, KnownFile]] = {}  # by descriptor, and until when
        self._is_armed = False

    def open(self, notification_id: int, fd: int, file: KnownFile) -> bool:
        """Put a file at the number *fd*, if that can be done, and return whether. The call that opens it waits."""
        until = file.since + FRESH_SECONDS
        if fd >= TABLE_DESCRIPTORS or until < time.monotonic() + FRESH_SECONDS / 2 or not self.may():
            return False
        number, ours = self._put.get(fd, (0, -1))
        try:
            if number == file.lasting and self._listener.put.get(fd) == ours:
                os.lseek(ours, 0, os.SEEK_SET)  # it is there still
            else:
                self._put_anew(notification_id, fd, file)
            self._table.set(fd, is_file=True)
        except (NotificationGoneError, OSError, MemoryFaultError):
            return False  # it is read by calls that are taken
        self._keep(fd, file)
        return True

    def lay(self, notification_id: int, fds: Iterable[int], file: KnownFile) -> None:
        """Put a file at numbers that are free, so that the program can open it there itself."""
        try:
            for fd in fds:
                if fd < TABLE_DESCRIPTORS and not self.there(fd):
                    self._put_anew(notification_id, fd, file)
        except (NotificationGoneError, OSError):
            pass  # fewer will do

    def _keep(self, fd: int, file: KnownFile) -> None:
        self._open[fd] = file.since + FRESH_SECONDS, file
        if not self._is_armed:
            self._arm()

    def there(self, fd: int) -> int:
        """Return the number of the file that lies at a descriptor's number, whether it is open or not; 0 if none."""
        number, ours = self._put.get(fd, (0, -1))
        return number if self._listener.put.get(fd) == ours else 0

    def lend(self) -> dict[int, KnownFile]:
        """Return what the program reads itself, by descriptor, for somebody who gives it back (`take_back`)."""
        return {fd: file for fd, (_, file) in self._open.items()}

    def lent(self, fd: int) -> None:
        """Leave a descriptor to who has been told of it."""
        del self._open[fd]

    def take_back(self, fd: int, file: KnownFile) -> None:
        """Have a descriptor again, which the program reads itself."""
        self._keep(fd, file)

    def _put_anew(self, notification_id: int, fd: int, file: KnownFile) -> None:
        self._drop(fd)
        if len(self._put) >= _MAX_PUT:
            self._drop(next((fd for fd in self._put if fd not in self._open), -1))
        if len(self._put) >= _MAX_PUT:
            raise OSError(errno.EMFILE, "the program has many files open")
        ours = os.open(f"/proc/self/fd/{self._memfd(file)}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._listener.put_fd(notification_id, ours, fd)
        except (NotificationGoneError, OSError):
            os.close(ours)
            raise
        self._put[fd] = file.lasting, ours

    def end(self, fd: int) -> None:
        """Have the program read a descriptor itself no more, if it does."""
        _, file = self._open.pop(fd, (0.0, None))
        if file is not None:
            with contextlib.suppress(MemoryFaultError):
                self._table.clear(fd)
                self._table.await_unused()
            file.position = os.lseek(self._put[fd][1], 0, os.SEEK_CUR)

    def end_all(self) -> None:
        """Have it read none any more."""
        for fd in list(self._open):
            self.end(fd)

    def closed(self, fd: int) -> None:
        """Hear that the program closes a descriptor. What it has there stays, until it has something else there."""
        if self._open.pop(fd, None) is not None:
            with contextlib.suppress(MemoryFaultError):
                self._table.clear(fd)

    def _drop(self, fd: int) -> None:
        _, ours = self._put.pop(fd, (0, -1))
        if ours >= 0:
            os.close(ours)

    def forget(self, number: int) -> None:
        """Have no contents of a file any more."""
        memfd = self._contents.pop(number, None)
        if memfd is not None:
            os.close(memfd)

    def close(self) -> None:
        """Give up every descriptor."""
        for fd in list(self._put):
            self._drop(fd)
        for number in list(self._contents):
            self.forget(number)

    def _memfd(self, file: KnownFile) -> int:
        memfd = self._contents.get(file.lasting)
        if memfd is None:
            if len(self._contents) >= _MAX_CONTENTS:
                self.forget(next(iter(self._contents)))
            data = file.look(0, file.size) if file.size else b""
            if data is None:
                raise OSError(errno.EAGAIN, "the contents are too old")
            memfd = os.memfd_create("ptserver", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            self._contents[file.lasting] = memfd
            os.pwrite(memfd, data, 0)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
        return memfd

    def _arm(self) -> None:
        self._is_armed = True
        self._later(FRESH_SECONDS / 2, self._end_old)

    def _end_old(self) -> None:
        """End what will be too old before the next look."""
        self._is_armed = False
        limit = time.monotonic() + FRESH_SECONDS / 2
        for fd in [fd for fd, (until, _) in self._open.items() if until < limit]:
            self.end(fd)
        if self._open:
            self._arm()
