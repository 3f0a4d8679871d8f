"""Makes the writes that a host has answered itself, as they come. docs/latency.md states the rules.

    whole       at once, without waiting: there was room, as the host has been told
    the rest    is made by a worker, if others have filled the room meanwhile, or for what may wait in any case

While a worker writes, calls are held back that could tell the difference, in their order: those of the thread that
wrote, those on the same file or stream, and those that share descriptors or reach other processes. Calls that only
receive are not, nor are those of other threads: they might be what empties the stream. Nor is close, which natively
waits for nobody who reads: the worker has a descriptor of its own.

A write that fails is remembered under its descriptor. What is written behind after it is dropped, as the program does
not know yet; its next call on the descriptor that can tell of it returns the error.

Not trusted: the stub host.
Thread rules: the session's thread; `_finish` is run by workers.
"""

import errno
import os
import select
import struct
from collections.abc import Callable

from ptserver.errors import ProtocolError
from ptserver.hosts.policy import EXECS, FORKS, WRITES
from ptserver.messages import DescriptorKind, Syscall
from ptserver.sessions.descriptor_states import DescriptorStates
from ptserver.shadow.execute import Executed, execute
from ptserver.shadow.execute_sockets import send
from ptserver.shadow.waiting import Args
from ptserver.shadow.workers import Workers
from stepping.syscalls import SYSCALLS
from stepping.syscalls import Syscall as Row

#: The calls that tell of an earlier write's failure.
_TELLS = WRITES | frozenset(
    "pwrite64 pwritev pwritev2 sendmsg sendmmsg fsync fdatasync sync_file_range close shutdown ftruncate".split()
)
#: The calls that only take what is there, or wait for it.
_RECEIVES = frozenset(
    "read readv recvfrom recvmsg recvmmsg accept accept4 epoll_wait epoll_pwait epoll_pwait2 poll ppoll select"
    " pselect6".split()
)
_REACHES_OTHERS = (
    FORKS
    | EXECS
    | frozenset(
        "dup dup2 dup3 fcntl close_range sendmsg sendmmsg splice tee sendfile copy_file_range kill pidfd_send_signal"
        " rt_sigqueueinfo pidfd_getfd sync syncfs unshare".split()
    )
)
_F_GETFD, _F_SETFL = 1, 4  # with those between them, what fcntl does to one descriptor alone
_WRITE, _PWRITEV2 = SYSCALLS["write"], SYSCALLS["pwritev2"]
_PPOLL, _POLLFD = SYSCALLS["ppoll"], struct.Struct("=ihh")
_SOME_ADDRESS = 1 << 12
_MSG_DONTWAIT = 0x40
_RWF_NOWAIT = 8
_CURRENT_OFFSET = (1 << 64) - 1
#: Of descriptors that cannot be written to without waiting, and of those that cannot just now.
_TRIED_IN_VAIN = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINTR})
#: More than any program has threads, and than hosts that keep to what they are told have under way.
_MAX_HELD, _MAX_HELD_BYTES = 16384, 64 << 20


class WriteBehind:
    """Makes what is written behind, on *workers* if need be.

    made: called with each write that has failed; take: called with a call that was held back, once it is its turn.
    copy: returns a descriptor of the session's own for what one of the program's is open on.
    """

    def __init__(
        self,
        states: DescriptorStates,
        workers: Workers[int],
        made: Callable[[Row, Args, Executed], None],
        take: Callable[[Syscall], None],
        copy: Callable[[int], int],
    ) -> None:
        self._states = states
        self._workers = workers
        self._made = made
        self._take = take
        self._copy = copy
        self._failed: dict[int, int] = {}  # errno by descriptor
        self._working: tuple[Syscall, DescriptorKind] | None = None
        self._working_fd = -1  # the worker's
        self._is_closed = False  # whether the program has closed the descriptor to which it writes
        self._held: list[Syscall] = []
        self._held_bytes = 0

    @property
    def is_busy(self) -> bool:
        """Whether something that was written behind is still on its way."""
        return self._working is not None

    @property
    def is_quiet(self) -> bool:
        """Whether no call has to be held back, and none is to tell of a failure."""
        return self._working is None and not self._failed

    def forget(self, first: int, last: int) -> None:
        """Forget the failures of descriptors that are closed."""
        for fd in [fd for fd in self._failed if first <= fd <= last]:
            del self._failed[fd]
        if self._working is not None and first <= self._working[0].args[0] & 0xFFFFFFFF <= last:
            self._is_closed = True

    def write(self, message: Syscall) -> None:
        """Make a posted write, now or in its turn. Raises: ProtocolError."""
        fd = message.args[0] & 0xFFFFFFFF
        if self._states.is_ours(fd):
            raise ProtocolError(f"the host wrote to descriptor {fd}, which is not the program's")
        if fd in self._failed or self.holds(message):
            return
        kind = self._states.kind(fd)
        data = _data(message)
        executed = self._attempt(fd, kind, data, message)
        value, failure, _ = executed
        if failure in _TRIED_IN_VAIN or (not failure and value < len(data)):
            self._begin(message, kind or "pipe", data[value:])
        elif failure:
            self._fail(message, kind or "pipe", executed)

    def _begin(self, message: Syscall, kind: DescriptorKind, rest: bytes) -> None:
        try:
            fd = self._copy(message.args[0] & 0xFFFFFFFF)
        except OSError as error:  # there are no more numbers
            self._fail(message, kind, (0, error.errno or errno.EMFILE, {}))
            return
        self._working, self._working_fd, self._is_closed = (message, kind), fd, False
        self._workers.start(message.id, lambda: _finish(fd, rest))

    @staticmethod
    def _attempt(fd: int, kind: DescriptorKind | None, data: bytes, message: Syscall) -> Executed:
        """Write without waiting; return what came of it."""
        if kind == "tcp" or kind == "unix":
            flags = message.args[3] & 0xFFFFFFFF if message.name == "sendto" else 0
            return send(fd, data, flags | _MSG_DONTWAIT)
        if kind == "file":
            return _finish(fd, data)
        args = (fd, _SOME_ADDRESS, 1, _CURRENT_OFFSET, _CURRENT_OFFSET, _RWF_NOWAIT)
        return execute(_PWRITEV2, args, {1: data}, {})

    def _fail(self, message: Syscall, kind: DescriptorKind, executed: Executed) -> None:
        fd = message.args[0] & 0xFFFFFFFF
        if executed[1] != errno.EBADF:
            self._failed[fd] = executed[1]
        self._states.failed(fd, kind)
        self._made(SYSCALLS[message.name], message.args, executed)

    def note_failure(self, fd: int, failure: int) -> None:
        """Remember that a write to the connection *fd*, which was made elsewhere, has failed."""
        args = (fd, _SOME_ADDRESS, 0, 0, 0, 0)
        self._fail(Syscall(1, 0, 0, "write", args, posted=True), "tcp", (0, failure, {}))

    def finished(self, call_id: int, executed: Executed) -> bool:
        """Take the end of a worker's work; return whether it was one from here."""
        if self._working is None or self._working[0].id != call_id:
            return False
        message, kind = self._working
        self._working = None
        os.close(self._working_fd)
        if executed[1] and not self._is_closed:
            self._fail(message, kind, executed)
        held, self._held, self._held_bytes = self._held, [], 0
        for later in held:
            self._take(later)
        return True

    def holds(self, message: Syscall) -> bool:
        """Hold *message* back if it must come after what is still being written; return whether that is so.

        Raises: ProtocolError, if the host sends more than it may.
        """
        if self._working is None:
            return False
        befores = self._held if message.name == "close" else (self._working[0], *self._held)
        for before in befores:
            if before.posted and _must_follow(message, before):
                self._held.append(message)
                self._held_bytes += len(_data(message))
                if self._held_bytes > _MAX_HELD_BYTES or len(self._held) > _MAX_HELD:
                    raise ProtocolError("the host has more under way than was agreed on")
                return True
        return False

    def cancel(self, call_id: int) -> bool:
        """Forget a call that is held back; return whether it was."""
        for message in self._held:
            if message.id == call_id and not message.posted:
                self._held.remove(message)
                return True
        return False

    def failure_for(self, message: Syscall) -> int:
        """Return the errno with which an earlier write failed, if this call is the one to tell of it; else 0."""
        fd = message.args[0] & 0xFFFFFFFF
        return self._failed.pop(fd, 0) if message.name in _TELLS else 0


def _must_follow(message: Syscall, before: Syscall) -> bool:
    """Whether a call may be made only after another that came before it."""
    name = message.name
    if message.posted and name not in WRITES:
        return False  # it is about a descriptor that nobody writes to, and lets numbers become free
    if name in _RECEIVES:
        return False
    if name == "fcntl" and _F_GETFD <= message.args[1] & 0xFFFFFFFF <= _F_SETFL:
        return _file(message.args[0]) == _file(before.args[0])
    if name in _REACHES_OTHERS or message.tid == before.tid:
        return True
    if name in WRITES or message.args[0] == before.args[0]:
        return _file(message.args[0]) == _file(before.args[0])
    return False


def _file(fd: int) -> tuple[int, int]:
    """Return which file a descriptor is open on, as far as such a number can tell; itself if it is not open."""
    try:
        status = os.fstat(fd & 0xFFFFFFFF)
    except (OSError, OverflowError):
        return -1, fd
    return status.st_dev, status.st_ino


def _data(message: Syscall) -> bytes:
    return message.ins.get(1, b"")


def _finish(fd: int, data: bytes) -> Executed:
    """Write all of *data*, however long it takes, unless it fails or this thread is interrupted."""
    written = 0
    while written < len(data):
        rest = data[written:] if written else data
        value, failure, _ = execute(_WRITE, (fd, _SOME_ADDRESS, len(rest), 0, 0, 0), {1: rest}, {})
        if failure == errno.EAGAIN:
            if not _is_writable(fd):
                return 0, errno.EINTR, {}
        elif failure:
            return 0, failure, {}
        written += value
    return written, 0, {}


def _is_writable(fd: int) -> bool:
    """Wait until *fd* can be written to or has failed; return False if this thread is interrupted."""
    asked = _POLLFD.pack(fd, select.POLLOUT, 0)
    return not execute(_PPOLL, (_SOME_ADDRESS, 1, 0, 0, 0, 0), {0: asked}, {0: _POLLFD.size})[1]
