"""A seccomp listener: syscalls that a filter sends here, one notification each, from all threads of a program.

A thread whose call was received waits until it is answered, unless a signal interrupts it: then its notification
is void (answers raise `NotificationGoneError`) and the kernel usually makes the thread repeat the call, which
arrives as a new notification.

Not trusted: the program. Its memory may change while a call waits, so what a pointer leads to is read once.
A listener is used by one thread.

Source: seccomp_unotify(2), linux/seccomp.h.
"""

import array
import errno
import fcntl
import os
import select
import struct
from typing import NamedTuple

from stepping.errors import NotificationGoneError

_RECEIVE = 0xC0502100
_SEND = 0xC0182101
_ID_VALID = 0x40082102
_ADD_FD = 0x40182103
_SET_FLAGS = 0x40082104
_SYNC_WAKE_UP = 1
_FLAG_CONTINUE = 1
_ADDFD_SETFD, _ADDFD_SEND = 1, 2

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ADD = struct.Struct("=QIIII")
_ZERO = bytes(_NOTIFICATION.size)


class Notification(NamedTuple):
    """A call that waits. id: its name at the listener; ip: the address after the syscall; a0 to a5: arguments."""

    id: int
    tid: int
    flags: int
    nr: int
    arch: int
    ip: int
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int
    a5: int


class Listener:
    """Receives and answers the notifications of one filter. Owns descriptor *fd*.

    put: what `put_fd` has put last, by the number in the program.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.put: dict[int, int] = {}
        # Not bytes: fcntl.ioctl tries a mutable buffer first, and makes and drops an exception if it is none.
        self._notification = bytearray(_NOTIFICATION.size)
        self._response = bytearray(_RESPONSE.size)
        try:
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError:
            pass  # before Linux 6.6: slower, nothing else

    def fileno(self) -> int:
        """Return the descriptor to poll: readable when a call waits, hung up when no thread is left."""
        return self._fd

    def is_used(self) -> bool:
        """Whether a thread is left that could make a call."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not any(event & select.POLLHUP for _, event in poll.poll(0))

    def receive(self) -> Notification | None:
        """Return the next call; blocks if none waits. None if its thread was interrupted meanwhile."""
        self._notification[:] = _ZERO
        try:
            fcntl.ioctl(self._fd, _RECEIVE, self._notification)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return Notification._make(_NOTIFICATION.unpack(self._notification))

    def answer(self, notification_id: int, value: int, error: int = 0) -> None:
        """Let the call return *value* (signed 64-bit), or fail with errno *error* if that is not 0.

        Raises:
            NotificationGoneError: the thread no longer waits.
        """
        _RESPONSE.pack_into(self._response, 0, notification_id, value, -error, 0)
        try:
            fcntl.ioctl(self._fd, _SEND, self._response)
        except OSError as failure:
            raise _translate(failure) from failure

    def proceed(self, notification_id: int) -> None:
        """Let the thread make its call itself. What its pointers lead to may have changed since it was read.

        Raises:
            NotificationGoneError: the thread no longer waits.
        """
        _RESPONSE.pack_into(self._response, 0, notification_id, 0, 0, _FLAG_CONTINUE)
        try:
            fcntl.ioctl(self._fd, _SEND, self._response)
        except OSError as failure:
            raise _translate(failure) from failure

    def is_waiting(self, notification_id: int) -> bool:
        """Whether the call still waits, so that what its thread's id names is still that thread."""
        try:
            fcntl.ioctl(self._fd, _ID_VALID, array.array("Q", [notification_id]))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def answer_with_fd(self, notification_id: int, fd: int, *, close_on_exec: bool) -> int:
        """Give the program a duplicate of *fd* at its lowest free number, which the call returns; return it.

        Raises:
            NotificationGoneError: the thread no longer waits.
            OSError: the program has no free descriptor (EMFILE), or *fd* is not open.
        """
        return self._add_fd(notification_id, fd, 0, _ADDFD_SEND, close_on_exec)

    def add_fd(self, notification_id: int, fd: int, *, close_on_exec: bool) -> int:
        """As `answer_with_fd`, but the call goes on waiting."""
        return self._add_fd(notification_id, fd, 0, 0, close_on_exec)

    def put_fd(self, notification_id: int, fd: int, number: int) -> None:
        """Make *number* of the program a duplicate of *fd*, whatever stood there; the call goes on waiting.

        Raises:
            NotificationGoneError: the thread no longer waits.
            OSError: *number* is above the program's limit (EBADF).
        """
        self._add_fd(notification_id, fd, number, _ADDFD_SETFD, True)
        self.put[number] = fd

    def close(self) -> None:
        """Close; calls that wait or come later fail with ENOSYS."""
        os.close(self._fd)

    def _add_fd(self, notification_id: int, fd: int, new_fd: int, flags: int, close_on_exec: bool) -> int:
        request = _ADD.pack(notification_id, flags, fd, new_fd, os.O_CLOEXEC if close_on_exec else 0)
        try:
            return _ioctl_value(self._fd, _ADD_FD, request)
        except OSError as error:
            raise _translate(error) from error


def _ioctl_value(fd: int, request: int, argument: bytes) -> int:
    """Return the ioctl's own result: fcntl.ioctl gives it for mutable buffers only."""
    return int(fcntl.ioctl(fd, request, bytearray(argument), True))


def _translate(error: OSError) -> Exception:
    return NotificationGoneError() if error.errno in (errno.ENOENT, errno.EINPROGRESS) else error
