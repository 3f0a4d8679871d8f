"""The loop of a spread program's home, which it shares with the hosts of its own process."""

import contextlib
import os
import signal
from collections.abc import Callable, Sequence

import msgspec

from ptserver.errors import ConnectionLostError, LaunchError, PtServerError
from ptserver.hosts.signals import HostSignals, is_passed_on
from ptserver.net.awake_processors import AwakeProcessors
from ptserver.net.keepalive import KeepAlive
from ptserver.net.poll_loop import PollLoop
from ptserver.net.urgency import be_urgent
from ptserver.spread.adaptations import ADAPTATIONS, Adaptations
from ptserver.spread.address_space import ANYWHERE, AddressSpace
from ptserver.spread.agents import LOCAL, Agent, Agents, HostAddress
from ptserver.spread.children import Children
from ptserver.spread.fault_log import FaultLog
from ptserver.spread.hearing import Hearing
from ptserver.spread.home import Home
from ptserver.spread.inner_hosts import InnerHosts
from ptserver.spread.links import Straight
from ptserver.spread.messages import Alive, Begin, Ready, Several, SpreadMessage
from ptserver.spread.placement import Placement
from ptserver.spread.processors import ProcessorError, check
from ptserver.spread.requests import HostFailedError
from stepping.errors import SteppingError
from stepping.instance import Instance
from stepping.syscalls import Sysno

#: How long hosts may take to tell the last of what became of goroutines.
_LAST_EVENTS_SECONDS = 1.0
#: How long to wait awake for the next call of a thread that goes on: it mostly makes one soon.
_AWAKE_SECONDS = 60e-6
#: Called with why something could not be done (empty if it was), and the host.
Told = Callable[[str, int], None]


class HostLostError(PtServerError):
    """A host of a spread program is gone, and threads and memory of the program with it."""

    exit_status = 69


class SpreadSession:
    """Runs the program of *instance*, which is host 0, over that, the hosts *inner* of this process, which it makes,
    and *agents*; both by number. home: decides; loop: waits. Close it.

    path: the program's file.

    unused: what the program does not use of this machine's processor, so that further hosts may lack it.
    adaptations: what is changed in the program at all hosts; `unadapted`: those for which its code is unknown.
    hearing: who hears of its goroutines, if anybody does. straight: between which hosts pages go straight.
    traced: the calls for which the filter of *instance* wants a tracer. children: those of the program.
    """

    def __init__(
        self,
        placement: Placement,
        instance: Instance,
        signals: HostSignals,
        agents: Agents,
        inner: Sequence[int],
        path: str,
        keepalive_seconds: float,
        check_seconds: float,
        unused: frozenset[str],
        adaptations: Adaptations,
        fault_log: FaultLog | None = None,
        hearing: Hearing | None = None,
        straight: Straight = Straight.FAR,
        traced: Sequence[Sysno] = (),
    ) -> None:
        self._fault_log = fault_log
        self._hearing = hearing
        self._unused = unused
        self._patches = adaptations.patches + (hearing.patches if hearing is not None else ())
        changed = [instance.change_code(*msgspec.structs.astuple(patch)) for patch in adaptations.patches]
        self.unadapted = adaptations.missing if all(changed) else tuple(ADAPTATIONS)
        self.loop = PollLoop(prompt=True, awake_seconds=_AWAKE_SECONDS)
        self._processors = AwakeProcessors(self.loop.later)
        self.agents = agents
        self.pid = instance.pid
        self._signals = signals
        self._keepalive_seconds = keepalive_seconds
        self._to_begin = inner
        self._inner = InnerHosts(path, self.loop, self._tell_home, self._lost)
        self._joining: dict[int, Told] = {}
        self._keepalives: dict[int, KeepAlive] = {}
        space = AddressSpace()
        image = instance.keep_image()
        instance.add_region(*ANYWHERE)
        for region in image.regions:
            space.add_region(*region, mapped=True)
        space.add_region(*ANYWHERE)
        numbers = list(agents)
        self._last_number = len(numbers) + len(inner)
        self.home = Home(
            1 + self._last_number,
            self._send,
            self.loop.later,
            placement,
            space,
            check_seconds,
            straight,
            self._inner.peek,
        )
        self.home.threads.begin(instance.pid)
        self.home.pages.place(0, instance.present)
        if hearing is not None:
            emit = self._inner.emitter(0)
            hearing.begin(self.home, instance, emit, self.loop, placement, keepalive_seconds)
        self.children = Children(self.loop, traced)
        self._inner.add(0, instance, self.children)
        self.loop.watch(signals.fileno(), self._on_signal)
        self.loop.look_awake(signals.fileno(), self._inner.take_stop)
        for number in numbers:
            self._begin(number, _must_start)

    def run(self) -> int:
        """Run the program to its end; return its raw wait status.

        Raises:
            LaunchError, HostLostError: as `ptserver.spread.run.run_spread`.
        """
        for number in self._to_begin:
            _must_start(self._begin_inner(number), number)
            self.home.set_ready(number)
        be_urgent()
        self._flush()
        for number in self.agents:
            if self.agents[number].connection.has_received:
                self.agents[number].read()
        while self._joining:
            self._round()
        self._inner[0].run_main()
        while self.home.status is None:
            self._round()
        self._flush()
        if self._hearing is not None:
            self._hear_the_last(self._hearing, self.home.status)
        return self.home.status

    def _hear_the_last(self, hearing: Hearing, status: int) -> None:
        """Take what hosts still have to tell of goroutines."""
        assert self.home.events is not None
        hearing.finish()
        self._inner.finish_events()
        late: list[bool] = []
        self.loop.later(_LAST_EVENTS_SECONDS, lambda: late.append(True))
        while not (self.home.events.is_over or late):
            self._round()
        hearing.end(status)

    def join(self, where: HostAddress, told: Told) -> None:
        """Take another host, which tells when it is ready."""
        if where.address == LOCAL:
            number = self._new_number()
            error = self._begin_inner(number)
            if not error:
                self.home.join(number)
                self.home.set_ready(number)
            told(error, number)
            return

        def take(found: Agent | PtServerError) -> None:
            if isinstance(found, PtServerError):
                told(str(found), 0)
                return
            try:
                check(where.address, found.lacks - self._unused)
            except ProcessorError as error:
                found.connection.close()
                told(str(error), 0)
                return
            number = self._new_number()
            self.agents.add(number, found)
            self._begin(number, told)
            self.home.join(number)

        self.agents.reach_meanwhile(where, self.loop, take)

    def drain(self, host: int, told: Told) -> None:
        """Have everything of the program move off a host, and let that go."""

        def done() -> None:
            self._flush()
            self._let_go(host)
            told("", host)

        if host == 0:
            told("host 0 is where the program began: it has its files and children, and stays", 0)
        elif not self.home.members.is_ready(host):
            told(f"there is no host {host}, or it joins or leaves just now", host)
        else:
            self.home.empty(host, done)

    def address(self, host: int) -> str:
        """Return where a host is, as the user says it."""
        return LOCAL if host in self._inner else self.agents[host].where.address

    def close(self) -> None:
        """Have the processes of the hosts of this one end, but for host 0's."""
        self._processors.close()
        self._inner.close()

    def _new_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _begin_message(self, number: int, clock_offset_ns: int = 0) -> Begin:
        return Begin(
            number,
            tuple(self.home.space.regions),
            self._keepalive_seconds,
            clock_offset_ns,
            self._patches,
            self._hearing.recorder if self._hearing is not None else None,
        )

    def _begin_inner(self, number: int) -> str:
        """Make a host of this process; return why it cannot be had, or nothing."""
        try:
            self._inner.begin(self._begin_message(number))
        except (SteppingError, OSError) as error:
            return str(error)
        return ""

    def _begin(self, number: int, told: Told) -> None:
        agent = self.agents[number]
        self.home.turns.note_round_trip(agent.round_trip_ns / 1e9)
        agent.read = self._reader(number, agent)
        self._joining[number] = told
        agent.connection.send(self._begin_message(number, agent.clock_offset_ns))
        self._keepalives[number] = KeepAlive(
            agent.connection,
            self.loop.later,
            self._keepalive_seconds,
            lambda reason: self._lost(number, reason),
            lambda _: Alive(answer=True),
        )

    def _let_go(self, number: int) -> None:
        if number in self._inner:
            self._inner.remove(number)
            return
        self._keepalives.pop(number).stop()
        self.loop.unwatch(self.agents[number].connection.fileno())
        self.agents.remove(number)

    def _round(self) -> None:
        self.home.flush()
        while self._inner.hand_over():
            self.home.flush()
        if self._inner.has_let_go_on():
            self.loop.expect()
        self._processors.note()
        self.loop.round(self._flush)

    def _flush(self) -> None:
        self.home.flush()
        self.agents.flush(self.loop)

    def _send(self, host: int, message: SpreadMessage) -> None:
        if self._fault_log is not None:
            self._fault_log.sent(host, message)
        if host in self._inner:
            self._inner.say(host, message)
        else:
            self.agents[host].bundle.say(message)

    def _tell_home(self, host: int, message: SpreadMessage) -> None:
        if self._fault_log is not None:
            self._fault_log.taken(host, message)
        try:
            self.home.take(host, message)
        except HostFailedError as error:
            raise HostLostError(f"{error}; the program has been killed") from error

    def _reader(self, number: int, agent: Agent) -> Callable[[], None]:
        def read() -> None:
            try:
                messages = agent.connection.receive()
            except ConnectionLostError as error:
                self._lost(number, str(error))
                return
            for message in messages:
                for each in message.messages if isinstance(message, Several) else (message,):
                    self._take(number, each)

        return read

    def _lost(self, number: int, reason: str) -> None:
        """Take the loss of a host: the program goes on if nothing of it was there.

        Raises:
            HostLostError: something was.
        """
        if self.home.status is not None:
            if number in self._inner:
                return
            self.loop.unwatch(self.agents[number].connection.fileno())
            if self.home.events is not None:
                self.home.events.remove(number)
            return
        if self.home.members.condition(number) is None:
            return
        told = self._joining.pop(number, None)
        if told is _must_start or not self.home.abandon(number):
            raise HostLostError(
                f"host {number} of the program is lost ({reason}); the program has been killed"
            )
        self._let_go(number)
        if told is not None:
            told(f"it is lost: {reason}", number)

    def _take(self, number: int, message: SpreadMessage) -> None:
        if isinstance(message, Alive):
            if message.answer:
                self.agents[number].connection.send(Alive(answer=False))
            return
        if isinstance(message, Ready):
            told = self._joining.pop(number)
            if message.error:
                told(message.error, number)
                self.home.abandon(number)
                self._let_go(number)
            else:
                self.home.set_ready(number, self.agents[number].place(message.listening))
                told("", number)
            return
        self._tell_home(number, message)

    def _on_signal(self) -> None:
        for signo, from_kernel in self._signals.receive():
            if signo == signal.SIGCHLD:
                while self._inner.take_stop():
                    pass
            elif is_passed_on(signo) and not from_kernel:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signo)


def _must_start(error: str, host: int) -> None:
    if error:
        raise LaunchError(f"host {host} cannot execute the program: {error}")
