"""What becomes of the goroutines of a spread program, as events for those who decide where they run.

Each host tells what probes in the program have recorded there (`event_reader.py`); here that is put in the order of
time, and named. A goroutine has no number yet when it is created, so its creation is told when it is next seen. Who
hears of an event may say at which host the goroutine is to run. That is a wish as an operator's: the goroutine goes
there when its thread is next stopped while it computes, and that thread is stopped as soon as it is seen to run it.

Source: Go's runtime (runtime2.go, proc.go) for what changes of status mean, by `ptserver.tracelog.go_events`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from ptserver.messages import GoroutineEvent
from ptserver.spread.event_reader import END_NS
from ptserver.spread.goroutine_order import TimeOrder
from ptserver.spread.messages import Change, Happened
from ptserver.spread.threads import Threads
from ptserver.spread.wishes import Wish, Wishes
from ptserver.tracelog.events import Frame
from ptserver.tracelog.go_events import CHANGES, block_reason

#: What there are events of.
KINDS = ("create", "start", "block", "unblock", "exit", "move")

#: Says where a goroutine, by its number, is to run.
Place = Callable[[int, int], None]


class Decider(Protocol):
    """Hears of events, and may say where goroutines are to run."""

    @property
    def kinds(self) -> Collection[str]:
        """Of which events it wants to hear, of `KINDS`."""

    def take(self, events: Sequence[GoroutineEvent], lost: int, place: Place) -> None:
        """Take events, and call *place* now or later. lost: how many before these are missing."""


class Names(Protocol):
    """Names the program's code."""

    def __call__(self, addresses: bytes) -> tuple[Frame, ...]:
        """Return the frames of return addresses, 8 bytes each."""

    def function_at(self, pc: int) -> str:
        """Return the name of the function there, or an empty one."""


class _Moved(NamedTuple):
    """A thread has come to a host."""

    at_ns: int
    tid: int
    origin: int


class _Known(NamedTuple):
    """A goroutine that there is."""

    address: int
    function: str


class GoroutineEvents:
    """Takes what hosts tell; gives it to *deciders*, and does what they say.

    names, wait_reasons: of the program. goid_offset: where a g has its number. is_ready: whether threads may go to a
    host. hosts: those there are at the beginning.
    """

    def __init__(
        self,
        names: Names,
        wait_reasons: Sequence[str],
        goid_offset: int,
        threads: Threads,
        wishes: Wishes,
        is_ready: Callable[[int], bool],
        hosts: Collection[int],
        deciders: Sequence[Decider],
    ) -> None:
        self._names = names
        self._wait_reasons = wait_reasons
        self._goid_offset = goid_offset
        self._threads = threads
        self._wishes = wishes
        self._is_ready = is_ready
        self._deciders = deciders
        self._order: TimeOrder[Change | _Moved] = TimeOrder()
        for host in hosts:
            self._order.join(host)
        self._created: dict[int, tuple[int, Change]] = {}
        self._running: dict[int, int] = {}
        self._known: dict[int, _Known] = {}
        self._goids: dict[int, int] = {}  # by address, of the last that was there
        self._functions: dict[int, str] = {}
        self._lost = 0

    def join(self, host: int) -> None:
        """Expect what happens at another host."""
        self._order.join(host)

    def remove(self, host: int) -> None:
        """Expect nothing more of a host."""
        self._order.remove(host)
        self._hand_on()

    def moved(self, tid: int, origin: int, host: int, at_ns: int) -> None:
        """Note that a thread has gone from one host to another."""
        self._order.add(host, [(at_ns, _Moved(at_ns, tid, origin))])

    def take(self, host: int, message: Happened) -> None:
        """Take what a host tells."""
        self._order.add(host, ((change.at_ns, change) for change in message.changes))
        self._order.known(host, message.until_ns)
        self._lost += message.lost
        self._hand_on()

    @property
    def is_over(self) -> bool:
        """Whether all hosts have told the last."""
        return self._order.is_over(END_NS)

    def place(self, goid: int, host: int) -> None:
        """Want a goroutine at *host*, if there are both."""
        known = self._known.get(goid)
        if known is not None and self._is_ready(host):
            at = known.address + self._goid_offset
            self._wishes.add(Wish(known.address, goid, at, 0, 0, host, None))
            self._go(goid)

    def _hand_on(self) -> None:
        events: list[GoroutineEvent] = []
        for host, item in self._order.take():
            events += self._moved(host, item) if isinstance(item, _Moved) else self._changed(host, item)
        if not events and not self._lost:
            return
        lost, self._lost = self._lost, 0
        for decider in self._deciders:
            wanted = [event for event in events if event.what in decider.kinds]
            if wanted or lost:
                decider.take(wanted, lost, self.place)
        for event in events:
            if event.what == "start":
                self._go(event.goid)
            elif event.what == "exit":
                known = self._known.pop(event.goid, None)
                if known is not None:
                    self._wishes.forget(known.address, event.goid)

    def _go(self, goid: int) -> None:
        """Stop the thread that runs a goroutine which is wanted elsewhere, so that it goes there."""
        known = self._known.get(goid)
        wish = self._wishes.find(known.address) if known is not None else None
        if wish is None or wish.goid != goid or not self._is_ready(wish.to):
            return
        for tid, running in self._running.items():
            thread = self._threads.find(tid) if running == goid else None
            if thread is not None and thread.host != wish.to:
                self._threads.stop(thread)

    def _moved(self, host: int, moved: _Moved) -> list[GoroutineEvent]:
        goid = self._running.get(moved.tid)
        known = self._known.get(goid) if goid is not None else None
        if goid is None or known is None:
            return []
        return [
            GoroutineEvent(moved.at_ns, "move", goid, host, moved.tid, known.function, origin=moved.origin)
        ]

    def _changed(self, host: int, change: Change) -> list[GoroutineEvent]:
        what = CHANGES.get((change.old, change.new))
        if what is None:
            return []
        if what == "create":
            self._created[change.goroutine] = (host, change)
            return []
        goid = change.goid
        known = self._known.get(goid)
        if known is None:
            self._known.pop(self._goids.get(change.goroutine, 0), None)  # whose end is missing
            self._goids[change.goroutine] = goid
            known = self._known[goid] = _Known(change.goroutine, self._function(change.entry))
        events = []
        created = self._created.pop(change.goroutine, None)
        if created is not None:
            events.append(self._event("create", goid, *created, known.function))
        if what == "start":
            self._running[change.tid] = goid
        else:  # what is unblocked may have been preempted for a moment, which is not told
            for tid in [tid for tid, running in self._running.items() if running == goid]:
                del self._running[tid]
        events.append(self._event(what, goid, host, change, known.function))
        return events

    def _event(self, what: str, goid: int, host: int, change: Change, function: str) -> GoroutineEvent:
        reason = ""
        if what == "block":
            step = change.old, change.new
            reason = block_reason(self._wait_reasons, change.reason, step, self._names(change.stack))
        by = change.by if change.by != goid else 0
        return GoroutineEvent(change.at_ns, what, goid, host, change.tid, function, by, reason)  # type: ignore[arg-type]

    def _function(self, entry: int) -> str:
        name = self._functions.get(entry)
        if name is None:
            name = self._functions[entry] = self._names.function_at(entry)
        return name
