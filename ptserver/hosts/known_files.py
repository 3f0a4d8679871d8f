"""The host's half of working ahead: answers calls on what is known of files and folders that were opened for reading.

docs/latency.md states the rules. In short: `Ahead` messages and reads ahead say how a file was a moment ago. That is
used for at most a second, and only until the program makes a call by which something could change, or learns
something by which it could know of a change. So a program that compares what it is told, by whatever way through its
server, finds no contradiction. `known_calls` says which calls these are.

A call that is answered here but changes the state of the session (the offset of a descriptor, its flags, its closing)
is sent along as *posted*, before any other call: the session makes it in its turn and answers nothing.

Not trusted: the server. What it says reaches a program only as the answer of a call that offered room.
Thread rules: the host's thread.
"""

import collections
import errno
import os
from collections.abc import Callable, Collection

from ptserver.hosts import known_calls
from ptserver.hosts.known_file import KnownFile
from ptserver.hosts.known_folders import KnownFolders
from ptserver.hosts.known_lasting import KnownLasting, LastingCalls, LastingOpens
from ptserver.hosts.known_numbers import KnownNumbers
from ptserver.hosts.known_pipes import KnownPipes
from ptserver.hosts.known_streams import KnownStreams
from ptserver.hosts.known_upcoming import KnownUpcoming
from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import Ahead, DescriptorState, Message, Result, Revoked, Signal, Syscall, Upcoming
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS, Arch
from stepping.tracee_memory import TraceeMemory

Answer = Callable[[PendingCall, int, int, dict[int, bytes]], None]

_F_SETFL = 4
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
        self._numbers = KnownNumbers(known_calls.KEEPS_NUMBERS)
        self._upcoming = KnownUpcoming(post)
        self._pipes = KnownPipes(self._post, answer)
        self.lasting = KnownLasting(post, self._was_made)
        self.lasting_calls = LastingCalls(self.lasting, self._files, self._moved, self._numbers, arch)
        self._opening = LastingOpens(self.lasting_calls, self._numbers, answer, self._pass_on)
        self._handlers: dict[str, Callable[[PendingCall], bool]] = {
            "openat": self._openat,
            "read": self._read,
            "pread64": self._pread,
            "lseek": self._lseek,
            "fstat": self._tell_attributes,
            "newfstatat": self._newfstatat,
            "getdents64": self._getdents,
            "fcntl": self._fcntl,
            "epoll_ctl": self._epoll_ctl,
            "close": self._close,
            **dict.fromkeys(("write", "writev", "sendto"), self._write),
        }

    def serve(self, call: PendingCall) -> bool:
        """Answer *call*, now or later, and return True; or prepare for its being sent, and return False."""
        assert call.row is not None
        name = call.row.name
        if name in known_calls.REPLACES_DESCRIPTORS:
            self._streams.clear()
        if call.process.pid == self._pid:
            handler = self._handlers.get(name)
            if handler is not None and handler(call):
                return True
            self._prepare(call)
            if known_calls.is_quiet(call, self._streams) or name in known_calls.RECEIVING:
                self.of_streams.made(call, shares=False)
                return False
            if name in known_calls.CHANGING:
                self.of_streams.made(call, shares=False)
                self._changes(name)
                return False
        self.of_streams.made(call, shares=True)
        self._pipes.shares(name, call, own=call.process.pid == self._pid)
        self._forget_all()
        return False

    def _prepare(self, call: PendingCall) -> None:
        """Have the session know what *call* may see, which goes to it."""
        assert call.row is not None
        self.lasting.make_for(call)
        if call.row.name == "sendfile":  # which moves the offset of its second
            self._untrack(call.args[1] & 0xFFFFFFFF)
        self._tell_positions()
        self._numbers.asked(call.id, call.row.name)

    def _pass_on(self, call: PendingCall) -> None:
        """Have the session make an open that has waited."""
        self._prepare(call)
        self._make(call)

    def quick(self, notification: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        """Do what `serve` does, for the most frequent calls, by their arguments alone.

        Return the value and errno of a call of the process *pid*, or None: nothing has happened, it is to be served.
        """
        answer = self.lasting_calls.quick(notification, memory)
        if answer is None and notification.nr == self._newfstatat_number:
            answer = self._folders.quick(notification, memory)
            if answer is not None:
                self._expect()
        return answer or self.of_streams.quick(notification, memory)

    def take(self, message: Message) -> bool:
        """Remember what *message* tells; return whether that is all that it is for."""
        if type(message) is Ahead:
            self._aheads[message.id] = message
        elif type(message) is DescriptorState:
            self.of_streams.take(message)
        elif type(message) is Upcoming:
            self._upcoming.take(message)
        elif type(message) is Revoked:
            self._revoke(message)
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
        brings_word = known_calls.tells_of_others(name, result)
        is_known = known_calls.is_known(call, self._streams)
        shares = call.process.pid != self._pid or not is_known
        value = -1 if result.errno else result.value
        self.of_streams.heard(call, value, shares=shares, brings_word=brings_word)
        self._upcoming.heard(result.id)
        if call.process.pid == self._pid:
            room = 0 if ahead is None else ahead.room
            self._numbers.heard(result.id, name, call.args[0] & 0xFFFFFFFF, value, room)
        if shares:
            self._pipes.shares(name, call, own=call.process.pid == self._pid)
            self._forget_all()
        elif known_calls.is_quiet(call, self._streams):
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
        elif name in known_calls.CHANGING or brings_word:
            self._changes(name)
        if not result.errno:
            if not shares:
                self._pipes.follow(name, call, result)
            if name in known_calls.MAKES_STREAM:
                self._streams.add(result.value)
        self._opening.heard()

    def heard_late(self, result: Result) -> None:
        """Consider the result of a call that nobody waits for any more; it may have changed something."""
        self._aheads.pop(result.id, None)
        self.of_streams.heard_late(result.id)
        self._numbers.heard_late(result.id)
        self.forget()
        self._opening.heard()

    def abandon(self, call: PendingCall) -> bool:
        """Forget *call*, which does not wait any more; return whether it did here."""
        for fd, waiting in self._waiting.items():
            kept = collections.deque(entry for entry in waiting if entry[0] is not call)
            if len(kept) != len(waiting):
                self._waiting[fd] = kept
                return True
        return self._opening.abandon(call)

    def forget(self) -> None:
        """Know no contents any more: the host itself makes a call."""
        self.lasting.make_all()
        self._tell_positions()
        self._numbers.forget()
        self.forget_contents()

    def close_direct(self, call: PendingCall) -> None:
        """Have the session close a direct socket, which the program does itself."""
        self._streams.discard(call.args[0] & 0xFFFFFFFF)
        self.of_streams.made(call, shares=False)
        self._numbers.closed(call.args[0] & 0xFFFFFFFF)
        self._post("close", (call.args[0] & 0xFFFFFFFF, 0, 0, 0, 0, 0))

    def _changes(self, name: str) -> None:
        self.forget_contents()
        if name in known_calls.LEADS_ELSEWHERE:
            self.lasting.forget()

    def forget_contents(self) -> None:
        """Know only descriptors any more, their offsets, and what lasts."""
        self._folders.forget()
        self._upcoming.forget()
        for file in self._files.values():
            if not file.lasting:
                file.forget_all()
        for fd, waiting in [*self._waiting.items()]:
            if waiting:
                self._read_ahead(fd, self._files[fd], waiting[0][1], urgent=True)

    def _forget_all(self) -> None:
        """Know nothing any more; reads that wait are made as they are."""
        self.lasting.make_all()
        self._opening.forget()
        self._tell_positions()
        self._folders.forget()
        self._upcoming.forget()
        self._numbers.forget()
        self.lasting.forget()
        for fd in [*self._files]:
            self._untrack(fd)

    # What is known.

    def _open(self, call: PendingCall, fd: int, ahead: Ahead) -> None:
        self._files[fd] = KnownFile(ahead)
        folder, path = call.args[0], call.gathered.ins.get(1, b"")
        if ahead.lasting:
            self.lasting.told(folder, path, call.args[2] & 0xFFFFFFFF, ahead)
        if ahead.names:
            self._folders.opened(folder, path, fd, ahead)

    def _revoke(self, message: Revoked) -> None:
        """Forget files that may have changed."""
        self.lasting.catch_up()
        gone = set(message.files)
        for call_id in [call_id for call_id, ahead in self._aheads.items() if ahead.lasting in gone]:
            del self._aheads[call_id]
        for fd, file in self._files.items():
            if file.lasting in gone:
                self.lasting.make((fd,))
                file.lasting = 0
                file.forget_all()
        self.lasting.revoked(message)

    def _untrack(self, fd: int) -> None:
        """Know nothing of a descriptor any more, if anything is known."""
        file = self._files.pop(fd, None)
        if file is None:
            return
        self._tell_position(fd, file)
        self._folders.closed(fd)
        self._given_up.update(call_id for call_id, of in self._reads.items() if of == fd)
        self._reads = {call_id: of for call_id, of in self._reads.items() if of != fd}
        for call, _ in self._waiting.pop(fd, ()):
            self._make(call)

    def _tell_positions(self) -> None:
        for fd in self._moved - self.lasting.unmade.keys():
            self._moved.discard(fd)
            file = self._files.get(fd)
            if file is not None:
                self._tell_position(fd, file)

    def _was_made(self, fd: int) -> None:
        """Have the session know the state of a descriptor that it has from now on."""
        self._moved.add(fd)
        self._tell_flags(fd, self._files[fd])

    def _tell_flags(self, fd: int, file: KnownFile) -> None:
        if file.flags != file.told_flags:
            file.told_flags = file.flags
            self._post("fcntl", (fd, _F_SETFL, file.flags, 0, 0, 0))

    def _tell_position(self, fd: int, file: KnownFile) -> None:
        if file.position != file.told_position:
            self.lasting.make((fd,))
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
        if self._opening.serve(call):
            return True
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
            self.lasting.make((fd,))
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
        if file is None or file.folder:
            return False
        position = file.seek(call.args[1], call.args[2] & 0xFFFFFFFF)
        if position is None:
            return False
        self._moved.add(fd)
        self._answer(call, position, 0, {})
        return True

    def _tell_attributes(self, call: PendingCall, where: int = 1) -> bool:
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
        asked = args[0], call.gathered.ins.get(1, b""), args[3] & 0xFFFFFFFF
        found = self.lasting.attributes(*asked) or self._folders.attributes(*asked)
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
        value = file.control(command, call.args[2])
        if value is None:
            return False
        if fd not in self.lasting.unmade:
            self._tell_flags(fd, file)
        self._answer(call, value, 0, {})
        return True

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
        if self.lasting_calls.close(fd):
            self._answer(call, 0, 0, {})
            return True
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
