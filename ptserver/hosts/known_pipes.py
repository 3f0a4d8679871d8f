"""Pipes that the program has made: calls on them that are certain to succeed are answered here, and posted.

Only who has a descriptor changes what it is. So their flags are known until another process may have them, too. That
they can be closed is known as long as the program does not give their numbers to something else, and has written
nothing, which may have failed; that they are in an epoll instance, as long as no other process changes that. One that
is closed on exec is in no other program.

Not trusted: the server. Thread rules: the host's thread.
"""

import os
import struct
from collections.abc import Callable

from ptserver.hosts.pending_call import PendingCall
from ptserver.hosts.policy import FORKS
from ptserver.messages import Result
from stepping.syscalls.marshal import Args

_PAIR = struct.Struct("=ii")
_KEPT = os.O_NONBLOCK | os.O_DIRECT
_SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC | os.O_DIRECT | os.O_NOATIME
_F_SETFD, _F_GETFL, _F_SETFL = 2, 3, 4
_EPOLL_CTL_ADD, _EPOLL_CTL_DEL = 1, 2
_INT = 0xFFFFFFFF
_ABOUT_PROCESSES = frozenset("kill pidfd_open pidfd_send_signal setpgid getpgid setsid getsid".split())


class KnownPipes:
    """The descriptors of one process. post: sends a call that is answered here, by its name and registers."""

    def __init__(
        self,
        post: Callable[[str, Args], None],
        answer: Callable[[PendingCall, int, int, dict[int, bytes]], None],
    ) -> None:
        self._post = post
        self._answer = answer
        self._flags: dict[int, int | None] = {}  # as F_GETFL has them; None: others may have changed them
        self._instances: set[int] = set()  # of epoll, that are closed on exec
        self._watched: set[tuple[int, int]] = set()  # epoll instance, descriptor

    def control(self, call: PendingCall) -> bool:
        """Answer an fcntl about status flags of a pipe; return whether it is one."""
        fd, command, wanted = call.args[0] & _INT, call.args[1] & _INT, call.args[2]
        flags = self._flags.get(fd)
        if flags is None or command not in (_F_GETFL, _F_SETFL):
            return False
        if command == _F_GETFL:
            self._answer(call, flags, 0, {})
            return True
        if (wanted ^ flags) & _SETTABLE & ~os.O_NONBLOCK:
            return False
        self._flags[fd] = flags & ~os.O_NONBLOCK | wanted & os.O_NONBLOCK
        self._post("fcntl", (fd, _F_SETFL, wanted, 0, 0, 0))
        self._answer(call, 0, 0, {})
        return True

    def unwatch(self, call: PendingCall) -> bool:
        """Answer an epoll_ctl that takes a pipe out of where it is; return whether it is one."""
        epfd, operation, fd = (arg & _INT for arg in call.args[:3])
        if operation != _EPOLL_CTL_DEL or (epfd, fd) not in self._watched:
            return False
        self._watched.discard((epfd, fd))
        self._post("epoll_ctl", (epfd, operation, fd, 0, 0, 0))
        self._answer(call, 0, 0, {})
        return True

    def can_close(self, fd: int) -> bool:
        """Whether *fd* is a pipe, and nothing more is to be heard of it."""
        return fd in self._flags

    def closed(self, fd: int) -> None:
        """Hear that a number stands for nothing any more."""
        self._flags.pop(fd, None)
        self._instances.discard(fd)
        if self._watched:
            self._watched = {key for key in self._watched if fd not in key}

    def written(self, fd: int) -> None:
        """Hear that something is written to *fd*: that may fail, and closing it tells."""
        self._flags.pop(fd, None)

    def follow(self, name: str, call: PendingCall, result: Result) -> None:
        """Hear of a call that has succeeded, and shares nothing."""
        args = call.args
        if name == "pipe2":
            pair = result.outs.get(0, b"")
            if len(pair) == _PAIR.size:
                reading, writing = _PAIR.unpack(pair)
                self._flags[reading] = os.O_RDONLY | args[1] & _KEPT
                self._flags[writing] = os.O_WRONLY | args[1] & _KEPT
        elif name == "epoll_create1" and args[0] & os.O_CLOEXEC:
            self._instances.add(result.value)
        elif name == "epoll_ctl" and args[1] & _INT == _EPOLL_CTL_ADD:
            epfd, fd = args[0] & _INT, args[2] & _INT
            if fd in self._flags and epfd in self._instances:
                self._watched.add((epfd, fd))
        elif name == "close":
            self.closed(args[0] & _INT)
        elif name == "fcntl" and args[1] & _INT == _F_SETFD:
            self._forget_instances()

    def shares(self, name: str, call: PendingCall, *, own: bool) -> None:
        """Hear of a call that may share descriptors or change what they are; own: of the process itself."""
        if own and self._leaves_pipes(name, call):
            return
        if own and name not in FORKS:
            self._flags.clear()
            self._forget_instances()
            return
        self._flags = dict.fromkeys(self._flags)
        if name == "epoll_ctl":
            self._forget_instances()

    def _leaves_pipes(self, name: str, call: PendingCall) -> bool:
        if name == "fcntl" and call.args[1] & _INT == _F_SETFL:
            if call.args[0] & _INT in self._flags:
                self._flags[call.args[0] & _INT] = None
            return True
        return name in _ABOUT_PROCESSES

    def _forget_instances(self) -> None:
        self._instances.clear()
        self._watched.clear()
