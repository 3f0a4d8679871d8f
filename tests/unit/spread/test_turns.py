"""How hosts of a spread program take turns with the pages that they all want."""

from collections.abc import Callable

import pytest

from ptserver.spread.messages import SpreadMessage, Watch, Watched
from ptserver.spread.outgoing import Outgoing
from ptserver.spread.pages import PageDirectory
from ptserver.spread.turns import Turns

_ONE, _TWO, _THREE = 11, 22, 33  # threads, of hosts 1, 2, 3
_A, _B = 500, 900  # pages
_MOST_SECONDS = 0.05


class _Pages(PageDirectory):
    """Notes what is asked of it, as (host, page, whether ahead). It is there at once."""

    def __init__(self) -> None:
        super().__init__(Outgoing(lambda host, message: None), lambda page: True)
        self.asked: list[tuple[int, int, bool]] = []
        self.migratory: set[int] = set()

    def is_migratory(self, page: int) -> bool:
        return page in self.migratory

    def request(self, host: int, page: int, *, write: bool) -> None:
        self.asked.append((host, page, False))
        self.place(host, [page])

    def fetch_ahead(
        self, host: int, page: int, *, write: bool, then: Callable[[], None] | None = None
    ) -> bool:
        self.asked.append((host, page, True))
        self.place(host, [page])
        return False


class _Hosts:
    """Threads that want pages, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.pages = _Pages()
        self.turns = Turns(self.pages, self._say, lambda: self.now, self._later)
        self.busy: set[int] = set()  # the hosts that write all their pages all the time
        self.watched = 0  # how often one was asked whether it does

    def _later(self, wait: float, then: Callable[[], None]) -> None:
        self.timers.append((self.now + wait, then))

    def _say(self, host: int, message: SpreadMessage) -> None:
        assert isinstance(message, Watch)
        self.watched += 1
        answer = Watched(message.turn, host in self.busy)
        self._later(1e-5, lambda: self.turns.take_watched(host, answer))

    def want(self, tid: int, page: int, *, write: bool = True) -> bool:
        """Have a thread wait for a page; return whether it has to wait for its host's turn."""
        self.now += 1e-4
        if self.turns.defers(tid, tid // 11, page, write=write):
            return True
        self.pages.place(tid // 11, [page])
        return False

    def sleep(self, tid: int) -> None:
        self.turns.sleeps(tid, tid // 11)

    def go_on(self, seconds: float) -> list[tuple[int, int, bool]]:
        """Let time pass; return what is asked for meanwhile."""
        self.pages.asked.clear()
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda each: each[0])
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]()
        self.now = end
        return list(self.pages.asked)

    def contend(self) -> None:
        """Have host 1 in its turn with both pages, which host 2 has wanted as well."""
        for page in (_A, _B):
            assert not any(self.want(tid, page) for tid in (_TWO, _ONE, _TWO))
        assert all(self.want(_ONE, page) for page in (_A, _B))
        self.go_on(0.001)
        self.pages.asked.clear()

    def seconds_of_turn(self, other: int) -> float:
        """Return how long the turn lasts in which the host of *other* waits."""
        begin = self.now
        while self.turns.keeps(other // 11, _A):
            self.go_on(1e-4)
        return self.now - begin


@pytest.fixture
def hosts() -> _Hosts:
    return _Hosts()


def test_what_only_one_host_wants_is_handed_out_at_once(hosts: _Hosts) -> None:
    assert not any(hosts.want(_ONE, _A) for _ in range(20))
    assert not hosts.timers


def test_what_another_wants_seldom_is_handed_out_at_once(hosts: _Hosts) -> None:
    for _ in range(10):
        assert not hosts.want(_ONE, _A)
        assert not hosts.want(_TWO, _A)
        hosts.now += 1.0


def test_what_one_thread_wants_wherever_it_moves_is_handed_out_at_once(hosts: _Hosts) -> None:
    for host in (1, 2) * 10:
        assert not hosts.turns.defers(_ONE, host, _A, write=True)


def test_what_both_want_all_the_time_waits_until_the_turn_is_over(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.busy.add(1)
    assert not hosts.want(_ONE, _B)
    assert hosts.want(_TWO, _B)
    assert hosts.go_on(0.001) == []
    hosts.busy.clear()
    assert hosts.go_on(0.01)[0] == (2, _B, False)


def test_with_its_turn_a_host_gets_all_that_it_wanted_in_turns_before(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.want(_TWO, _B)
    assert (2, _A, True) in hosts.go_on(0.01)


def test_what_is_not_wanted_any_more_comes_along_for_some_turns_only(hosts: _Hosts) -> None:
    hosts.contend()
    came = []
    for _ in range(20):
        hosts.want(_ONE, _B)
        hosts.want(_TWO, _B)
        came.append((2, _A, True) in hosts.go_on(0.05))
    assert any(came)
    assert not came[-1]


def test_what_is_wanted_by_all_is_not_fetched_ahead_from_whose_turn_it_is(hosts: _Hosts) -> None:
    hosts.contend()
    assert hosts.turns.keeps(2, _A)
    assert not hosts.turns.keeps(1, _A)
    assert not hosts.turns.keeps(2, _A + 1)
    hosts.now += 1.0
    assert not hosts.turns.keeps(2, _A)


def test_a_turn_is_over_when_its_thread_falls_asleep(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.want(_TWO, _B)
    hosts.sleep(_ONE)
    assert (2, _B, False) in hosts.pages.asked


def test_who_falls_asleep_before_another_wants_its_pages_has_nobody_wait(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.sleep(_ONE)
    assert not hosts.want(_TWO, _B)


def test_a_thread_that_sleeps_while_another_of_its_host_works_ends_no_turn(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.sleep(_ONE + 1)
    assert hosts.want(_TWO, _B)


def test_who_writes_its_pages_all_the_time_has_a_long_turn(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.busy.add(1)
    assert hosts.want(_TWO, _A)
    assert hosts.seconds_of_turn(_TWO) == pytest.approx(_MOST_SECONDS, abs=1e-3)
    assert hosts.watched <= 8


def test_who_does_not_write_what_another_waits_for_has_a_short_one(hosts: _Hosts) -> None:
    hosts.contend()
    assert hosts.want(_TWO, _A)
    assert hosts.seconds_of_turn(_TWO) < 0.002


def test_who_stops_writing_has_its_turn_end_soon(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.busy.add(1)
    assert hosts.want(_TWO, _A)
    hosts.go_on(0.003)
    hosts.busy.clear()
    assert hosts.seconds_of_turn(_TWO) < 0.005


def test_an_answer_of_a_turn_that_is_over_ends_none(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.want(_TWO, _B)
    hosts.turns.take_watched(1, Watched(-1, written=False))
    assert not hosts.pages.asked


def test_what_is_only_read_is_handed_out_at_once(hosts: _Hosts) -> None:
    assert not any(hosts.want(tid, _A, write=False) for tid in (_ONE, _TWO) * 10)


def test_who_reads_what_another_writes_waits_for_its_turn(hosts: _Hosts) -> None:
    assert not hosts.want(_TWO, _A, write=False)
    assert not hosts.want(_ONE, _A)
    assert not hosts.want(_TWO, _A, write=False)
    assert hosts.want(_ONE, _A)


def test_turns_are_longer_than_the_way_to_the_farthest_host(hosts: _Hosts) -> None:
    hosts.turns.note_round_trip(0.005)
    assert not any(hosts.want(tid, _A) for tid in (_TWO, _ONE, _TWO))
    assert hosts.want(_ONE, _A)
    assert hosts.go_on(0.0045) == []
    assert hosts.go_on(0.001) != []


def test_three_hosts_have_their_turns_one_after_the_other(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.want(_TWO, _B)
    hosts.want(_THREE, _B)
    came = [host for host, _, ahead in hosts.go_on(0.05) if not ahead]
    assert came == [2, 3]


def test_the_next_has_its_turn_when_a_host_is_gone(hosts: _Hosts) -> None:
    hosts.contend()
    hosts.want(_TWO, _B)
    hosts.turns.forget_host(1)
    assert (2, _B, False) in hosts.pages.asked
    hosts.turns.forget_host(2)
    assert not hosts.want(_THREE, _B)
