"""A stub host that has a connection to its server, and what becomes of that: it works, is lost, comes back.

Not trusted: the server.
"""

import select
import signal
import time
from collections.abc import Callable, Mapping

from ptserver.errors import ConnectionLostError, ProtocolError
from ptserver.hosts.host import Host
from ptserver.hosts.signals import HostSignals
from ptserver.messages import Interest, MemoryResult, Message, ToHost
from ptserver.net.connection import Connection
from ptserver.net.keepalive import KeepAlive
from ptserver.net.lasting import LastingConnection
from ptserver.net.poll_loop import Awake
from ptserver.net.recovery import Recovery, Source
from ptserver.remote_memory.stores import StoreLostError
from stepping.launch import Launched
from stepping.syscalls import Arch

#: How long an access to a remote variable may take where a server may be silent for ever.
_FOREVER_SECONDS = 3600.0
#: Signals by which a user ends a program.
_ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})


class ConnectedHost(Host):
    """A host with a *connection*. lost: why it was lost for good, or None.

    keepalive_seconds: how long the server may be silent, 0 for ever.
    """

    def __init__(
        self,
        launched: Launched,
        signals: HostSignals,
        arch: Arch,
        interest: Mapping[str, Interest],
        connection: Connection[ToHost],
        keepalive_seconds: float,
    ) -> None:
        super().__init__(launched, signals, arch, interest)
        self.lost: str | None = None
        self.keepalive = KeepAlive(connection, self._loop.later, keepalive_seconds, self._broke)
        self._connection = connection
        self._patience_seconds = keepalive_seconds
        self._recovery: Recovery | None = None
        self._on_waiting: Callable[[bool], None] = lambda waits: None
        self._held: list[ToHost] = []
        self._awake = Awake()  # for answers to accesses
        self._answers, self._answers_fd = select.poll(), -1
        self._all_sent = True
        self._loop.watch(connection.fileno(), self._on_ready)

    def _take(self, message: ToHost) -> None:
        """Deal with a message. Raises: ProtocolError, ConnectionLostError."""
        raise NotImplementedError

    def _lose(self, reason: str) -> None:
        """Go on without the server: only to the end of the program."""
        raise NotImplementedError

    def _end_connection(self) -> None:
        """Tell a session that would be kept that its last words came."""
        connection = self._connection
        if self.lost is None and isinstance(connection, LastingConnection):
            connection.acknowledge()
            connection.flush()

    def disconnect(self) -> None:
        """Give up the connection, and every descriptor that it has."""
        if self._recovery is not None:
            self._recovery.stop()
        self._connection.close()

    def survive_losses(
        self,
        source: Source,
        seconds: float,
        tell: Callable[[str], None],
        waiting: Callable[[bool], None] = lambda waits: None,
    ) -> None:
        """Wait so long for another connection, which comes from *source*, whenever this one is lost.

        *tell* is given lines for a user or a log, *waiting* is told when it begins and ends.
        """
        connection = self._connection
        assert isinstance(connection, LastingConnection)
        self._on_waiting = waiting
        self._recovery = Recovery(
            connection,
            source,
            seconds,
            self._loop,
            self.keepalive,
            resumed=self._resumed,
            lost=self._lose,
            say=tell,
        )

    def _on_ready(self) -> None:
        try:
            for message in self._connection.receive():
                self._take(message)
        except ConnectionLostError as error:
            self._broke(str(error))
        except ProtocolError as error:
            self._lose(str(error))

    def _broke(self, reason: str) -> None:
        """The connection is of no use any more; another may come."""
        if self._recovery is None or self.lost is not None:
            self._lose(reason)
        elif not self._recovery.is_waiting:
            self._on_waiting(True)
            self._recovery.broke(reason)
            self._all_sent = True  # as far as it can be

    def _resumed(self) -> None:
        self._on_waiting(False)
        self._all_sent = True
        self._loop.watch(self._connection.fileno(), self._on_ready)

    @property
    def _is_waiting(self) -> bool:
        return self.lost is None and self._recovery is not None and self._recovery.is_waiting

    def _pass_on(self, signo: int) -> None:
        if self._is_waiting and signo in _ENDING:  # the program could do nothing about it
            self._lose(f"{signal.Signals(signo).name} came while no connection did")
        else:
            super()._pass_on(signo)

    # Remote variables.

    def ask(self, message: Message) -> MemoryResult:
        """Send a memory message and return its answer. What else comes meanwhile is dealt with afterwards.

        Raises:
            StoreLostError: the server is lost.
        """
        if self.lost is None:
            self._connection.send(message)
        while self.lost is None:
            answer = self._await_answer()
            if answer is not None:
                return answer
            if self._recovery is not None:
                self._recovery.await_end()
        raise StoreLostError(f"the server is lost: {self.lost}")

    def _await_answer(self) -> MemoryResult | None:
        """Return the answer to a memory message; None if the connection is lost before it comes."""
        connection = self._connection
        connection.flush()  # the other side works while this one prepares to wait
        poll = self._answer_poll()
        patience = self._patience_seconds or _FOREVER_SECONDS
        is_here, deadline = connection.has_received, 0.0
        try:
            while not self._is_waiting:
                connection.flush()
                if not is_here and not (self._awake.pays() and self._awake.wait(lambda: poll.poll(0))):
                    now = time.monotonic()
                    deadline = deadline or now + patience
                    if now > deadline:
                        self._broke(f"the server said nothing for {patience:g} s")
                        break
                    poll.poll(min(deadline - now, 1.0) * 1000)
                is_here, answer = False, None
                for received in connection.receive():
                    if type(received) is MemoryResult:
                        answer = received
                    else:
                        self._held.append(received)
                if answer is not None:
                    if self._held:
                        self._loop.later(0, self._take_held)
                    return answer
        except ConnectionLostError as error:
            self._broke(str(error))
        except ProtocolError as error:
            self._lose(str(error))
        return None

    def _answer_poll(self) -> select.poll:
        """Return a poll set of the connection alone; an empty one while there is none."""
        fd = -1 if self._is_waiting else self._connection.fileno()
        if fd != self._answers_fd:
            self._answers, self._answers_fd = select.poll(), fd
            if fd >= 0:
                self._answers.register(fd, select.POLLIN)
        return self._answers

    def _take_held(self) -> None:
        held = self._held[:]
        self._held.clear()
        try:
            for message in held:
                self._take(message)
        except ProtocolError as error:
            self._lose(str(error))
