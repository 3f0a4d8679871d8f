"""The guard of a session: the parent of its process, which lets nothing outlive the session.

All processes of the session are its descendants, and those whose parents have ended become its children
(PR_SET_CHILD_SUBREAPER), so that none is lost, whatever it does. It does nothing until the session is over: until
nobody has the other end of its socket any more. Then it ends what is left, and itself.

The first process of a program is the session's own process. If that executes another program, somebody else has to
go on with the session (`ptserver.sessions.keeper`): the guard tells the socket's other end how the program ended.

    guard -> session    STATUS             the wait status of its first process, as four bytes
    session -> guard    PID                who goes on with the session; 0: let it go on alone, end all others

Thread rules: one thread. Signals: SIGTERM ends the session, politely.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Set
from typing import NoReturn

from ptserver.hosts.endings import end_as

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
_NUMBER = struct.Struct("=i")
#: How long the processes of a session may take to be gone after they were killed.
_KILL_SECONDS = 5.0


def guard_session(run: Callable[[socket.socket], NoReturn]) -> NoReturn:
    """Have a child of this process, which has one thread, *run* the session with its end of the socket; guard it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    adopt_orphans()
    guard = os.getpid()
    first = os.fork()
    if first == 0:
        ours.close()
        die_with(guard)
        os.setsid()
        run(theirs)
    theirs.close()
    os.closerange(0, ours.fileno())  # the connection above all: its end must be noticed
    os.closerange(ours.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    os._exit(end_as(_Guard(ours, first).run()))


def end_others(guard: socket.socket) -> None:
    """Have all processes of the session but this one ended."""
    with contextlib.suppress(OSError):  # the guard is gone, and so is all that it guarded
        guard.send(_NUMBER.pack(0))


def die_with(parent: int) -> None:
    """Have the kernel end this process politely when *parent*, which forked it, ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int, spared: Set[int] = frozenset()) -> set[int]:
    """Return the processes below *root* that have not ended, as far as they can be seen at one moment.

    Those of *spared*, and what is below them, are left out.
    """
    children: dict[int, list[int]] = {}
    ended: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
        if fields[0] in (b"Z", b"X"):
            ended.add(int(name))
    found: set[int] = set()
    below = [root]
    while below:
        for pid in set(children.get(below.pop(), ())) - spared:
            found.add(pid)
            below.append(pid)
    return found - ended


def kill_descendants(root: int, spared: Set[int] = frozenset()) -> None:
    """Kill what `descendants` returns, and what is made meanwhile."""
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        left = descendants(root, spared)
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        os.sched_yield()


class _Guard:
    """first: the session's first process."""

    def __init__(self, sock: socket.socket, first: int) -> None:
        self._socket = sock
        self._first = first
        self._session = first
        self._status = 0
        reading, writing = os.pipe()
        for fd in (reading, writing):
            os.set_blocking(fd, False)
        self._wakeup = reading
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for signo in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signo, _noted)

    def run(self) -> int:
        """Wait for the end of the session, and end what is left of it; return its process's wait status."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        self._reap()
        while True:
            for fd, _ in poll.poll():
                if fd == self._wakeup:
                    self._on_signal()
                elif not self._take_message():
                    self._end()
                    return self._status

    def _on_signal(self) -> None:
        if signal.SIGTERM in os.read(self._wakeup, 4096):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._session, signal.SIGTERM)
        self._reap()

    def _take_message(self) -> bool:
        """Note who goes on with the session, with whom else; return false if it is over."""
        try:
            packet = self._socket.recv(_NUMBER.size)
        except ConnectionResetError:
            return False
        number = _NUMBER.unpack(packet)[0] if packet else 0
        if number:
            self._session = number
            self._status = 0
        elif packet:
            kill_descendants(os.getpid(), {self._session})
            kill_descendants(self._session)
        return bool(packet)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._session:
                self._status = status
            if pid == self._first:
                with contextlib.suppress(OSError):  # nobody is interested: the session ends
                    self._socket.send(_NUMBER.pack(status))

    def _end(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        deadline = time.monotonic() + _KILL_SECONDS
        while time.monotonic() < deadline:
            self._reap()
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            kill_descendants(os.getpid())


def _noted(_signo: int, _frame: object) -> None:
    """Do nothing: the number has been written to the wakeup descriptor."""
