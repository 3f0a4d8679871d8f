"""The host's half of working ahead: answers calls on what is known of files and folders that were opened for reading.

docs/latency.md states the rules. In short: `Ahead` messages and reads ahead say how a file was a moment ago. That is
used for at most a second, and only until the program makes a call by which something could change, or learns
something by which it could know of a change. So a program that compares what it is told, by whatever way through its
server, finds no contradiction. Four kinds of calls are distinguished:

    quiet        change nothing, and tell of nothing else       everything stays known
    receiving    bring word of others when they return          contents are forgotten then
    changing     change files, but no offset of a descriptor    contents are forgotten at once, and when they return
    all others                                                  descriptors are forgotten too

A call that is answered here but changes the state of the session (the offset of a descriptor, its flags, its closing)
is sent along as *posted*, before any other call: the session makes it in its turn and answers nothing.

Not trusted: the server. What it says reaches a program only as the answer of a call that offered room.
Thread rules: the host's thread.
"""

import collections
import errno
import os
from collections.abc import Callable, Collection

from ptserver.hosts.known_file import KnownFile
from ptserver.hosts.known_folders import KnownFolders
from ptserver.hosts.known_numbers import KnownNumbers
from ptserver.hosts.known_pipes import KnownPipes
from ptserver.hosts.known_streams import KnownStreams
from ptserver.hosts.known_upcoming import KnownUpcoming
from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import Ahead, DescriptorState, Message, Result, Signal, Syscall, Upcoming
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS, Arch
from stepping.tracee_memory import TraceeMemory

Answer = Callable[[PendingCall, int, int, dict[int, bytes]], None]

_QUIET = frozenset(
    "newfstatat fstat stat lstat statx readlinkat readlink access faccessat faccessat2 getdents64 lseek pread64 close"
    " getcwd uname getuid geteuid getgid getegid getgroups getrlimit prlimit64 umask epoll_create1 epoll_ctl"
    " statfs fstatfs getrandom socket listen setsockopt getsockname getpeername shutdown pipe2 eventfd2"
    " timerfd_create timerfd_settime inotify_init1".split()
)
_POLLING = frozenset("epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6".split())
_RECEIVING = _POLLING | frozenset(
    "read recvfrom recvmsg recvmmsg accept accept4 wait4 waitid getsockopt connect".split()
)
_CHANGING = frozenset(
    "write pwrite64 writev pwritev pwritev2 openat open creat mkdirat mkdir unlinkat unlink rmdir renameat2 renameat"
    " rename linkat link symlinkat symlink fchmodat fchmod chmod fchownat fchown chown lchown utimensat ftruncate"
    " truncate fallocate fsync fdatasync sync setxattr fsetxattr lsetxattr removexattr chdir fchdir mknodat flock"
    " bind sendto inotify_add_watch inotify_rm_watch".split()
)
#: Calls of these that take or give numbers of descriptors, or change how many there are.
_NUMBERING = frozenset(
    "openat open creat close socket accept accept4 recvmsg recvmmsg epoll_create1 pipe2 eventfd2 timerfd_create"
    " inotify_init1 prlimit64".split()
)
_KEEPS_NUMBERS = (_QUIET | _RECEIVING | _CHANGING) - _NUMBERING
_REPLACES_DESCRIPTORS = frozenset({"dup2", "dup3", "close_range"})
#: Calls that return a descriptor of no file, and those that are about no file if they are about such a descriptor.
_MAKES_STREAM = frozenset({"socket", "accept", "accept4", "eventfd2", "epoll_create1"})
_WRITES_STREAM = frozenset({"write", "writev", "sendto", "ioctl"})
_NOTHING_CAME = frozenset({errno.EAGAIN, errno.EINTR, errno.EINPROGRESS})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL = 1, 2, 3, 4
_QUIET_FCNTL = frozenset({_F_GETFD, _F_SETFD, _F_GETFL})
_SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC | os.O_DIRECT | os.O_NOATIME
_EPOLL_CTL_ADD = 1
_AT_EMPTY_PATH = 0x1000


class KnownFiles:
    """Knows the descriptors of the process *pid*, which the session knows as *told_pid*.

    streams: those of its standard streams that are no files.
    send: queues a message; post: one that nobody waits for; answer: lets a call return; make: sends a call as it is;
    next_id: gives numbers for calls; expect: hears that the next call is about to come.
    """

    def __init__(
        self,
        pid: int,
        told_pid: int,
        streams: Collection[int],
        send: Callable[[Message], None],
        post: Callable[[Message], None],
        answer: Answer,
        make: Callable[[PendingCall], None],
        next_id: Callable[[], int],
        expect: Callable[[], None],
        arch: Arch,
    ) -> None:
        self._pid = pid
        self._told_pid = told_pid
        self._send = send
        self._send_posted = post
        self._answer = answer
        self._make = make
        self._next_id = next_id
        self._expect = expect
        self._files: dict[int, KnownFile] = {}
        self.of_streams = KnownStreams(self._post_for, answer, arch)
        self._newfstatat_number = SYSCALLS["newfstatat"].numbers[arch]
        self._streams = set(streams)
        self._moved: set[int] = set()  # descriptors whose offset the session does not know
        self._aheads: dict[int, Ahead] = {}
        self._reads: dict[int, int] = {}  # our own calls: id to descriptor
        self._given_up: set[int] = set()  # our own calls whose answers are not wanted any more
        self._waiting: dict[int, collections.deque[tuple[PendingCall, int]]] = {}
        self._folders = KnownFolders()
        self._numbers = KnownNumbers(_KEEPS_NUMBERS)
        self._upcoming = KnownUpcoming(post)
        self._pipes = KnownPipes(self._post, answer)
        self._handlers: dict[str, Callable[[PendingCall], bool]] = {
            "openat": self._openat,
            "read": self._read,
            "pread64": self._pread,
            "lseek": self._lseek,
            "fstat": self._fstat,
            "newfstatat": self._newfstatat,
            "getdents64": self._getdents,
            "fcntl": self._fcntl,
            "epoll_ctl": self._epoll_ctl,
            "close": self._close,
            "write": self._write,
            "writev": self._write,
            "sendto": self._write,
        }

    def serve(self, call: PendingCall) -> bool:
        """Answer *call*, now or later, and return True; or prepare for its being sent, and return False."""
        assert call.row is not None
        name = call.row.name
        if name in _REPLACES_DESCRIPTORS:
            self._streams.clear()
        if call.process.pid == self._pid:
            handler = self._handlers.get(name)
            if handler is not None and handler(call):
                return True
            self._tell_positions()
            self._numbers.asked(call.id, name)
            if self._is_quiet(name, call) or name in _RECEIVING:
                self.of_streams.made(call, shares=False)
                return False
            if name in _CHANGING:
                self.of_streams.made(call, shares=False)
                self.forget_contents()
                return False
        self.of_streams.made(call, shares=True)
        self._pipes.shares(name, call, own=call.process.pid == self._pid)
        self._forget_all()
        return False

    def quick(self, notification: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        """Do what `serve` does, for the most frequent calls, by their arguments alone.

        Return the value and errno of a call of the process *pid*, or None: nothing has happened, it is to be served.
        """
        if notification.nr == self._newfstatat_number:
            answer = self._folders.quick(notification, memory)
            if answer is not None:
                self._expect()
            return answer
        return self.of_streams.quick(notification, memory)

    def take(self, message: Message) -> bool:
        """Remember what *message* tells; return whether that is all that it is for."""
        if type(message) is Ahead:
            self._aheads[message.id] = message
        elif type(message) is DescriptorState:
            self.of_streams.take(message)
        elif type(message) is Upcoming:
            self._upcoming.take(message)
        else:
            if type(message) is Signal:
                self.of_streams.heard_word()
            return False
        return True

    def take_own(self, result: Result) -> bool:
        """Take the result of a call of our own; return whether it is one."""
        self._upcoming.heard(result.id)
        fd = self._reads.pop(result.id, None)
        if fd is None:
            known = result.id in self._given_up
            self._given_up.discard(result.id)
            return known
        file = self._files.get(fd)
        if file is not None:
            if result.errno:
                self._untrack(fd)
            elif file.arrived(result.id, result.outs.get(1, b"")):
                self._serve_waiting(fd, file)
        return True

    def heard(self, call: PendingCall, result: Result) -> None:
        """Consider the result of a call of the program's, which is about to return."""
        assert call.row is not None
        name = call.row.name
        ahead = self._aheads.pop(result.id, None)
        brings_word = (
            name in _RECEIVING
            and result.errno not in _NOTHING_CAME
            and (bool(result.value) or name not in _POLLING)
        )
        is_known = name in _CHANGING or name in _RECEIVING or self._is_quiet(name, call)
        shares = call.process.pid != self._pid or not is_known
        value = -1 if result.errno else result.value
        self.of_streams.heard(call, value, shares=shares, brings_word=brings_word)
        self._upcoming.heard(result.id)
        if call.process.pid == self._pid:
            self._numbers.heard(result.id, name, call.args[0] & 0xFFFFFFFF, value)
        if shares:
            self._pipes.shares(name, call, own=call.process.pid == self._pid)
            self._forget_all()
        elif self._is_quiet(name, call):
            if ahead is not None and not result.errno:
                if name == "newfstatat":
                    self._folders.looked_at(call.args[0], call.gathered.ins.get(1, b""), ahead)
                else:
                    self._open(call, result.value, ahead)
            elif name == "lseek" and not result.errno:
                file = self._files.get(call.args[0] & 0xFFFFFFFF)
                if file is not None:
                    file.move(result.value)
                    file.told_position = result.value
        elif name in _CHANGING or brings_word:
            self.forget_contents()
        if not result.errno:
            if not shares:
                self._pipes.follow(name, call, result)
            if name in _MAKES_STREAM:
                self._streams.add(result.value)

    def heard_late(self, result: Result) -> None:
        """Consider the result of a call that nobody waits for any more; it may have changed something."""
        self._aheads.pop(result.id, None)
        self.of_streams.heard_late(result.id)
        self._numbers.heard_late(result.id)
        self.forget()

    def abandon(self, call: PendingCall) -> bool:
        """Forget *call*, which does not wait any more; return whether it did here."""
        for fd, waiting in self._waiting.items():
            kept = collections.deque(entry for entry in waiting if entry[0] is not call)
            if len(kept) != len(waiting):
                self._waiting[fd] = kept
                return True
        return False

    def forget(self) -> None:
        """Know no contents any more: the host itself makes a call."""
        self._tell_positions()
        self._numbers.forget()
        self.forget_contents()

    def close_direct(self, call: PendingCall) -> None:
        """Have the session close a direct socket, which the program does itself."""
        self._streams.discard(call.args[0] & 0xFFFFFFFF)
        self.of_streams.made(call, shares=False)
        self._post("close", (call.args[0] & 0xFFFFFFFF, 0, 0, 0, 0, 0))

    def forget_contents(self) -> None:
        """Know only descriptors any more, and their offsets."""
        self._folders.forget()
        self._upcoming.forget()
        for file in self._files.values():
            file.forget_all()
        for fd in [*self._waiting]:
            waiting = self._waiting[fd]
            if waiting:
                self._read_ahead(fd, self._files[fd], waiting[0][1], urgent=True)

    def _forget_all(self) -> None:
        """Know nothing any more; reads that wait are made as they are."""
        self._tell_positions()
        self._folders.forget()
        self._upcoming.forget()
        self._numbers.forget()
        for fd in [*self._files]:
            self._untrack(fd)

    # What is known.

    def _open(self, call: PendingCall, fd: int, ahead: Ahead) -> None:
        file = self._files[fd] = KnownFile(ahead.flags, ahead.stat, folder=ahead.folder)
        if not ahead.folder:
            file.begin(ahead.data, end=ahead.end)
            return
        position = 0
        for listed in ahead.listing:
            file.listing[position] = (listed.size, listed.data, listed.position)
            position = listed.position
        if ahead.names:
            self._folders.opened(call.args[0], call.gathered.ins.get(1, b""), fd, ahead)

    def _untrack(self, fd: int) -> None:
        """Know nothing of a descriptor any more."""
        file = self._files.pop(fd)
        self._tell_position(fd, file)
        self._folders.closed(fd)
        gone = [call_id for call_id, of in self._reads.items() if of == fd]
        for call_id in gone:
            del self._reads[call_id]
        self._given_up.update(gone)
        for call, _ in self._waiting.pop(fd, ()):
            self._make(call)

    def _is_quiet(self, name: str, call: PendingCall) -> bool:
        if name in _QUIET:
            return True
        if name == "openat":
            return not call.args[2] & _WRITING
        if name in _WRITES_STREAM:
            return call.args[0] & 0xFFFFFFFF in self._streams
        return name == "fcntl" and call.args[1] & 0xFFFFFFFF in _QUIET_FCNTL

    def _tell_positions(self) -> None:
        for fd in self._moved:
            file = self._files.get(fd)
            if file is not None:
                self._tell_position(fd, file)
        self._moved.clear()

    def _tell_position(self, fd: int, file: KnownFile) -> None:
        if file.position != file.told_position:
            file.told_position = file.position
            self._post("lseek", (fd, file.position, os.SEEK_SET, 0, 0, 0))

    def _post_for(
        self, tid: int, name: str, args: tuple[int, int, int, int, int, int], ins: dict[int, bytes]
    ) -> None:
        self._send_posted(Syscall(self._next_id(), tid, self._told_pid, name, args, ins, posted=True))

    def _post(self, name: str, args: tuple[int, int, int, int, int, int]) -> None:
        self._send_posted(Syscall(self._next_id(), self._pid, self._told_pid, name, args, posted=True))

    # The calls that can be answered.

    def _openat(self, call: PendingCall) -> bool:
        number = self._numbers.next
        ahead = self._upcoming.open(call, number)
        if ahead is None or number is None:
            return False
        self._numbers.opened_next()
        self._open(call, number, ahead)
        self._answer(call, number, 0, {})
        return True

    def _read(self, call: PendingCall) -> bool:
        fd = call.args[0] & 0xFFFFFFFF
        file = self._files.get(fd)
        size = call.gathered.outs.get(1, 0)
        if file is None:
            return self.of_streams.read(call)
        if file.folder or not size:
            return False
        waiting = self._waiting.get(fd)
        self._moved.add(fd)
        data = file.take(size) if not waiting else None
        if data is None:
            self._waiting.setdefault(fd, collections.deque()).append((call, size))
        else:
            self._answer(call, len(data), 0, {1: data} if data else {})
        self._read_ahead(fd, file, size, urgent=data is None)
        return True

    def _serve_waiting(self, fd: int, file: KnownFile) -> None:
        waiting = self._waiting.get(fd)
        while waiting:
            call, size = waiting[0]
            data = file.take(size)
            if data is None:
                self._read_ahead(fd, file, size, urgent=True)
                return
            waiting.popleft()
            self._answer(call, len(data), 0, {1: data} if data else {})

    def _read_ahead(self, fd: int, file: KnownFile, size: int, *, urgent: bool) -> None:
        for offset, piece in file.wanted(size, urgent=urgent):
            call_id = self._next_id()
            self._reads[call_id] = fd
            file.asked(call_id, offset, piece)
            args = (fd, 1, piece, offset, 0, 0)
            self._send(Syscall(call_id, self._pid, self._told_pid, "pread64", args, outs={1: piece}))

    def _write(self, call: PendingCall) -> bool:
        self._pipes.written(call.args[0] & 0xFFFFFFFF)
        if not self.of_streams.write(call):
            return False
        if self.of_streams.writes_file(call.args[0] & 0xFFFFFFFF):
            self.forget_contents()
            self._upcoming.written(self._next_id())
        return True

    def _pread(self, call: PendingCall) -> bool:
        file = self._files.get(call.args[0] & 0xFFFFFFFF)
        size = call.gathered.outs.get(1, 0)
        if file is None or file.folder or not size or call.args[3] >> 63:
            return False
        data = file.look(call.args[3], size)
        if data is None:
            return False
        self._answer(call, len(data), 0, {1: data} if data else {})
        return True

    def _lseek(self, call: PendingCall) -> bool:
        fd = call.args[0] & 0xFFFFFFFF
        file = self._files.get(fd)
        offset, whence = call.args[1], call.args[2] & 0xFFFFFFFF
        if file is None or file.folder or whence not in (os.SEEK_SET, os.SEEK_CUR):
            return False
        offset -= (offset >> 63) << 64
        position = offset if whence == os.SEEK_SET else file.position + offset
        if not 0 <= position < 1 << 40:
            return False
        file.move(position)
        self._moved.add(fd)
        self._answer(call, position, 0, {})
        return True

    def _fstat(self, call: PendingCall) -> bool:
        return self._tell_attributes(call, 1)

    def _tell_attributes(self, call: PendingCall, where: int) -> bool:
        """Answer with the attributes of a descriptor, which argument *where* leads to room for, if they are known."""
        file = self._files.get(call.args[0] & 0xFFFFFFFF)
        if file is None or not file.is_fresh or where not in call.gathered.outs:
            return False
        self._answer(call, 0, 0, {where: file.stat})
        return True

    def _newfstatat(self, call: PendingCall) -> bool:
        args = call.args
        if args[3] & 0xFFFFFFFF == _AT_EMPTY_PATH and call.gathered.ins.get(1) == b"":
            return self._tell_attributes(call, 2)
        found = self._folders.attributes(args[0], call.gathered.ins.get(1, b""), args[3] & 0xFFFFFFFF)
        if found is None or 2 not in call.gathered.outs:
            return False
        self._answer(call, 0, 0, {2: found})
        return True

    def _getdents(self, call: PendingCall) -> bool:
        fd = call.args[0] & 0xFFFFFFFF
        file = self._files.get(fd)
        if file is None or not file.folder:
            return False
        listed = file.listing.pop(file.position, None)
        if listed is None or not file.is_fresh or listed[0] != call.gathered.outs.get(1):
            self._untrack(fd)
            return False
        file.position = listed[2]
        self._moved.add(fd)
        self._answer(call, len(listed[1]), 0, {1: listed[1]} if listed[1] else {})
        return True

    def _fcntl(self, call: PendingCall) -> bool:
        fd, command = call.args[0] & 0xFFFFFFFF, call.args[1] & 0xFFFFFFFF
        file = self._files.get(fd)
        if file is None:
            return self._pipes.control(call)
        if command == _F_GETFL:
            self._answer(call, file.flags, 0, {})
            return True
        changed = (call.args[2] ^ file.flags) & _SETTABLE
        if command == _F_SETFL and not changed & ~os.O_NONBLOCK:
            file.flags ^= changed
            self._post("fcntl", (fd, _F_SETFL, call.args[2], 0, 0, 0))
            self._answer(call, 0, 0, {})
            return True
        return False

    def _epoll_ctl(self, call: PendingCall) -> bool:
        """Refuse to watch a file or folder, as the kernel does; watch a pipe no longer."""
        if self._pipes.unwatch(call):
            return True
        if call.args[1] & 0xFFFFFFFF != _EPOLL_CTL_ADD or call.args[2] & 0xFFFFFFFF not in self._files:
            return False
        self._answer(call, 0, errno.EPERM, {})
        return True

    def _close(self, call: PendingCall) -> bool:
        fd = call.args[0] & 0xFFFFFFFF
        self._streams.discard(fd)
        self._folders.closed(fd)
        if fd in self._files:
            self._files[fd].told_position = self._files[fd].position  # nobody will ask
            self._untrack(fd)
        elif self._pipes.can_close(fd):
            self._pipes.closed(fd)
            self.of_streams.made(call, shares=False)
        else:
            return False
        self._numbers.closed(fd)
        self._post("close", (fd, 0, 0, 0, 0, 0))
        self._answer(call, 0, 0, {})
        return True
