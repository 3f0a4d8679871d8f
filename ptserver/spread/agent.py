"""The agent of a host other than the home's own: keeps a blank instance, for as long as the connection lasts."""

import contextlib
import os
import select
import socket
import sys
import time
import traceback

from ptserver.errors import ConnectionLostError
from ptserver.hosts.signals import HostSignals
from ptserver.net.awake_processors import AwakeProcessors
from ptserver.net.connection import Connection, Stream
from ptserver.net.keepalive import KeepAlive
from ptserver.net.poll_loop import PollLoop
from ptserver.net.urgency import be_urgent
from ptserver.net.wire import Codec
from ptserver.spread.blank import make_blank
from ptserver.spread.bundle import Bundle
from ptserver.spread.clocks import shift_clock
from ptserver.spread.event_reader import EventReader
from ptserver.spread.host import SpreadHost
from ptserver.spread.messages import Alive, Begin, ClockIs, Ready, Several, TellClock, ToHost
from ptserver.spread.peers import Peers
from ptserver.spread.reports import take_stops
from stepping.errors import SteppingError

#: How long the home may take to hear the last.
_LAST_WORDS_SECONDS = 1.0
#: Where an agent that is executed finds its connection.
_SPAWNED_FD = 3


def run_agent(stream: Stream, path: str) -> None:
    """Be what `Begin` says, for the program *path*, over *stream*, until the home says `Quit` or is gone."""
    be_urgent()
    signals = HostSignals()
    agent = _Agent(stream, signals, path)
    try:
        with contextlib.suppress(ConnectionLostError):
            agent.run()
    finally:
        agent.close()
        signals.close()


class _Agent:
    def __init__(self, stream: Stream, signals: HostSignals, path: str) -> None:
        self._stream = stream
        self._connection: Connection[ToHost] = Connection(stream, Codec("msgpack"), ToHost)
        self._bundle = Bundle(self._connection)
        self._signals = signals
        self._path = path
        self._loop = PollLoop(prompt=True)
        self._processors = AwakeProcessors(self._loop.later)
        self._host: SpreadHost | None = None
        self._peers: Peers | None = None
        self._events: EventReader | None = None
        self._loop.watch(signals.fileno(), self._take_signals)
        self._flush()
        if self._connection.has_received:
            self._take_messages()

    def run(self) -> None:
        while self._host is None or not self._host.ended:
            self._loop.round(self._flush)
            self._processors.note()
        if self._events is not None:
            self._events.finish()
        self._flush()
        self._connection.drain(_LAST_WORDS_SECONDS)

    def _flush(self) -> None:
        if self._peers is not None:
            self._peers.flush()
        events = select.POLLIN if self._bundle.flush() else select.POLLIN | select.POLLOUT
        self._loop.watch(self._connection.fileno(), self._take_messages, events)

    def _take_messages(self) -> None:
        for message in self._connection.receive():
            if isinstance(message, Alive):
                if message.answer:
                    self._connection.send(Alive(answer=False))
            elif isinstance(message, TellClock):
                self._connection.send(ClockIs(time.monotonic_ns()))
            elif isinstance(message, Begin):
                self._begin(message)
            elif self._host is not None:
                for each in message.messages if isinstance(message, Several) else (message,):
                    self._host.take(each)

    def _take_signals(self) -> None:
        self._signals.receive()
        if self._host is not None:
            take_stops((self._host,))

    def close(self) -> None:
        self._processors.close()
        if self._peers is not None:
            self._peers.close()
        if self._host is not None:
            self._host.close()
        self._connection.close()

    def _lost(self, reason: str) -> None:
        raise ConnectionLostError(reason)

    def _begin(self, message: Begin) -> None:
        KeepAlive(
            self._connection,
            self._loop.later,
            message.keepalive_seconds,
            self._lost,
            lambda _: Alive(answer=True),
        )
        try:
            shift_clock(message.clock_offset_ns)
            instance, ring = make_blank(self._path, message)
        except SteppingError as error:
            self._connection.send(Ready(str(error)))
            return
        say = self._bundle.say
        if ring is not None:
            self._events = EventReader(ring, say, self._loop.later, message.clock_offset_ns)
        peers = Peers(message.host, self._stream, self._loop, say, message.keepalive_seconds)
        host = SpreadHost(
            message.host, instance, say, self._loop.later, peers.say, peers.takers, tells_words=True
        )
        peers.begin(host.pages.passing.take, host.pages.passing.forget)
        self._loop.watch(instance.faults.fileno(), host.pages.take_faults)
        self._host, self._peers = host, peers
        self._connection.send(Ready(listening=peers.listening))


def fork_agent(path: str) -> tuple[int, socket.socket]:
    """Start an agent on this machine, a child of this process; return its pid and the home's end of its
    connection. Only for a process that has nothing yet that a child must not inherit.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        kept = theirs.fileno()  # nothing else: who holds another's connection keeps it from ending
        os.closerange(3, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        run_agent(theirs, path)
        status = 0
    finally:
        if status:  # the process ends here, and says why
            traceback.print_exc()
        os._exit(status)


def spawn_agent(path: str) -> tuple[int, socket.socket]:
    """As `fork_agent`, for a process that keeps an instance already, of which a child must have nothing."""
    ours, theirs = socket.socketpair()
    with theirs:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "ptserver.spread.agent", path],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), _SPAWNED_FD)],
            setsigmask=(),
        )
    return pid, ours


if __name__ == "__main__":
    run_agent(socket.socket(fileno=_SPAWNED_FD), sys.argv[1])
