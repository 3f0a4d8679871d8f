"""The end that connects: a process that connects anew when a session's connection was lost, as often as it takes.

It is forked before there is a session, so it has no descriptors, threads and children of the program's, and the
program none of its. Over a SOCK_SEQPACKET socket

    session -> messenger    {seconds, resume}      connect, and say `resume`; try for so long
    messenger -> session    {position}, a stream   there it is, and so many bytes the other end has
                            {refused}              it will never be

Under TLS it stays and carries the stream, see `ptserver.net.carry`. It ends when the session's process has.

Not trusted: the peer. Thread rules: `Messenger` is the session's thread's; the process has one thread.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from ptserver.errors import ConnectionLostError, PtServerError, RefusedError
from ptserver.messages import PROTOCOL_VERSION, Refused, Resume, Resumed
from ptserver.net.carry import as_descriptor
from ptserver.net.connection import Stream, read_frame, send_all
from ptserver.net.lasting import LastingConnection
from ptserver.net.reach import reach
from ptserver.net.wire import MAX_HELLO_BYTES, Codec

_JSON = Codec("json")
_MAX_PACKET_BYTES = 16 << 10
#: How long one attempt may take, and how long is waited between two.
_ATTEMPT_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.05, 2.0


class _Errand(msgspec.Struct):
    seconds: float
    resume: Resume


class _Report(msgspec.Struct):
    position: int = 0
    refused: str = ""


class Messenger:
    """The session's end. ticket, token: see `Resume`; they are known when the session has begun."""

    def __init__(
        self, address: str, keys_folder: str | None, keep: Callable[[int], int] = lambda fd: fd
    ) -> None:
        """Fork the process, which will connect to *address*; *keep* moves a descriptor out of a program's way."""
        self.ticket = ""
        self.token = ""
        self._keep = keep
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        between = os.fork()
        if between == 0:  # whose child belongs to nobody here, who might wait for children
            try:
                if os.fork() == 0:
                    ours.close()
                    _become_messenger(theirs, address, keys_folder)
            finally:
                os._exit(0)
        os.waitpid(between, 0)
        theirs.close()
        self._socket = socket.socket(fileno=keep(ours.detach()))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the socket's number: see `ptserver.net.recovery.Source`."""
        return self._socket.fileno()

    def ask(self, received_bytes: int, seconds: float) -> None:
        """Have a stream looked for: see `ptserver.net.recovery.Source`."""
        resume = Resume((PROTOCOL_VERSION,), self.ticket, self.token, received_bytes)
        with contextlib.suppress(OSError):  # it is gone, which `take` tells
            self._socket.send(msgspec.json.encode(_Errand(seconds, resume)))

    def take(self, _connection: LastingConnection[Any]) -> tuple[socket.socket, int] | None:
        """Return the stream that was found: see `ptserver.net.recovery.Source`."""
        try:
            packet, fds, _, _ = socket.recv_fds(self._socket, _MAX_PACKET_BYTES, 1)
        except BlockingIOError:
            return None
        except OSError:
            packet, fds = b"", []
        if not packet:
            raise ConnectionLostError("the process that connects is gone")
        report = msgspec.json.decode(packet, type=_Report)
        if report.refused or not fds:
            raise RefusedError("session", report.refused)
        return socket.socket(fileno=self._keep(fds[0])), report.position

    def close(self) -> None:
        """End the process."""
        self._socket.close()


def _become_messenger(sock: socket.socket, address: str, keys_folder: str | None) -> NoReturn:
    os.setsid()  # the terminal's signals are for the program
    for signo in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signo, signal.SIG_IGN)
    fd = sock.fileno()
    os.closerange(0, fd)
    os.closerange(fd + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    null = os.open(os.devnull, os.O_RDWR)
    for number in {0, 1, 2} - {fd, null}:
        os.dup2(null, number)
    with contextlib.suppress(OSError):  # the session has ended
        while True:
            packet = sock.recv(_MAX_PACKET_BYTES)
            if not packet:
                break
            _run(sock, msgspec.json.decode(packet, type=_Errand), address, keys_folder)
    os._exit(0)


def _run(sock: socket.socket, errand: _Errand, address: str, keys_folder: str | None) -> None:
    """Connect until that succeeds, is refused, or takes too long."""
    deadline = time.monotonic() + errand.seconds
    pause = _FIRST_PAUSE_SECONDS
    while time.monotonic() < deadline:
        try:
            stream, _ = reach(address, keys_folder)
            position = _resume(stream, errand.resume)
        except RefusedError as error:
            sock.send(msgspec.json.encode(_Report(refused=str(error))))
            return
        except (PtServerError, OSError):
            if select.select([sock], [], [], pause)[0]:
                return
            pause = min(pause * 2, _LAST_PAUSE_SECONDS)
            continue
        given, carry_on = as_descriptor(stream)
        with given:
            socket.send_fds(sock, [msgspec.json.encode(_Report(position))], [given.fileno()])
        carry_on(sock.fileno())
        return


def _resume(stream: Stream, resume: Resume) -> int:
    """Say *resume* on a new connection; return how many bytes the other end has. It is closed if this raises.

    Raises:
        RefusedError: there is no such session.
        PtServerError, OSError: it may be better next time.
    """
    with contextlib.ExitStack() as on_error:
        on_error.callback(stream.close)
        deadline = time.monotonic() + _ATTEMPT_SECONDS
        send_all(stream, _JSON.encode(resume), deadline)
        answer: Resumed | Refused = _JSON.decoder(Resumed | Refused)(
            read_frame(stream, MAX_HELLO_BYTES, deadline)
        )
        if isinstance(answer, Refused):
            raise RefusedError(answer.code, f"the other side refuses: {answer.message}")
        on_error.pop_all()
    return answer.received_bytes
