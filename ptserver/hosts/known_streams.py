"""What a host knows of descriptors that its program writes to, and of sockets that it reads from.

A write for which the session has told of room is *posted*: answered here, and sent along as it is. A read of what
has been told of a socket's queue is answered with that, and the call that takes it out of the queue is posted.

    room      is used up by writes, and told anew with the next write that is not posted. That of what is local to
              the server's machine (pipes, terminals, Unix sockets) is forgotten when the program has closed
              something or heard of others, for it may know then that nobody reads any more.
    data      is used only while nobody else can take it: of sockets that this process has made since the last call
              that could share descriptors, and if no other read of theirs was under way when it was told.
    nothing   where nothing is left, a read of a socket that does not block fails with EAGAIN here, for a second, if
              an epoll instance will tell of any change. Word of others ends that, by whatever way but TCP, which
              does not say what comes first on two connections. A program that has made a connection may have sent
              itself something; to it this does not apply.

Not trusted: the server.
Thread rules: the host's thread.
"""

import errno
import os
import time
from collections.abc import Callable

from ptserver.hosts.known_file import FRESH_SECONDS
from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import DescriptorKind, DescriptorState
from stepping.errors import MemoryFaultError
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS, Arch
from stepping.tracee_memory import TraceeMemory

Args = tuple[int, int, int, int, int, int]
Answer = Callable[[PendingCall, int, int, dict[int, bytes]], None]
#: Sends a call that is answered here: for which thread, its name, registers, and the bytes that it reads.
Post = Callable[[int, str, Args, dict[int, bytes]], None]

_MAKES_SOCKET = frozenset({"socket", "accept", "accept4"})
_READS = frozenset({"read", "readv", "recvfrom", "recvmsg", "recvmmsg"})
_PAGE_BYTES = 4096
#: What a socket's buffer takes besides its contents, at most; one in a Unix socket is rounded up to a power of two.
_BUFFER_BYTES = 1024
_SOME_ADDRESS = 1 << 12
_MSG_DONTWAIT, _MSG_TRUNC, _MSG_NOSIGNAL = 0x40, 0x20, 0x4000
_POLLING = frozenset({"epoll_wait", "epoll_pwait", "epoll_pwait2"})
_LOCAL = frozenset({"pipe", "terminal", "unix"})


def room_for(kind: DescriptorKind, size: int) -> int:
    """Return how much of its room a write of *size* bytes takes: the kernel counts pages and whole buffers."""
    if kind == "pipe":
        return size + _PAGE_BYTES - 1 & -_PAGE_BYTES
    if kind == "unix":
        return 2 * size + _BUFFER_BYTES
    return size + _BUFFER_BYTES if kind == "tcp" else size


class _Stream:
    __slots__ = ("data", "kind", "room")

    def __init__(self, kind: DescriptorKind, room: int, data: bytes) -> None:
        self.kind: DescriptorKind = kind
        self.room = room
        self.data = data


class KnownStreams:
    """Knows the descriptors of one process, by what `take` is told."""

    def __init__(self, post: Post, answer: Answer, arch: Arch) -> None:
        self._post = post
        self._answer = answer
        self._read_number = SYSCALLS["read"].numbers[arch]
        self._write_number = SYSCALLS["write"].numbers[arch]
        self._streams: dict[int, _Stream] = {}
        self._own_sockets: dict[int, int] = {}  # how many bytes were taken out of their queues from here
        self._nonblocking: set[int] = set()
        self._connects = False
        self._emptied: dict[int, float] = {}  # since when there is nothing after `data`
        self._reading: dict[int, int] = {}  # reads that the session makes: the call's id to the descriptor
        self._sharing: set[int] = set()  # calls under way that may share descriptors

    def take(self, state: DescriptorState) -> None:
        """Hear how a descriptor is."""
        fd, data = state.fd, state.data
        if state.kind == "epoll":
            self._emptied.clear()
            return
        taken = self._own_sockets.get(fd, -1)
        is_ours = taken >= state.taken and not self._sharing
        if data:
            is_ours = is_ours and not (self._reading and fd in self._reading.values())
            data = data[taken - state.taken :] if is_ours else b""
        if is_ours and state.watched >= 0 and fd in self._nonblocking:
            self._emptied[fd] = time.monotonic()
        else:
            self._emptied.pop(fd, None)
        self._streams[fd] = _Stream(state.kind, state.room, data)

    def writes_file(self, fd: int) -> bool:
        """Whether a write to *fd* may change a file, as far as is known."""
        stream = self._streams.get(fd)
        return stream is None or stream.kind == "file"

    def write(self, call: PendingCall) -> bool:
        """Answer a write, writev or sendto for which there is room; return whether there is."""
        fd = call.args[0] & 0xFFFFFFFF
        stream = self._streams.get(fd)
        if stream is None or not stream.room:
            return False
        data = call.gathered.ins.get(1, b"")
        size = len(data)
        taken = room_for(stream.kind, size)
        assert call.row is not None
        name = call.row.name
        if not size or taken > stream.room or (name == "write" and size != call.args[2]):
            return False
        if name == "sendto" and (call.args[4] or call.args[3] & ~(_MSG_DONTWAIT | _MSG_NOSIGNAL)):
            return False
        stream.room -= taken
        self._post(call.tid, name, call.gathered.args, call.gathered.ins)
        self._answer(call, size, 0, {})
        return True

    def read(self, call: PendingCall) -> bool:
        """Answer a read with what is known to be there; return whether something is."""
        fd = call.args[0] & 0xFFFFFFFF
        stream = self._streams.get(fd)
        size = call.gathered.outs.get(1, 0)
        if stream is None or not size:
            return False
        taken = stream.data[:size]
        if taken:
            self._take(call.tid, fd, stream, len(taken))
            self._answer(call, len(taken), 0, {1: taken})
            return True
        if self._has_nothing(fd):
            self._answer(call, 0, errno.EAGAIN, {})
            return True
        return False

    def quick(self, notification: Notification, memory: TraceeMemory) -> tuple[int, int] | None:
        """Return what a read or write of a TCP socket gives, if that is known, as (value, errno), and make it so.

        This is what `read` and `write` do, for the calls that a server of many connections makes most.
        """
        number, fd, size = notification.nr, notification.a0, notification.a2
        if number not in (self._read_number, self._write_number):
            return None
        stream = self._streams.get(fd)
        if stream is None or stream.kind != "tcp":
            return None
        try:
            if number == self._write_number:
                taken = size + _BUFFER_BYTES
                if not size or taken > stream.room:
                    return None
                data = memory.read(notification.a1, size)
                stream.room -= taken
                self._post(notification.tid, "write", (fd, _SOME_ADDRESS, size, 0, 0, 0), {1: data})
                return size, 0
            data = stream.data[:size]
            if data:
                memory.write(notification.a1, data)
                self._take(notification.tid, fd, stream, len(data))
                return len(data), 0
        except MemoryFaultError:
            return None
        return (0, errno.EAGAIN) if size and self._has_nothing(fd) else None

    def _take(self, tid: int, fd: int, stream: _Stream, size: int) -> None:
        """Take what the program has read out of a socket's queue."""
        stream.data = stream.data[size:]
        self._own_sockets[fd] += size
        flags = _MSG_TRUNC | _MSG_DONTWAIT
        self._post(tid, "recvfrom", (fd, _SOME_ADDRESS, size, flags, 0, 0), {})

    def _has_nothing(self, fd: int) -> bool:
        """Whether a read of *fd* is known to fail with EAGAIN."""
        since = self._emptied.get(fd)
        return since is not None and time.monotonic() - since <= FRESH_SECONDS

    def made(self, call: PendingCall, *, shares: bool) -> None:
        """Hear that the session makes *call*; shares: it may share descriptors, or change what they are."""
        assert call.row is not None
        name = call.row.name
        fd = call.args[0] & 0xFFFFFFFF
        if shares:
            self._sharing.add(call.id)
            self.forget()
        elif name in _READS or name == "shutdown":
            self._reading[call.id] = fd
            stream = self._streams.get(fd)
            if stream is not None:
                stream.data = b""
            self._emptied.pop(fd, None)
        elif name == "close":
            self._closed(fd)
        elif name == "sendfile":
            self._streams.pop(fd, None)
        elif name == "epoll_ctl":
            self._emptied.pop(call.args[2] & 0xFFFFFFFF, None)
        elif name == "connect":
            self._connects = True
            self.heard_word()

    def heard(self, call: PendingCall, value: int, *, shares: bool, brings_word: bool) -> None:
        """Hear that a call has been made. value: its result, negative if it failed; brings_word: of others."""
        assert call.row is not None
        name = call.row.name
        self._reading.pop(call.id, None)
        self._sharing.discard(call.id)
        if shares:
            self.forget()
        elif name == "close":
            self._closed(call.args[0] & 0xFFFFFFFF)
        elif name in ("shutdown", "sendfile"):  # there may be no room any more, whatever was told before
            self._streams.pop(call.args[0] & 0xFFFFFFFF, None)
        elif brings_word:
            self._forget_local()
            if name not in _POLLING and not (name in _READS and call.args[0] in self._own_sockets):
                self._emptied.clear()
        if name in _MAKES_SOCKET and value >= 0:
            self._own_sockets[value] = 0
            flags = call.args[3] if name == "accept4" else call.args[1] if name == "socket" else 0
            if flags & os.O_NONBLOCK and not self._connects:
                self._nonblocking.add(value)

    def heard_word(self) -> None:
        """Hear that the program learns of others."""
        self._emptied.clear()

    def heard_late(self, call_id: int) -> None:
        """Hear that a call has been made that nobody waits for any more."""
        self._reading.pop(call_id, None)
        self._sharing.discard(call_id)
        self.heard_word()

    def forget(self) -> None:
        """Know nothing any more."""
        self._streams.clear()
        self._own_sockets.clear()
        self._nonblocking.clear()
        self._emptied.clear()

    def forget_contents(self, fd: int) -> None:
        """Know nothing of what can be read from *fd*, or written to it, any more."""
        self._streams.pop(fd, None)
        self._emptied.pop(fd, None)

    def took(self, fd: int, size: int) -> None:
        """Hear that so many bytes were taken out of the queue of a socket, otherwise than by calls."""
        if fd in self._own_sockets:
            self._own_sockets[fd] += size

    def _closed(self, fd: int) -> None:
        self._streams.pop(fd, None)
        self._emptied.pop(fd, None)
        self._own_sockets.pop(fd, None)
        self._nonblocking.discard(fd)
        self._forget_local()

    def _forget_local(self) -> None:
        for fd in [fd for fd, stream in self._streams.items() if stream.kind in _LOCAL]:
            del self._streams[fd]
