"""The shadows of a program's further processes, as the session's process knows them: it passes their messages on.

Each shadow has a socket of its own to here, which arrives on the birth socket before anybody hears of it
(`ptserver.shadow.process`).

Thread rules: the session's thread.
"""

import functools
import select
import signal
import socket
from collections.abc import Callable

from ptserver.errors import ConnectionLostError
from ptserver.messages import (
    Executed,
    FromShadow,
    Message,
    ProcessExited,
    Result,
    Signal,
    Syscall,
    ToShadow,
)
from ptserver.net.connection import Connection
from ptserver.net.poll_loop import PollLoop
from ptserver.net.wire import Codec
from ptserver.sessions.calls import Calls
from ptserver.sessions.relays import SessionRelays
from ptserver.shadow.birth import Birth
from ptserver.shadow.execute import Executed as CallResult
from ptserver.shadow.process import SHADOW_CODEC, ShadowState, fork_shadow

_MAX_BIRTH_BYTES = 64


class Child:
    """The shadow of one process. Calls for one that has ended are never answered: its process ends, too."""

    def __init__(self, pid: int, sock: socket.socket, loop: PollLoop, on_message: Callable[[], None]) -> None:
        self.pid = pid
        self.calls: set[int] = set()
        self.executing = False
        self.ending = False
        self._loop = loop
        self._on_message = on_message
        self._connection: Connection[FromShadow] = Connection(sock, Codec(SHADOW_CODEC), FromShadow)
        loop.watch(self._connection.fileno(), on_message)

    def send(self, message: ToShadow) -> None:
        """Send at once, as far as the shadow reads."""
        if self._connection.fileno() < 0:
            return
        if type(message) is Syscall:
            self.calls.add(message.id)
        self._connection.send(message)
        self.flush()

    def has(self, call_id: int) -> bool:
        """Whether it was given that call and has not answered."""
        return call_id in self.calls

    def flush(self) -> None:
        """Send what is left."""
        events = select.POLLIN if self._connection.flush() else select.POLLIN | select.POLLOUT
        self._loop.watch(self._connection.fileno(), self._on_message, events)

    def receive(self) -> list[FromShadow]:
        """Return what it says. Raises: ConnectionLostError at its end."""
        return self._connection.receive()

    def close(self) -> None:
        """Give up the socket."""
        self._loop.unwatch(self._connection.fileno())
        self._connection.close()


class Children(dict[int, Child]):
    """All of them that there have been, by process id. state: of the first shadow; send: to the host."""

    def __init__(
        self, state: ShadowState, loop: PollLoop, send: Callable[[Message], None], relays: SessionRelays
    ) -> None:
        super().__init__()
        self._relays = relays
        self._state = state
        self._descriptors = state.descriptors
        self._loop = loop
        self._send = send
        self._calls: Calls | None = None
        self._births: socket.socket | None = None

    def fork(self, birth: Birth, outs: dict[int, int]) -> CallResult:
        """Fork this process, as a call of the program does; see `fork_shadow`."""
        if self._births is None:
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._births, self._state.births = (
                socket.socket(fileno=self._descriptors.keep(end.detach())) for end in ends
            )
            self._births.setblocking(False)
        result = fork_shadow(self._state, birth, outs)
        self.take_births()
        return result

    def answer_to(self, calls: Calls) -> None:
        """Give results to *calls*."""
        self._calls = calls

    def take_births(self) -> None:
        """Take in the shadows that have been forked since, and the ends of relays that they have made."""
        assert self._births is not None
        while True:
            try:
                with self._descriptors.unlimited():
                    packet, fds, _, _ = socket.recv_fds(self._births, _MAX_BIRTH_BYTES, 1)
                    fd = self._descriptors.keep(fds[0])
            except BlockingIOError:
                return
            pid, *stream = map(int, packet.split())
            if stream:
                self._relays.opened(stream[0], fd)
                continue
            old = self.get(pid)
            if old is not None:
                old.close()
            child = Child(pid, socket.socket(fileno=fd), self._loop, functools.partial(self._on_message, pid))
            self[pid] = child

    def pass_on(self, pid: int, message: ToShadow) -> None:
        """Give a message of the host to the shadow of process *pid*, if there is one."""
        child = self.get(pid)
        if child is not None:
            child.ending = child.ending or type(message) is ProcessExited
            child.send(message)

    def _on_message(self, pid: int) -> None:
        self.take_births()
        child = self[pid]
        child.flush()
        try:
            messages = child.receive()
        except ConnectionLostError:
            self._ended(child)
            return
        assert self._calls is not None
        for message in messages:
            match message:
                case Result():
                    child.executing = False
                    child.calls.discard(message.id)
                    self._calls.settle(message.id, (message.value, message.errno, message.outs))
                case Executed():
                    child.executing = True
                case Signal():
                    self._send(message)

    def _ended(self, child: Child) -> None:
        child.close()
        assert self._calls is not None
        self._calls.forget(child.calls)
        child.calls.clear()
        if not child.executing:
            self._relays.gone(child.pid)
        if child.executing:
            self._send(Executed(child.pid))
            self._relays.executed(child.pid)
        elif not child.ending:
            self._send(Signal(signal.SIGKILL, child.pid))  # somebody has killed it, and so its process
