"""Files that are known until the server says otherwise: the host's half of `ptserver.sessions.lasting_files`.

An open of such a file by the same path, with the same flags, is not made, as long as nobody can tell: reads, the
attributes, the offset and the closing are answered here. The number that it gets follows from those before
(`known_numbers`). Before a call goes to the session that could see the descriptor, or get its number, the session
opens the file after all (`make`), as it was, by a descriptor of its own.

    known    told with an open, until `Revoked`, and for a second after the session's last result
    unmade   descriptors that the program has, and the session does not
    local    of those, the ones that the program reads itself (`local_files`)
    own      those that it opens and closes itself, too (`own_opens`): `catch_up` before who looks at *unmade*

`LastingCalls` answers calls of the first process by their arguments alone.

Not trusted: the server. What it says reaches a program only as the answer of a call that offered room.
Thread rules: the host's thread.
"""

import collections
import errno
import time
from collections.abc import Callable, Iterable

from ptserver.hosts.direct_calls import names
from ptserver.hosts.known_file import FRESH_SECONDS, KnownFile
from ptserver.hosts.known_folders import is_lasting
from ptserver.hosts.known_numbers import KnownNumbers
from ptserver.hosts.local_files import LocalFiles
from ptserver.hosts.own_opens import OwnOpens
from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import Ahead, Message, Reopened, Revoked
from stepping.direct_opens import DirectOpens
from stepping.errors import MemoryFaultError
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS, Arch
from stepping.tracee_memory import TraceeMemory

Handler = Callable[[Notification, TraceeMemory], tuple[int, int] | None]

_INT = 0xFFFFFFFF
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_FDCWD = -100 & _INT
_EPOLL_CTL_ADD = 1
_PATH_MAX = 4096
#: More than a session knows at a time.
_MAX_FILES = 1024
#: At how many numbers a file is put besides the one that an open gets.
_LAID_AT_ONCE = 8
#: Calls that see no descriptor but those that they name, and take no number.
_SEES_NAMED_ONLY = frozenset(
    "read write writev sendto recvfrom epoll_ctl epoll_wait epoll_pwait epoll_pwait2 fstat lseek pread64 pwrite64"
    " getsockopt setsockopt getsockname getpeername shutdown listen fsync fdatasync sendfile".split()
)


class KnownLasting:
    """post: sends what nobody waits for; made: hears of each descriptor that the session has from then on.

    unmade: the file's number by descriptor.
    """

    def __init__(self, post: Callable[[Message], None], made: Callable[[int], None]) -> None:
        self._post = post
        self._made = made
        self._files: dict[bytes, tuple[int, Ahead]] = {}  # with the flags of the open, by path
        self._paths: dict[int, bytes] = {}
        self._heard = 0.0
        self.unmade: dict[int, int] = {}
        self.local: LocalFiles | None = None
        self.own: OwnOpens | None = None

    @property
    def since(self) -> float:
        """When what is known was so, by time.monotonic()."""
        return self._heard

    def heard(self) -> None:
        """Hear that the session has said what it says after `Revoked`."""
        self._heard = time.monotonic()

    def told(self, folder: int, path: bytes, how: int, ahead: Ahead) -> None:
        """Hear of a file that was opened by *path*."""
        if is_lasting(folder, path) and ahead.end and len(self._files) < _MAX_FILES:
            if self.own is not None and path in self._files:
                self.own.forget(self._files[path][1].lasting)
            self._files[path] = how, ahead
            self._paths[ahead.lasting] = path

    def find(self, folder: int, path: bytes) -> tuple[int, Ahead] | None:
        """Return with which flags a file may be opened by *path*, and how it is, if that is known."""
        found = self._files.get(path)
        if found is None or not is_lasting(folder, path) or time.monotonic() - self._heard > FRESH_SECONDS:
            return None
        return found

    def attributes(self, folder: int, path: bytes, flags: int) -> bytes | None:
        """Return what newfstatat gives for a file that is known; no link leads to it."""
        if flags & ~_AT_SYMLINK_NOFOLLOW:
            return None
        found = self.find(folder, path)
        return None if found is None else found[1].stat

    def catch_up(self) -> None:
        """Know what the program has opened and closed itself; it does no more until it is let again."""
        if self.own is not None:
            self.own.hear()

    def catch_up_for(self, call: PendingCall) -> None:
        """Do that if it matters to *call* of the first process."""
        assert call.row is not None
        if self.own is None:
            return
        if call.row.name not in _SEES_NAMED_ONLY or any(self.own.concerns(fd) for fd in names(call)):
            self.own.hear()

    def forget(self) -> None:
        """Know of none any more, though the session may still watch them."""
        self._files.clear()
        self._paths.clear()
        if self.own is not None:
            self.own.forget_all()

    def revoked(self, message: Revoked) -> None:
        """Hear that files are not known any more; what is open of them has been made."""
        for number in message.files:
            path = self._paths.pop(number, None)
            if path is not None and self._files[path][1].lasting == number:
                del self._files[path]
            if self.local is not None:
                self.local.forget(number)
            if self.own is not None:
                self.own.forget(number)
            self._post(Reopened(number, -1))

    def make(self, fds: Iterable[int]) -> None:
        """Have the session open what the program has open as *fds*, if it has not."""
        for fd in fds:
            number = self.unmade.pop(fd, 0)
            if number:
                self.end_local(fd)
                self._post(Reopened(number, fd))
                self._made(fd)

    def make_all(self) -> None:
        """Have it open all that the program has open."""
        self.catch_up()
        self.make(list(self.unmade))

    def end_local(self, fd: int) -> None:
        """Have the offset of a descriptor here, if the program moves it itself."""
        if self.local is not None:
            self.local.end(fd)

    def make_for(self, call: PendingCall) -> None:
        """Have the session open what *call*, which goes to it, may see."""
        assert call.row is not None
        if call.row.name not in _SEES_NAMED_ONLY:
            self.make_all()
        elif self.unmade:
            self.make(list(names(call)))


class LastingCalls:
    """The calls that are made most on lasting files.

    files: what is known of descriptors; moved: those whose offset the session does not know.
    """

    def __init__(
        self,
        lasting: KnownLasting,
        files: dict[int, KnownFile],
        moved: set[int],
        numbers: KnownNumbers,
        arch: Arch,
    ) -> None:
        self.lasting = lasting
        self._files = files
        self._moved = moved
        self._numbers = numbers
        handlers = {
            "newfstatat": self._newfstatat,
            "openat": self._openat,
            "epoll_ctl": self._epoll_ctl,
            "fcntl": self._fcntl,
            "lseek": self._lseek,
            "fstat": self._fstat,
            "read": self._read,
            "close": self._close,
        }
        self._handlers: dict[int, Handler] = {}
        self._handlers |= {SYSCALLS[name].numbers[arch]: handler for name, handler in handlers.items()}
        self._numbering = frozenset(SYSCALLS[name].numbers[arch] for name in ("openat", "close"))
        self._epoll_ctl_number = SYSCALLS["epoll_ctl"].numbers[arch]

    def let_program(
        self,
        pid: int,
        local: LocalFiles,
        opens: DirectOpens,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        """Have the process *pid* read files that last itself by *local*, and open and close them by *opens*.

        later: calls back in so many seconds.
        """
        lasting = self.lasting
        lasting.local = local
        lasting.own = OwnOpens(
            pid, opens, local, self._numbers, self._files, lasting.unmade, lambda: lasting.since, later
        )

    def quick(self, notification: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        """Return the value and errno of a call that is made here, or None if nothing has happened."""
        handler = self._handlers.get(notification.nr)
        if handler is None:
            return None
        own = self.lasting.own
        if own is None:
            return self._make(handler, notification, memory)
        if (
            notification.nr in self._numbering
            or own.concerns(notification.a0 & _INT)
            or (notification.nr == self._epoll_ctl_number and own.concerns(notification.a2 & _INT))
        ):
            own.hear()
        answer = self._make(handler, notification, memory)
        if answer is not None:
            own.let()
        return answer

    def _make(
        self, handler: Handler, notification: Notification, memory: TraceeMemory
    ) -> tuple[int, int] | None:
        try:
            return handler(notification, memory)
        except (MemoryFaultError, ValueError):
            return None

    def knows(self, folder: int, path: bytes, how: int) -> bool:
        """Whether what an openat is about is known."""
        found = self.lasting.find(folder, path)
        return found is not None and found[0] == how & _INT

    def open(self, folder: int, path: bytes, how: int) -> int | None:
        """Open a file, if it is known and which number it gets; return that."""
        self.lasting.catch_up()
        number = self._numbers.next
        found = self.lasting.find(folder, path) if number is not None else None
        if found is None or found[0] != how & _INT or number is None:
            return None
        ahead = found[1]
        self._numbers.opened_next()
        self.lasting.unmade[number] = ahead.lasting
        self._files[number] = KnownFile(ahead, since=self.lasting.since)
        return number

    def close(self, fd: int) -> bool:
        """Close a descriptor that the session does not have; return whether it is one."""
        if self.lasting.unmade.pop(fd, None) is None:
            return False
        if self.lasting.local is not None:
            self.lasting.local.closed(fd)
        del self._files[fd]
        self._numbers.closed(fd)
        return True

    def look(self, fd: int, size: int) -> bytes | None:
        """Return what a read of *fd*, of any file, gives; None if that is not known."""
        self.lasting.end_local(fd)
        file = self._files.get(fd)
        return None if file is None or file.folder else file.look(file.position, size)

    def move(self, fd: int, count: int) -> None:
        """Note that so much was read of what `look` has returned."""
        self._files[fd].position += count
        if fd not in self.lasting.unmade:
            self._moved.add(fd)

    def _newfstatat(self, call: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        path = memory.read_string(call.a1, _PATH_MAX)
        found = self.lasting.attributes(call.a0, path, call.a3 & _INT)
        if found is None:
            return None
        memory.write(call.a2, found)
        self._learn(call.a0, path, call.a1, call.a2)
        return 0, 0

    def _learn(self, folder: int, path: bytes, *pointers: int) -> None:
        if self.lasting.own is not None and folder & _INT == _AT_FDCWD:
            found = self.lasting.find(folder, path)
            if found is not None:
                self.lasting.own.learn(path, *found, *pointers)

    def _openat(self, call: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        path = memory.read_string(call.a1, _PATH_MAX)
        number = self.open(call.a0, path, call.a2)
        if number is None:
            return None
        local, file = self.lasting.local, self._files[number]
        if local is not None and local.open(call.id, number, file):
            local.lay(call.id, self._numbers.free()[0][:_LAID_AT_ONCE], file)
        self._learn(call.a0, path, call.a1)
        return number, 0

    def _epoll_ctl(self, call: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        is_add = call.a1 & _INT == _EPOLL_CTL_ADD
        return (0, errno.EPERM) if is_add and call.a2 & _INT in self.lasting.unmade else None

    def _fcntl(self, call: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        file = self._unmade(call.a0)
        value = None if file is None else file.control(call.a1 & _INT, call.a2)
        return None if value is None else (value, 0)

    def _lseek(self, call: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        file = self._moving(call.a0)
        position = None if file is None else file.seek(call.a1, call.a2 & _INT)
        return None if position is None else (position, 0)

    def _fstat(self, call: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        file = self._unmade(call.a0)
        if file is None or not file.is_fresh:
            return None
        memory.write(call.a1, file.stat)
        return 0, 0

    def _read(self, call: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        file = self._moving(call.a0)
        data = file.look(file.position, call.a2) if file is not None and call.a2 else None
        if file is None or data is None:
            return None
        memory.write(call.a1, data)
        file.position += len(data)
        return len(data), 0

    def _close(self, call: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        return (0, 0) if self.close(call.a0 & _INT) else None

    def _moving(self, fd: int) -> KnownFile | None:
        self.lasting.end_local(fd & _INT)
        return self._unmade(fd)

    def _unmade(self, fd: int) -> KnownFile | None:
        return self._files[fd & _INT] if fd & _INT in self.lasting.unmade else None


class LastingOpens:
    """Opens of lasting files that wait until it is known which number they get.

    That is so while nothing is under way but such opens, which the session makes; so what is opened by many threads
    at a time comes to be opened here. answer: lets a call return; make: has the session make one.
    """

    def __init__(
        self,
        calls: LastingCalls,
        numbers: KnownNumbers,
        answer: Callable[[PendingCall, int, int, dict[int, bytes]], None],
        make: Callable[[PendingCall], None],
    ) -> None:
        self._calls = calls
        self._numbers = numbers
        self._answer = answer
        self._make = make
        self._waiting: collections.deque[PendingCall] = collections.deque()
        self._made: set[int] = set()

    def serve(self, call: PendingCall) -> bool:
        """Answer an openat, now or later, or return False: it is to be made."""
        folder, how, path = call.args[0], call.args[2] & _INT, call.gathered.ins.get(1, b"")
        if not self._calls.knows(folder, path, how):
            return False
        if self._waiting:
            self._waiting.append(call)
        elif not self._open(call):
            if not self._is_soon_known():
                self._made.add(call.id)
                return False
            self._waiting.append(call)
        return True

    def heard(self) -> None:
        """Hear that the session has made something; go on."""
        self._calls.lasting.heard()
        self._made &= self._numbers.under_way
        while self._waiting:
            call = self._waiting[0]
            if not self._open(call):
                if self._is_soon_known():
                    return
                self._made.add(call.id)
                self._make(call)
            self._waiting.popleft()

    def abandon(self, call: PendingCall) -> bool:
        """Forget *call*, which does not wait any more; return whether it did here."""
        if call not in self._waiting:
            return False
        self._waiting.remove(call)
        return True

    def forget(self) -> None:
        """Have the session make all that wait."""
        while self._waiting:
            self._make(self._waiting.popleft())

    def _open(self, call: PendingCall) -> bool:
        number = self._calls.open(call.args[0], call.gathered.ins.get(1, b""), call.args[2])
        if number is not None:
            self._answer(call, number, 0, {})
        return number is not None

    def _is_soon_known(self) -> bool:
        return bool(self._made) and self._made >= self._numbers.under_way
