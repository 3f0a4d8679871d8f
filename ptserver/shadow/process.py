"""Forks a shadow with its process: the new process holds the new state, and makes the calls of the program's child.

The fork is the kernel's own, so descriptors, folder, umask, limits and credentials are inherited just as they should
be. The new process has one thread; it gives up every descriptor that was its maker's own, and talks with the
session's process over a socket that these two alone have. The other end of that socket goes to the session's
process, before anybody hears of the new one, over the birth socket, which every shadow of a session inherits:

    shadow -> session    PID           of the new shadow, with a descriptor
    shadow -> session    PID STREAM    with a descriptor: the session's end of a relay (`ptserver.shadow.relays`)

It ends as its process at the stub host did, as a program that it executes, or when the session is gone.

Thread rules: the first thread of a shadow, before and after the fork.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

from ptserver.confinement.gate import Gate
from ptserver.errors import ConnectionLostError
from ptserver.hosts.endings import die_by
from ptserver.messages import (
    Cancel,
    Executed,
    ProcessExited,
    ProcessStopped,
    Relay,
    Signal,
    SignalState,
    Syscall,
    ToShadow,
)
from ptserver.net.connection import Connection
from ptserver.net.poll_loop import PollLoop
from ptserver.net.wire import Codec
from ptserver.server import RuntimeServer
from ptserver.session import Session
from ptserver.sessions.calls import Calls
from ptserver.sessions.log import Log
from ptserver.shadow.birth import Birth
from ptserver.shadow.descriptors import Descriptors
from ptserver.shadow.exec import reason_not_to_execute
from ptserver.shadow.execute import Executed as CallResult
from ptserver.shadow.signals import ShadowSignals, signal_message
from ptserver.shadow.state import Shadow
from ptserver.shadow.waiting import Args
from ptserver.shadow.workers import Workers

_FD = struct.Struct("=i")
_DRAIN_SECONDS = 5.0

#: How shadows and the session's process talk.
SHADOW_CODEC = "msgpack"


@dataclass
class ShadowState:
    """What a shadow hands on to the one that it forks.

    gate: judges what its sockets do, if anything does. keeps_time: whether clocks are read here. births: the socket
    on which the session's process hears of new ones, made for the first fork.
    """

    session: Session
    shadow: Shadow
    descriptors: Descriptors
    log: Callable[[str], None]
    gate: Gate | None
    keeps_time: bool
    births: socket.socket | None = None


def fork_shadow(state: ShadowState, birth: Birth, outs: dict[int, int]) -> CallResult:
    """Fork, as a call of the program does; return what it returns, to the old process alone.

    birth: what the new process has of its own. outs: of the call: where it wants a descriptor of the new process
    (CLONE_PIDFD), if it does.
    """
    births = state.births
    assert births is not None
    try:
        descriptors = state.descriptors
        with descriptors.unlimited():
            ends = [descriptors.keep(end.detach()) for end in socket.socketpair()]
        ours, theirs = (socket.socket(fileno=end) for end in ends)
        with ours, theirs:
            pid = os.fork()
            if pid == 0:
                _become(state, theirs, birth)
            if not birth.is_plain:
                _await_birth(pid, ours)
            socket.send_fds(births, [str(pid).encode()], [ours.fileno()])
        wanted = [index for index, size in outs.items() if size == _FD.size][:1]
        return pid, 0, {index: _FD.pack(os.pidfd_open(pid)) for index in wanted}
    except OSError as error:
        return 0, error.errno or errno.EAGAIN, {}


def _await_birth(pid: int, sock: socket.socket) -> None:
    """Wait until the new process has what it is to have. Raises: OSError, and it is gone, if it cannot have it."""
    failed = _FD.unpack(sock.recv(_FD.size))[0]
    if failed:
        os.waitpid(pid, 0)
        raise OSError(failed, os.strerror(failed))


def _take_birth(state: ShadowState, birth: Birth, sock: socket.socket) -> None:
    """Take what this process is to have, and tell who forked it: as after clone(2), it finds this one there."""
    failed = birth.take(state.descriptors.program_limit)
    sock.send(_FD.pack(failed))
    if failed:
        os._exit(1)


def _become(state: ShadowState, sock: socket.socket, birth: Birth) -> NoReturn:
    """In the new process: be a shadow."""
    with _Ending(state.log):
        if not birth.is_plain:
            _take_birth(state, birth, sock)
        assert state.births is not None
        kept = {sock.fileno(), state.births.fileno(), *state.shadow.mapped}
        if isinstance(state.log, Log):
            kept.add(state.log.fd)
        state.descriptors.close_own(kept)
        ForkedShadow(state, sock).run()
    raise AssertionError("not reached")


class _Ending:
    """Ends the process at the end of the block, whatever happens: the frames below are those of its maker."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> NoReturn:
        if error is not None:
            self._log("a shadow failed: " + "".join(traceback.format_exception(kind, error, trace)))
        os._exit(1)


class ForkedShadow:
    """The loop of a forked shadow."""

    def __init__(self, state: ShadowState, sock: socket.socket) -> None:
        self._pid = os.getpid()
        keep = state.descriptors.keep
        self._births = state.births
        self._connection: Connection[ToShadow] = Connection(sock, Codec(SHADOW_CODEC), ToShadow)
        self._workers: Workers[int] = Workers(keep)
        self._signals = ShadowSignals(keep)
        self._shadow = state.shadow
        self._shadow.start_anew(self._signals, self._workers.retire_idle)
        self._loop = PollLoop()
        self._calls = Calls(
            state.session,
            RuntimeServer(),
            self._shadow,
            self._workers,
            self._connection.send,
            self._loop,
            state.descriptors.copy,
            state.gate,
            fork=lambda birth, outs: fork_shadow(state, birth, outs),
            become=self._become,
            take_signals=self._on_signal,
            pid=self._pid,
            keeps_time=state.keeps_time,
        )
        self._events = 0

    def run(self) -> NoReturn:
        """Serve until the process, or the session, is gone."""
        self._loop.watch(self._signals.fileno(), self._on_signal)
        self._loop.watch(self._workers.fileno(), self._calls.take_finished)
        with contextlib.suppress(ConnectionLostError):
            while True:
                self._round()
        os._exit(0)

    def _round(self) -> None:
        self._loop.round(self._before_waiting)

    def _before_waiting(self) -> None:
        connection = self._connection
        if connection.wants_write:
            self._loop.expect()
        events = select.POLLIN if connection.flush() else select.POLLIN | select.POLLOUT
        if events != self._events:
            self._events = events
            self._loop.watch(connection.fileno(), self._on_message, events)

    def _on_message(self) -> None:
        for message in self._connection.receive():
            match message:
                case Syscall():
                    self._calls.take_call(message)
                case Cancel():
                    self._calls.take_cancel(message)
                case SignalState():
                    self._signals.set_state(message)
                case Relay():
                    self._shadow.relays.want(message)
                case ProcessStopped():
                    self._stop(message.signo)
                case ProcessExited():
                    _end(message)

    def _on_signal(self) -> None:
        for received in self._signals.receive():
            self._connection.send(signal_message(self._pid, received))

    def _stop(self, signo: int) -> None:
        self._signals.stop(signo)
        received = self._signals.receive()
        if not any(one.signo == signal.SIGCONT for one in received):  # the kernel saw no reason to stop
            self._connection.send(Signal(signal.SIGCONT, self._pid))
        for one in received:
            self._connection.send(signal_message(self._pid, one))

    def _become(self, call_id: int, name: str, args: Args, ins: dict[int, bytes]) -> int:
        """Become another program; return why not."""
        failure = reason_not_to_execute(name, ins)
        if failure:
            return failure
        self._shadow.relays.make(call_id, self._give_end)
        self._connection.send(Executed(self._pid))  # followed by the end of the connection, or by a result
        self._connection.drain(_DRAIN_SECONDS)
        return self._shadow.become(name, args, ins)

    def _give_end(self, message: Relay, fd: int) -> None:
        assert self._births is not None
        try:
            socket.send_fds(self._births, [f"{self._pid} {message.input or message.output}".encode()], [fd])
        finally:
            os.close(fd)


def _end(message: ProcessExited) -> NoReturn:
    """End as the process did."""
    if message.status is None:
        die_by(message.signo)
    os._exit(message.status or 0)
