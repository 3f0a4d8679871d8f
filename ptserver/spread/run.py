"""Runs a program spread over several hosts: the home, with host 0, in this process.

What the home and host 0 say to each other goes through a queue, so that each finishes with one message before the
next.
"""

import contextlib
import os
import select
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ptserver.errors import ConnectionLostError, LaunchError, PtServerError
from ptserver.hosts.signals import HostSignals, is_passed_on
from ptserver.net.connection import Connection
from ptserver.net.poll_loop import PollLoop
from ptserver.net.wire import Codec
from ptserver.spread.address_space import ANYWHERE, AddressSpace
from ptserver.spread.agent import fork_agent
from ptserver.spread.home import Home
from ptserver.spread.host import SpreadHost
from ptserver.spread.messages import Begin, Ready, SpreadMessage, ToHome
from ptserver.spread.offer import offer_spread
from ptserver.spread.placement import Placement
from ptserver.spread.requests import HostFailedError
from ptserver.stub.hypercalls import FIRST_HYPERCALL, LAST_HYPERCALL
from stepping.instance import Instance, instance_filter
from stepping.launch import Program
from stepping.seccomp import Rule, Verdict
from stepping.syscalls import SYSCALLS, Sysno

#: Calls of host 0's own threads that the home decides; it makes all others itself.
_HOME_CALLS = "mmap munmap mprotect madvise brk mremap mincore futex tgkill tkill rt_sigaction clone3".split()


#: The name of a host on this machine that the home starts by itself.
LOCAL = "local"


class HostLostError(PtServerError):
    """A host of a spread program is gone, and threads and memory of the program with it."""

    exit_status = 69


@dataclass(frozen=True)
class SpreadOptions:
    """What to run. hosts: the others: addresses where `ptserver remote` waits, or `LOCAL` for one on this machine.

    keys: the folder of keys for them, if any; token_file: as for `ptserver run`; cpus: one for each host, this one
    first, if they are to be pinned.
    """

    path: str
    argv: list[bytes]
    env: Sequence[bytes]
    hosts: Sequence[str]
    placement: Placement
    keys: str | None = None
    token_file: str | None = None
    cpus: Sequence[int] = ()


def run_spread(options: SpreadOptions) -> int:
    """Run the program; return its raw wait status.

    Raises:
        LaunchError: a host cannot execute it.
        HostLostError: a host was lost; the program has been killed.
        SteppingError: the kernel refuses what is needed.
    """
    with contextlib.ExitStack() as stack:
        agents = [_reach_agent(stack, options, host) for host in options.hosts]
        signals = HostSignals()
        stack.callback(signals.close)
        if options.cpus:
            os.sched_setaffinity(0, {options.cpus[0]})
        instance = Instance(
            Program(
                path=options.path,
                argv=options.argv,
                env=options.env,
                bpf=_filter(),
                blocked=signals.original_mask,
            )
        )
        stack.callback(instance.close)
        session = _Session(options, instance, signals, agents)
        return session.run()


def _reach_agent(stack: contextlib.ExitStack, options: SpreadOptions, host: str) -> Connection[ToHome]:
    if host == LOCAL:
        pid, sock = fork_agent(options.path)
        stack.callback(_end_agent, pid)
        connection: Connection[ToHome] = Connection(sock, Codec("msgpack"), ToHome)
    else:
        stream = offer_spread(options.path, host, options.keys, options.token_file)
        connection = Connection(stream, Codec("msgpack"), ToHome)
    stack.callback(connection.close)
    return connection


def _end_agent(pid: int) -> None:
    """Wait for an agent, whose connection is closed, so it ends."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _filter() -> bytes:
    numbers = [SYSCALLS[name].numbers["amd64"] for name in _HOME_CALLS]
    numbers += map(Sysno, range(FIRST_HYPERCALL, LAST_HYPERCALL + 1))
    return instance_filter([Rule(number, Verdict.TRACE) for number in numbers], "amd64")


class _Session:
    """The loop of the home."""

    def __init__(
        self,
        options: SpreadOptions,
        instance: Instance,
        signals: HostSignals,
        agents: list[Connection[ToHome]],
    ) -> None:
        self._signals = signals
        self._agents = agents
        self._queue: deque[Callable[[], None]] = deque()
        self._loop = PollLoop()
        self._ready = 0
        space = AddressSpace()
        image = instance.keep_image()
        instance.add_region(*ANYWHERE)
        for region in image.regions:
            space.add_region(*region, mapped=True)
        space.add_region(*ANYWHERE)
        self._home = Home(1 + len(agents), self._send, self._loop.later, options.placement, space)
        self._home.begin(instance.pid)
        self._home.pages.place(0, instance.present)
        self._host = SpreadHost(0, instance, self._take_own)
        self._loop.watch(signals.fileno(), self._on_signal)
        self._loop.watch(instance.faults.fileno(), self._host.take_faults)
        self._readers = [self._reader(number, agent) for number, agent in enumerate(agents, 1)]
        for number, agent in enumerate(agents, 1):
            cpu = options.cpus[number] if options.cpus else None
            agent.send(Begin(number, (*image.regions, ANYWHERE), cpu))

    def run(self) -> int:
        self._flush()
        for agent, reader in zip(self._agents, self._readers, strict=True):
            if agent.has_received:
                reader()
        while self._ready < len(self._agents):
            self._round()
        self._host.run_main()
        while self._home.status is None:
            self._round()
        self._flush()
        return self._home.status

    def _round(self) -> None:
        queue = self._queue
        while queue:
            queue.popleft()()
        self._loop.round(self._flush)

    def _flush(self) -> None:
        for agent, reader in zip(self._agents, self._readers, strict=True):
            events = select.POLLIN if agent.flush() else select.POLLIN | select.POLLOUT
            self._loop.watch(agent.fileno(), reader, events)

    def _send(self, host: int, message: SpreadMessage) -> None:
        if host == 0:
            self._queue.append(lambda: self._host.take(message))
        else:
            self._agents[host - 1].send(message)

    def _take_own(self, message: SpreadMessage) -> None:
        self._queue.append(lambda: self._home.take(0, message))

    def _reader(self, number: int, agent: Connection[ToHome]) -> Callable[[], None]:
        def read() -> None:
            try:
                messages = list(agent.receive())
            except ConnectionLostError as error:
                if self._home.status is not None:
                    return
                raise HostLostError(
                    f"host {number} of the program is lost; the program has been killed"
                ) from error
            for message in messages:
                self._take(number, message)

        return read

    def _take(self, number: int, message: ToHome) -> None:
        if isinstance(message, Ready):
            if message.error:
                raise LaunchError(f"host {number} cannot execute the program: {message.error}")
            self._ready += 1
            return
        try:
            self._home.take(number, message)
        except HostFailedError as error:
            raise HostLostError(f"{error}; the program has been killed") from error

    def _on_signal(self) -> None:
        for signo, from_kernel in self._signals.receive():
            if signo == signal.SIGCHLD:
                self._host.take_stops()
            elif is_passed_on(signo) and not from_kernel:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._host.instance.pid, signo)
