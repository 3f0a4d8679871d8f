"""The hosts that the home's own process keeps: host 0, and those on this machine that have no agent.

What they and the home say to each other is not encoded. It waits in one queue, in order, so that each finishes with
one message before the next.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

from ptserver.net.poll_loop import PollLoop
from ptserver.spread.blank import make_blank
from ptserver.spread.children import Children
from ptserver.spread.event_reader import EventReader
from ptserver.spread.host import SpreadHost
from ptserver.spread.host_pages import Emit
from ptserver.spread.messages import Begin, SpreadMessage
from ptserver.spread.reports import take_stop
from ptserver.spread.requests import Later
from stepping.instance import Instance

_Take = Callable[[SpreadMessage], None]


class InnerHosts:
    """Hosts by number, of the program *path*. Close it; host 0's instance is closed by who made it.

    tell: called with a host's number and what it says. lost: called with the number of a host whose process has
    ended, and why, also more than once.
    """

    def __init__(
        self,
        path: str,
        loop: PollLoop,
        tell: Callable[[int, SpreadMessage], None],
        lost: Callable[[int, str], None],
    ) -> None:
        self._path = path
        self._loop = loop
        self._tell = tell
        self._lost = lost
        self._hosts: dict[int, SpreadHost] = {}
        self._all: tuple[SpreadHost, ...] = ()
        self._readers: dict[int, EventReader] = {}
        self._waiting: deque[tuple[int, _Take, SpreadMessage]] = deque()  # whose, who takes it, what
        self._goes_on = False

    def __contains__(self, number: int) -> bool:
        return number in self._hosts

    def __getitem__(self, number: int) -> SpreadHost:
        return self._hosts[number]

    def add(self, number: int, instance: Instance, children: Children | None = None) -> None:
        """Keep *instance* as a host. children: takes what becomes of the program's, at host 0."""
        host = SpreadHost(
            number,
            instance,
            self.emitter(number),
            self._timer(number),
            children=children,
            goes_on=self._note_goes_on,
        )
        self._hosts[number] = host
        self._all = tuple(self._hosts.values())
        self._loop.watch(instance.faults.fileno(), host.pages.take_faults)

    def begin(self, message: Begin) -> None:
        """Make a blank instance, and keep it as a host. It takes some milliseconds, on a busy machine some ten.

        Raises:
            SteppingError: it cannot be had.
        """
        instance, ring = make_blank(self._path, message)
        number = message.host
        self.add(number, instance)
        if ring is not None:
            self._readers[number] = EventReader(ring, self.emitter(number), self._timer(number), 0)

    def emitter(self, number: int) -> Emit:
        """Return what says something to the home for a host."""
        waiting, tell = self._waiting, partial(self._tell, number)
        return lambda message: waiting.append((number, tell, message))

    def say(self, number: int, message: SpreadMessage) -> None:
        """Have a host take *message*, by the next `hand_over`."""
        self._waiting.append((number, self._hosts[number].take, message))

    def peek(self, number: int, address: int, size: int) -> bytes | None:
        """Return what a host's memory holds; None if it is none of these, or has not yet taken all that was said."""
        host = self._hosts.get(number)
        if host is None or any(each[0] == number for each in self._waiting):
            return None
        return host.instance.read(address, size)

    def hand_over(self) -> bool:
        """Have everybody take what was said, and what is said for that; return whether there was anything."""
        waiting = self._waiting
        if not waiting:
            return False
        while waiting:
            _, take, message = waiting.popleft()
            take(message)
        return True

    def has_let_go_on(self) -> bool:
        """Whether a thread was let go on since this was called last: it will soon do something else."""
        goes_on, self._goes_on = self._goes_on, False
        return goes_on

    def _note_goes_on(self) -> None:
        self._goes_on = True

    def take_stop(self) -> bool:
        """Deal with a thread that has something to report, if one has; return whether."""
        if not take_stop(self._all):
            return False
        for number in [number for number, host in self._hosts.items() if number and host.ended]:
            self._lost(number, "its process has ended")
        return True

    def finish_events(self) -> None:
        """Have all hosts but host 0 tell the last of goroutines."""
        for reader in self._readers.values():
            reader.finish()

    def remove(self, number: int) -> None:
        """Let a host go, and have its process end. What it has to say is not heard any more."""
        host = self._hosts.pop(number)
        self._all = tuple(self._hosts.values())
        reader = self._readers.pop(number, None)
        if reader is not None:
            reader.finish()
        left = [each for each in self._waiting if each[0] != number]
        self._waiting.clear()
        self._waiting.extend(left)
        self._loop.unwatch(host.instance.faults.fileno())
        host.close()

    def close(self) -> None:
        """Let all go but host 0."""
        for number in [number for number in self._hosts if number]:
            self.remove(number)

    def _timer(self, number: int) -> Later:
        """Return what calls functions later, as long as the host is there."""

        def later(seconds: float, do: Callable[[], None]) -> None:
            self._loop.later(seconds, lambda: do() if number in self._hosts else None)

        return later
