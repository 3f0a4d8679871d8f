"""The zygote: a process of one thread that forks a session's process for each accepted connection.

It is forked before the acceptor starts its event loop, with everything imported that a session needs, so a
session starts within milliseconds and shares the memory of all that. It talks with the acceptor over a
SOCK_SEQPACKET socket:

    acceptor -> zygote   SESSION               with the descriptors of the connection and of its admission: fork
    zygote -> acceptor   PID STATUS SESSION    a session's process has ended, with that wait status

At the end of that socket it ends its sessions, first politely, and then itself. It dies with the acceptor, and
each session with it.

Thread rules: one thread, before and after the fork.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import NamedTuple, NoReturn, Protocol

from ptserver.sessions.guard import adopt_orphans, die_with, kill_descendants
from ptserver.sessions.log import Log

#: How long sessions may take to end when they are asked to.
_STOP_SECONDS = 3.0
_MAX_NAME_BYTES = 64


class Ended(NamedTuple):
    """A session's process that has ended. pid: 0 if it could not be started; status: as waitpid(2) gives it."""

    pid: int
    status: int
    session: str


class Sessions(Protocol):
    """What all sessions have in common."""

    @property
    def log(self) -> Log:
        """Where the zygote says what goes wrong."""

    def run(self, sock: socket.socket, session_id: str, admission: socket.socket) -> NoReturn:
        """Become the session for the connection *sock*, in a process of its own, and end that.

        admission: where it asks whether there is room, see `ptserver.sessions.start`.
        """


class Spawner:
    """The acceptor's end of the zygote. pid: the zygote's."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.socket = sock
        self.pid = pid

    def spawn(self, session_id: str, connection: socket.socket, admission: socket.socket) -> None:
        """Have a session's process forked for *connection*, and close both sockets here.

        admission: where the process asks whether there is room for the session, see `ptserver.sessions.start`.

        Raises:
            OSError: the zygote is gone (EPIPE), or has too much to do (EAGAIN).
        """
        socket.send_fds(self.socket, [session_id.encode()], [connection.fileno(), admission.fileno()])
        connection.close()
        admission.close()

    def take_ended(self) -> list[Ended] | None:
        """Return the sessions that have ended since; None if the zygote is gone."""
        ended: list[Ended] = []
        while True:
            try:
                packet = self.socket.recv(_MAX_NAME_BYTES + 32)
            except BlockingIOError:
                return ended
            except ConnectionResetError:
                return None
            if not packet:
                return None
            pid, status, session = packet.decode().split(" ", 2)
            ended.append(Ended(int(pid), int(status), session))

    def stop(self) -> int:
        """End the zygote and all sessions; return its wait status. Blocks for a few seconds at most."""
        self.socket.close()
        return os.waitpid(self.pid, 0)[1]


def start_spawner(sessions: Sessions, unwanted: socket.socket | None) -> Spawner:
    """Fork the zygote; this process must have one thread, and no descriptors that sessions must not have.

    unwanted: the listening socket, which the zygote closes, if there is one.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.freeze()  # so that collections do not write to memory that sessions share
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        gc.unfreeze()
        ours.setblocking(False)
        return Spawner(ours, pid)
    status = 1
    try:
        ours.close()
        if unwanted is not None:
            unwanted.close()
        die_with(parent)
        os.setsid()  # the terminal's signals are for the acceptor
        status = _Zygote(theirs, sessions).run()
    finally:
        os._exit(status)


class _Zygote:
    """Forks, reaps and, in the end, kills."""

    def __init__(self, sock: socket.socket, sessions: Sessions) -> None:
        self._socket = sock
        self._sessions = sessions
        self._children: dict[int, str] = {}  # the sessions, by process
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self._wakeup = (reading, writing)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signo, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def run(self) -> int:
        """Work until the acceptor is gone."""
        adopt_orphans()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wakeup[0], select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wakeup[0]:
                    self._reap()
                elif not self._take_request():
                    self._stop_children()
                    return 0

    def _take_request(self) -> bool:
        try:
            packet, fds, _, _ = socket.recv_fds(self._socket, _MAX_NAME_BYTES, 2)
        except ConnectionResetError:
            return False
        if not packet:
            return False
        session_id = packet.decode()
        with socket.socket(fileno=fds[0]) as connection, socket.socket(fileno=fds[1]) as admission:
            try:
                pid = os.fork()
            except OSError as error:  # no more processes: this client is dropped
                self._sessions.log(f"cannot start a session: {error.strerror}")
                self._report(0, 1 << 8, session_id)
                return True
            if pid == 0:
                self._become_session(session_id, connection, admission)
        self._children[pid] = session_id
        return True

    def _become_session(
        self, session_id: str, connection: socket.socket, admission: socket.socket
    ) -> NoReturn:
        zygote = os.getppid()
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for fd in self._wakeup:
                os.close(fd)
            self._socket.close()
            die_with(zygote)
            os.setsid()
            self._sessions.run(connection, session_id, admission)
        except OSError as error:  # before there is a session that could say so
            self._sessions.log(f"cannot start session {session_id}: {error}")
        finally:
            os._exit(1)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup[0], 4096):
                pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self._children:
                self._report(pid, status, self._children.pop(pid))
                if os.WIFSIGNALED(status):
                    self._kill_orphans()

    def _kill_orphans(self) -> None:
        """Kill what a session that was killed has left: children of this process that are no sessions."""
        kill_descendants(os.getpid(), self._children.keys())

    def _report(self, pid: int, status: int, session_id: str) -> None:
        with contextlib.suppress(OSError):  # the acceptor is going
            self._socket.send(f"{pid} {status} {session_id}".encode())

    def _stop_children(self) -> None:
        self._signal_children(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        poll = select.poll()
        poll.register(self._wakeup[0], select.POLLIN)
        self._reap()
        while self._children and time.monotonic() < deadline:
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            self._reap()
        kill_descendants(os.getpid())

    def _signal_children(self, signo: int) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signo)
