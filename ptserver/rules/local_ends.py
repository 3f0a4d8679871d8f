"""Local descriptors as the ends of relays: reading them without taking what is read, and writing without waiting.

What an executed program has not read is not taken: a file is read at its offset, which moves when the program has
read; the contents of a pipe are duplicated by tee(2), those of a socket are peeked at, and both are taken then. A
terminal, or another device, gives what it gives only once.

Nothing here waits, whoever else reads and writes the same: a pipe is written by splice(2), a device is opened anew
for that. Only files may wait for their disk.

Thread rules: the host's thread.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import socket
import stat
from typing import Protocol

from ptserver.messages import MAX_RELAY_WINDOW_BYTES

_libc = ctypes.CDLL(None, use_errno=True)
_KCMP_FILE = 0
_NR_KCMP = {"x86_64": 312, "aarch64": 272}[os.uname().machine]
_READ_BYTES = 64 << 10
#: What a device is given at a time that cannot be opened anew: a terminal that polls as writable takes it.
_CAREFUL_BYTES = 1024
#: How much of a device is taken before anybody wants it: a line.
_LINE_BYTES = 4096


class Source(Protocol):
    """What an executed program reads.

    fd: to be polled; reads_on: whether more can be read before all is taken; window_bytes: how much to read before
    some is.
    """

    fd: int
    reads_on: bool
    window_bytes: int

    def peek(self, skip: int, size: int) -> bytes:
        """Return up to *size* bytes after the *skip* next ones, b"" at the end. Raises: OSError."""

    def take(self, size: int) -> None:
        """Take so many bytes, which were peeked at, if they are still there."""

    def close(self) -> None:
        """Give up the descriptors."""


class Sink(Protocol):
    """What an executed program writes to. fd: to be polled."""

    fd: int

    def write(self, data: memoryview) -> int:
        """Write the beginning of *data*; return how much. Raises: OSError; BlockingIOError: nothing now."""

    def shut_down(self) -> None:
        """Let who reads a connection find its end, though others have it open."""

    def close(self) -> None:
        """Give up the descriptors."""


def is_relayed(fd: int) -> bool:
    """Whether a pipe can stand for what *fd* is open on: a file, pipe, device, or a connected stream socket."""
    mode = os.fstat(fd).st_mode
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH or stat.S_ISDIR(mode):
        return False
    if not stat.S_ISSOCK(mode):
        return stat.S_IFMT(mode) != 0  # what has no name, as of epoll, has no kind either
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            sock.getpeername()
        except OSError:
            return False
        return sock.type == socket.SOCK_STREAM


def is_same(one: int, other: int) -> bool:
    """Whether two descriptors of this process are of one open file, with one offset."""
    compared = _libc.syscall(
        _NR_KCMP, os.getpid(), os.getpid(), _KCMP_FILE, ctypes.c_ulong(one), ctypes.c_ulong(other)
    )
    if compared >= 0:
        return bool(compared == 0)
    first, second = (
        os.fstat(one),
        os.fstat(other),
    )  # the kernel does not tell; files may have offsets of their own
    return not stat.S_ISREG(first.st_mode) and (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def source_of(fd: int) -> Source:
    """Return what reads *fd*, by descriptors of its own. Raises: OSError."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return _FileSource(os.dup(fd))
    if stat.S_ISFIFO(mode):
        return _PipeSource(os.dup(fd))
    if stat.S_ISSOCK(mode):
        return _SocketEnd(os.dup(fd))
    return _DeviceSource(_opened_anew(fd, os.O_RDONLY))


def sink_of(fd: int) -> Sink:
    """Return what writes to *fd*, by descriptors of its own. Raises: OSError."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return _FileSink(os.dup(fd))
    if stat.S_ISFIFO(mode):
        return _PipeSink(os.dup(fd))
    if stat.S_ISSOCK(mode):
        return _SocketEnd(os.dup(fd))
    try:
        return _FileSink(_opened_anew(fd, os.O_WRONLY))
    except OSError:
        return _FileSink(os.dup(fd), _CAREFUL_BYTES)


class _End:
    reads_on = False
    window_bytes = _READ_BYTES

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def take(self, size: int) -> None:
        """Do nothing: it was taken when it was read."""

    def shut_down(self) -> None:
        """Do nothing: it is no connection."""

    def close(self) -> None:
        os.close(self.fd)


class _FileSource(_End):
    reads_on = True
    window_bytes = MAX_RELAY_WINDOW_BYTES

    def peek(self, skip: int, size: int) -> bytes:
        return os.pread(self.fd, size, os.lseek(self.fd, 0, os.SEEK_CUR) + skip)

    def take(self, size: int) -> None:
        os.lseek(self.fd, size, os.SEEK_CUR)


class _PipeSource(_End):
    def peek(self, skip: int, size: int) -> bytes:
        reading, writing = _scratch()
        count = _libc.tee(self.fd, writing, ctypes.c_size_t(size), os.SPLICE_F_NONBLOCK)
        if count < 0:
            failure = ctypes.get_errno()
            raise OSError(failure, os.strerror(failure))
        return os.read(reading, count) if count else b""

    def take(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while size:
                count = os.splice(self.fd, _null(), size, flags=os.SPLICE_F_NONBLOCK)
                if not count:
                    return
                size -= count


class _DeviceSource(_End):
    window_bytes = _LINE_BYTES

    def peek(self, skip: int, size: int) -> bytes:
        return os.read(self.fd, size)


class _SocketEnd(_End):
    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._socket = socket.socket(fileno=fd)

    def peek(self, skip: int, size: int) -> bytes:
        return self._socket.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)

    def take(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while size and (data := self._socket.recv(min(size, _READ_BYTES), socket.MSG_DONTWAIT)):
                size -= len(data)

    def write(self, data: memoryview) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def shut_down(self) -> None:
        with contextlib.suppress(OSError):  # the connection is broken
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


class _FileSink(_End):
    def __init__(self, fd: int, most_bytes: int = 1 << 20) -> None:
        super().__init__(fd)
        self._most_bytes = most_bytes

    def write(self, data: memoryview) -> int:
        return os.write(self.fd, data[: self._most_bytes])


class _PipeSink(_End):
    def write(self, data: memoryview) -> int:
        reading, writing = _scratch()
        left = os.write(writing, data[:_READ_BYTES])
        written = 0
        try:
            while left:
                count = os.splice(reading, self.fd, left, flags=os.SPLICE_F_NONBLOCK)
                written, left = written + count, left - count
        except BlockingIOError:
            if not written:
                raise
        finally:
            while left:
                left -= len(os.read(reading, left))
        return written


@functools.cache
def _scratch() -> tuple[int, int]:
    """Return a pipe of this process's own, which is empty whenever it is not used."""
    return os.pipe2(os.O_CLOEXEC)


@functools.cache
def _null() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _opened_anew(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
