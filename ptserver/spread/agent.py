"""The agent of a host other than the home's own: keeps a blank instance, for as long as the connection lasts."""

import contextlib
import os
import select
import signal
import socket
import traceback

from ptserver.connection import Connection
from ptserver.errors import ConnectionLostError
from ptserver.host_signals import HostSignals
from ptserver.poll_loop import PollLoop
from ptserver.spread.host import SpreadHost
from ptserver.spread.messages import Begin, Ready, ToHost
from ptserver.wire import Codec
from stepping.errors import SteppingError
from stepping.instance import Image, Instance, instance_filter
from stepping.launch import Program
from stepping.seccomp import Rule, Verdict
from stepping.syscalls import SYSCALLS, Sysno

#: What a thread away from host 0 does by itself; all else is for the home to decide.
_LOCAL = frozenset(
    "clock_gettime nanosleep sched_yield getrandom rt_sigprocmask rt_sigreturn sigaltstack getcpu".split()
)
_LAST_NUMBER = 1023
_FIRST_HYPERCALL, _LAST_HYPERCALL = 0xFFF0, 0xFFFF


def blank_filter() -> bytes:
    """Return the filter of a blank instance."""
    local = {SYSCALLS[name].numbers["amd64"] for name in _LOCAL}
    numbers = [*range(_LAST_NUMBER + 1), *range(_FIRST_HYPERCALL, _LAST_HYPERCALL + 1)]
    rules = [Rule(Sysno(number), Verdict.TRACE) for number in numbers if number not in local]
    return instance_filter(rules, "amd64")


def run_agent(sock: socket.socket) -> None:
    """Be what `Begin` says, over *sock*, until the home says `Quit` or is gone."""
    connection: Connection[ToHost] = Connection(sock, Codec("msgpack"), ToHost)
    signals = HostSignals()
    loop = PollLoop()
    agent = _Agent(connection, loop)
    loop.watch(signals.fileno(), lambda: agent.take_signals(signals))
    loop.watch(connection.fileno(), agent.take_messages)
    try:
        with contextlib.suppress(ConnectionLostError):
            agent.run()
    finally:
        agent.close()
        signals.close()


class _Agent:
    def __init__(self, connection: Connection[ToHost], loop: PollLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._host: SpreadHost | None = None

    def run(self) -> None:
        while self._host is None or not self._host.ended:
            flushed = self._connection.flush()
            events = select.POLLIN if flushed else select.POLLIN | select.POLLOUT
            self._loop.watch(self._connection.fileno(), self.take_messages, events)
            self._loop.round()

    def take_messages(self) -> None:
        for message in self._connection.receive():
            if isinstance(message, Begin):
                self._begin(message)
            elif self._host is not None:
                self._host.take(message)
        if self._host is not None:
            self._host.take_faults()

    def take_signals(self, signals: HostSignals) -> None:
        signals.receive()
        if self._host is not None:
            self._host.take_stops()

    def close(self) -> None:
        if self._host is not None:
            self._host.instance.close()
        self._connection.close()

    def _begin(self, message: Begin) -> None:
        try:
            self._host = self._make_host(message)
        except SteppingError as error:
            self._connection.send(Ready(str(error)))
            return
        self._loop.watch(self._host.instance.faults.fileno(), self._host.take_faults)
        self._connection.send(Ready())

    def _make_host(self, message: Begin) -> SpreadHost:
        null = os.open(os.devnull, os.O_RDWR)
        program = Program(
            path=message.path,
            argv=[os.fsencode(message.path)],
            env=[],
            bpf=blank_filter(),
            stdio=(null, null, null),
            new_session=True,
        )
        if message.cpu is not None:
            os.sched_setaffinity(0, {message.cpu})
        instance = Instance(program)
        os.close(null)
        try:
            instance.be_blank(Image(message.regions))
        except BaseException:
            instance.close()
            raise
        return SpreadHost(message.host, instance, self._connection.send)


def fork_agent() -> tuple[int, socket.socket]:
    """Start an agent as a child of this process; return its process and the home's end of its connection."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        ours.close()
        signal.set_wakeup_fd(-1)
        run_agent(theirs)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
