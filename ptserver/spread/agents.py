"""The hosts of a spread program that the home reaches by a connection, by number, and how such a host is had."""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ptserver.errors import PtServerError
from ptserver.machine import this_machine
from ptserver.net.connection import Connection, Stream
from ptserver.net.meanwhile import meanwhile
from ptserver.net.poll_loop import PollLoop
from ptserver.net.transport import TcpAddress, is_private
from ptserver.net.wire import Codec
from ptserver.spread.agent import fork_agent, spawn_agent
from ptserver.spread.bundle import Bundle
from ptserver.spread.clocks import measure_ns
from ptserver.spread.links import Place
from ptserver.spread.messages import ToHome
from ptserver.spread.offer import offer_spread
from ptserver.spread.passing_messages import Listening
from ptserver.spread.processors import lacking

#: The names of hosts on this machine: kept by the home's own process, and by an agent that the home starts.
LOCAL, AGENT = "local", "agent"

#: How long an agent on this machine may take to end when its connection is closed.
_END_SECONDS = 3.0


@dataclass(frozen=True)
class HostAddress:
    """Where a host is. address: where `ptserver remote` waits, or `LOCAL` or `AGENT` for one on this machine.

    keys: the folder of keys for it, if any; token_file: as for `ptserver run`.
    """

    address: str
    keys: str | None = None
    token_file: str | None = None


@dataclass(slots=True)
class Agent:
    """One host. lacks: what its processor cannot do of what this machine's can, as `processors.lacking` says.

    clock_offset_ns: by how much this machine's monotonic clock is ahead of its. round_trip_ns: how long it takes to
    it and back, 0 if it is on this machine. pid: of its agent, if that is a child of this process, else 0. peer_name:
    its address, as getpeername gives it. bundle: what is to be said to it once it has begun.
    """

    where: HostAddress
    connection: Connection[ToHome]
    lacks: frozenset[str] = frozenset()
    clock_offset_ns: int = 0
    round_trip_ns: int = 0
    pid: int = 0
    peer_name: object = ""
    read: Callable[[], None] = lambda: None
    bundle: Bundle = field(init=False)

    def __post_init__(self) -> None:
        self.bundle = Bundle(self.connection)

    def place(self, listening: Listening | None) -> Place:
        """Return how other hosts reach it. listening: what it says of that."""
        near = is_private(self.peer_name)
        if listening is None:
            return Place(near=near)
        if not isinstance(self.peer_name, tuple):
            return Place(f"@{listening.name}", "", near)
        return Place(str(TcpAddress(self.peer_name[0], listening.port)), listening.certificate, near)


class Agents:
    """All of them by number. Close it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._agents: dict[int, Agent] = {}

    def __getitem__(self, number: int) -> Agent:
        return self._agents[number]

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._agents))

    def reach(self, where: HostAddress, *, anew: bool = False) -> Agent:
        """Have a host ready for an instance. anew: this process keeps an instance already.

        Raises:
            PtServerError: as `ptserver.spread.offer.offer_spread`.
        """
        if where.address != AGENT:
            stream, features = offer_spread(self._path, where.address, where.keys, where.token_file)
            connection = _connection(stream)
            lacks = lacking(this_machine().cpu_features, features)
            return Agent(where, connection, lacks, *measure_ns(connection), peer_name=stream.getpeername())
        pid, sock = spawn_agent(self._path) if anew else fork_agent(self._path)
        return Agent(where, _connection(sock), pid=pid)

    def reach_meanwhile(
        self, where: HostAddress, loop: PollLoop, then: Callable[[Agent | PtServerError], None]
    ) -> None:
        """As `reach`, while *loop* goes on; it calls *then* with the host, or with why it cannot be had."""
        meanwhile(loop, where.address, lambda: self.reach(where, anew=True), then)

    def add(self, number: int, agent: Agent) -> None:
        """Give a host its number, one that none has had."""
        self._agents[number] = agent

    def remove(self, number: int) -> Agent:
        """Let a host go, and have it end; return what it was."""
        agent = self._agents.pop(number)
        _end(agent)
        return agent

    def flush(self, loop: PollLoop) -> None:
        """Send what can be sent, and watch for what comes."""
        for agent in self._agents.values():
            events = select.POLLIN if agent.bundle.flush() else select.POLLIN | select.POLLOUT
            loop.watch(agent.connection.fileno(), agent.read, events)

    def close(self) -> None:
        """Let all go."""
        for number in self:
            self.remove(number)


def _end(agent: Agent) -> None:
    """Close the connection to an agent, and see that it ends; one that does not is killed."""
    agent.connection.close()
    if not agent.pid:
        return
    with contextlib.suppress(ChildProcessError):  # it has been waited for
        if os.waitpid(agent.pid, os.WNOHANG) != (0, 0):
            return
        pidfd = os.pidfd_open(agent.pid)
        try:
            if not select.select([pidfd], [], [], _END_SECONDS)[0]:
                os.kill(agent.pid, signal.SIGKILL)
            os.waitpid(agent.pid, 0)
        finally:
            os.close(pidfd)


def _connection(stream: Stream) -> Connection[ToHome]:
    return Connection(stream, Codec("msgpack"), ToHome)
