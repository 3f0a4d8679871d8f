"""userfaultfd(2): who touches a page that is not there, or writes one that is protected, waits until we say.

The registered ranges are shared mappings of a memfd. A touch of a page that the memfd does not have, and a write to
a page that is protected, stop the thread (in the kernel too, in the midst of a syscall) and are reported here.
Addresses are page-aligned where a page is meant, sizes are in bytes and whole pages.

Source: linux/userfaultfd.h, ioctl_userfaultfd(2); mm/userfaultfd.c.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from typing import NamedTuple

from stepping.errors import SteppingError
from stepping.maps import PAGE_BYTES

_API, _REGISTER, _WAKE, _COPY, _WRITEPROTECT, _POISON = (
    0xC018AA3F,
    0xC020AA00,
    0x8010AA02,
    0xC028AA03,
    0xC018AA06,
    0xC020AA08,
)
_VERSION = 0xAA
_PAGEFAULT_FLAG_WP, _MISSING_SHMEM, _THREAD_ID, _EXACT_ADDRESS, _WP_SHMEM = (
    1 << bit for bit in (0, 5, 8, 11, 12)
)
_FEATURES = _PAGEFAULT_FLAG_WP | _MISSING_SHMEM | _THREAD_ID | _EXACT_ADDRESS | _WP_SHMEM
_POISON_FEATURE = 1 << 14
_MODE_MISSING, _MODE_WP = 1, 2
_COPY_PROTECTED = 2
_PROTECT = 1
_EVENT_PAGEFAULT = 0x12
_FLAG_WRITE = 1
_IOCTL_COPY, _IOCTL_WRITEPROTECT = 1 << 3, 1 << 6

_EVENT = struct.Struct("=B7xQQI4x")
_TWO, _THREE = struct.Struct("=QQ"), struct.Struct("=QQQ")
_FOUR, _FIVE = struct.Struct("=QQQQ"), struct.Struct("=QQQQq")
_READ_EVENTS = 32
#: How much is copied at a time.
_COPY_BYTES = 64 * PAGE_BYTES


class Fault(NamedTuple):
    """A thread that waits. address: the very byte; write: whether it writes; tid: the thread, in its namespace."""

    address: int
    write: bool
    tid: int


class UserFault:
    """The userfaultfd of one process, given by its descriptor here, which this object owns."""

    def __init__(self, fd: int) -> None:
        """Agree with the kernel on what is reported.

        Raises:
            SteppingError: the kernel is too old.
        """
        self._fd = fd
        self._buffer = bytearray(_FIVE.size)
        self._source = mmap.mmap(-1, _COPY_BYTES)
        self._source_address = ctypes.addressof(ctypes.c_char.from_buffer(self._source))
        self._can_poison = True
        try:
            self._agree(_FEATURES | _POISON_FEATURE)
        except OSError:  # Linux before 6.6
            self._can_poison = False
            try:
                self._agree(_FEATURES)
            except OSError as error:
                raise SteppingError(
                    f"this kernel's userfaultfd cannot do what is needed ({error.strerror}); Linux 5.19 or later can"
                ) from error

    def _agree(self, features: int) -> None:
        fcntl.ioctl(self._fd, _API, bytearray(_THREE.pack(_VERSION, features, 0)))

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def close(self) -> None:
        """Give it up: the kernel fills missing pages itself from then on."""
        os.close(self._fd)

    def register(self, start: int, size: int) -> None:
        """Have faults of [start, start + size), a shared mapping, reported.

        Raises:
            SteppingError: the kernel cannot do it for this kind of memory.
        """
        request = bytearray(_FOUR.pack(start, size, _MODE_MISSING | _MODE_WP, 0))
        try:
            fcntl.ioctl(self._fd, _REGISTER, request)
        except OSError as error:
            raise SteppingError(f"cannot watch memory at {start:#x}: {error.strerror}") from error
        if ~_FOUR.unpack(request)[3] & (_IOCTL_COPY | _IOCTL_WRITEPROTECT):
            raise SteppingError(f"memory at {start:#x} cannot be written and protected from outside")

    def read(self) -> list[Fault]:
        """Return the faults that wait to be dealt with; empty if there are none."""
        try:
            data = os.read(self._fd, _EVENT.size * _READ_EVENTS)
        except BlockingIOError:
            return []
        if len(data) == _EVENT.size:  # as mostly
            event, flags, address, tid = _EVENT.unpack(data)
            return [Fault(address, bool(flags & _FLAG_WRITE), tid)] if event == _EVENT_PAGEFAULT else []
        return [
            Fault(address, bool(flags & _FLAG_WRITE), tid)
            for event, flags, address, tid in _EVENT.iter_unpack(data)
            if event == _EVENT_PAGEFAULT
        ]

    def copy(self, address: int, data: bytes | memoryview, *, protected: bool) -> None:
        """Put *data*, whole pages, where nothing is; wake who waits for it. protected: a write is reported.

        Raises:
            OSError: EEXIST, there is something already; ESRCH, the process is gone.
        """
        size = len(data)
        if size > _COPY_BYTES:
            self.copy(address, data[:_COPY_BYTES], protected=protected)
            self.copy(address + _COPY_BYTES, data[_COPY_BYTES:], protected=protected)
            return
        self._source[:size] = data
        mode = _COPY_PROTECTED if protected else 0
        _FIVE.pack_into(self._buffer, 0, address, self._source_address, size, mode, 0)
        self._retry(_COPY)

    def protect(self, address: int, size: int = PAGE_BYTES) -> None:
        """Have the next write to each page reported."""
        _THREE.pack_into(self._buffer, 0, address, size, _PROTECT)
        self._retry(_WRITEPROTECT)

    def unprotect(self, address: int, size: int = PAGE_BYTES) -> None:
        """Allow writes, and wake who waits to write."""
        _THREE.pack_into(self._buffer, 0, address, size, 0)
        self._retry(_WRITEPROTECT)

    def wake(self, address: int, size: int = PAGE_BYTES) -> None:
        """Have the threads that wait for these pages try again."""
        _TWO.pack_into(self._buffer, 0, address, size)
        fcntl.ioctl(self._fd, _WAKE, self._buffer)

    def poison(self, address: int) -> bool:
        """Have a touch of the page, where nothing is, fail: a call with EFAULT, a thread by SIGBUS (BUS_MCEERR_AR).

        Returns whether the kernel can do it (Linux 6.6 or later). `copy` ends it.
        """
        if self._can_poison:
            _FOUR.pack_into(self._buffer, 0, address, PAGE_BYTES, 0, 0)
            self._retry(_POISON)
        return self._can_poison

    def _retry(self, request: int) -> None:
        """Make the ioctl; again while the kernel says that the mappings are changing."""
        while True:
            try:
                fcntl.ioctl(self._fd, request, self._buffer)
                return
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
