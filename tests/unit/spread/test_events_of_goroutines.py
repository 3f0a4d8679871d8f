"""What becomes of goroutines, from what hosts tell of it: in the order of time, with names, and with effect."""

from collections.abc import Sequence

from ptserver.messages import GoroutineEvent
from ptserver.spread.address_space import AddressSpace
from ptserver.spread.event_reader import END_NS
from ptserver.spread.goroutine_events import GoroutineEvents, Place
from ptserver.spread.goroutine_order import TimeOrder
from ptserver.spread.home import Home
from ptserver.spread.messages import Change, Happened, SpreadMessage, Stop
from ptserver.spread.placement import Stay
from ptserver.tracelog.events import Frame

_RUNNABLE, _RUNNING, _WAITING, _DEAD = 1, 2, 4, 6
_G, _TID = 0xC000, 7


class _Names:
    def __call__(self, addresses: bytes) -> tuple[Frame, ...]:
        return ()

    def function_at(self, pc: int) -> str:
        return f"main.at{pc}"


class _Recorder:
    """Hears all, and wants what is in *wanted* by its number when it is created."""

    kinds = ("create", "start", "block", "exit", "move")

    def __init__(self, wanted: dict[int, int]) -> None:
        self.heard: list[tuple[str, int, int, int]] = []
        self.events: list[GoroutineEvent] = []
        self.lost = 0
        self._wanted = wanted

    def take(self, events: Sequence[GoroutineEvent], lost: int, place: Place) -> None:
        self.lost += lost
        for event in events:
            self.events.append(event)
            self.heard.append((event.what, event.goid, event.host, event.monotonic_ns))
            if event.what == "create" and event.goid in self._wanted:
                place(event.goid, self._wanted[event.goid])


class _Hosts:
    """A home with two hosts, whose thread `_TID` runs at host 0."""

    def __init__(self, wanted: dict[int, int] | None = None) -> None:
        self.sent: list[tuple[int, SpreadMessage]] = []
        self.home = Home(2, lambda *told: self.sent.append(told), lambda *_: None, Stay(), AddressSpace())
        self.home.threads.begin(_TID)
        self.recorder = _Recorder(wanted or {})
        self.home.events = GoroutineEvents(
            *(_Names(), ("", "waits"), 16, self.home.threads, self.home.wishes),
            *(self.home.members.is_ready, self.home.members.present, [self.recorder]),
        )

    def tell(self, host: int, until_ns: int, *changes: Change, lost: int = 0) -> None:
        self.home.take(host, Happened(until_ns, changes, lost))


def _change(at_ns: int, old: int, new: int, goid: int = 0, *, g: int = _G, tid: int = _TID) -> Change:
    return Change(at_ns, tid, old, new, g, goid, 1, 1, 40, b"")


def test_events_of_hosts_come_in_the_order_of_time_when_all_have_told() -> None:
    order: TimeOrder[str] = TimeOrder()
    order.join(0)
    order.join(1)
    order.add(0, [(30, "c"), (10, "a")])
    order.known(0, 40)
    assert list(order.take()) == []
    order.add(1, [(20, "b")])
    order.known(1, 25)
    assert list(order.take()) == [(0, "a"), (1, "b")]
    order.remove(1)
    assert list(order.take()) == [(0, "c")]
    assert not order.is_over(END_NS)
    order.known(0, END_NS)
    assert order.is_over(END_NS)


def test_a_goroutine_that_another_host_starts_is_told_from_its_creation_on() -> None:
    hosts = _Hosts()
    hosts.tell(1, 50, _change(20, _RUNNABLE, _RUNNING, 5), _change(30, _RUNNING, _WAITING, 5))
    assert hosts.recorder.heard == []
    hosts.tell(0, 50, _change(10, _DEAD, _RUNNABLE))
    assert hosts.recorder.heard == [("create", 5, 0, 10), ("start", 5, 1, 20), ("block", 5, 1, 30)]
    assert {event.function for event in hosts.recorder.events} == {"main.at40"}
    assert [event.reason for event in hosts.recorder.events] == ["", "", "waits"]


def test_a_thread_that_moves_is_told_of_the_goroutine_that_it_runs_then() -> None:
    hosts = _Hosts()
    assert hosts.home.events is not None
    hosts.home.events.moved(_TID, 0, 1, 25)
    hosts.tell(0, 50, _change(20, _RUNNABLE, _RUNNING, 5), _change(30, _RUNNING, _DEAD, 5))
    hosts.home.events.moved(_TID, 1, 0, 45)
    hosts.tell(1, 50)
    assert hosts.recorder.heard == [("start", 5, 0, 20), ("move", 5, 1, 25), ("exit", 5, 0, 30)]
    assert hosts.recorder.events[1].origin == 0


def test_who_hears_of_a_goroutine_has_it_stopped_to_go_elsewhere_whenever_it_starts() -> None:
    hosts = _Hosts({5: 1})
    hosts.tell(1, 60)
    hosts.tell(0, 50, _change(10, _DEAD, _RUNNABLE), _change(20, _RUNNABLE, _RUNNING, 5))
    assert hosts.sent == [(0, Stop(_TID))] * 2  # for the decision, and because it started
    hosts.sent.clear()
    hosts.tell(0, 60, _change(51, _RUNNING, _WAITING, 5))
    assert hosts.sent == []
    hosts.tell(1, 80)
    hosts.tell(0, 80, _change(61, _RUNNABLE, _RUNNING, 5))
    assert hosts.sent == [(0, Stop(_TID))]


def test_what_is_wanted_of_a_goroutine_ends_with_it() -> None:
    hosts = _Hosts({5: 1})
    hosts.tell(1, 100)
    hosts.tell(0, 50, _change(10, _DEAD, _RUNNABLE), _change(20, _RUNNABLE, _RUNNING, 5))
    assert hosts.home.wishes.find(_G) is not None
    hosts.tell(0, 60, _change(51, _RUNNING, _DEAD, 5))
    assert hosts.home.wishes.find(_G) is None


def test_no_host_that_is_not_ready_is_wanted() -> None:
    hosts = _Hosts({5: 7})
    hosts.tell(1, 100)
    hosts.tell(0, 50, _change(10, _DEAD, _RUNNABLE), _change(20, _RUNNABLE, _RUNNING, 5))
    assert hosts.home.wishes.find(_G) is None
    assert hosts.sent == []


def test_lost_events_are_told() -> None:
    hosts = _Hosts()
    hosts.tell(0, 50, lost=3)
    assert hosts.recorder.lost == 3
