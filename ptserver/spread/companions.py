"""Which pages are wanted together, learned from who waited for what. Pure.

A thread that waits for a page often waits for the same others right after it: the scheduler's records when it wakes,
the neighbours of what it reads through. A *burst* is what one thread waits for at one host without a pause or a call.
Its first page *leads*; the others are its *companions*, which are fetched with it the next times. So that no page is
fetched for ever that was wanted once, one companion is left out now and then; if nobody waits for it then, it counts
less. Besides, who waits for pages one after the other gets those that follow.

To fetch them as soon as the thread is woken, before it waits for the first, has been tried, and was slower: who has
woken it needs them still, to fall asleep.
"""

from dataclasses import dataclass, field

#: A thread that has not waited for so long begins a new burst.
PAUSE_SECONDS = 0.002
#: How much longer that may be for what it waits for first after it has been woken.
WAKE_SECONDS = 0.005
#: How many pages one burst may have, and of how many leaders the companions are remembered.
_MAX_BURST, _MAX_LEADERS = 32, 4096
#: From how many times in its favour on a companion is fetched, and how many count at most.
_ENOUGH, _MOST = 2, 4
#: One companion is left out one time in so many, more seldom once that has been done so often.
_LEAVE_OUT, _LEAVE_OUT_LATER, _LATER = 8, 32, 16
#: How many pages are read ahead for who reads in sequence: twice as many each time.
_FIRST_AHEAD, _MAX_AHEAD = 2, 16


@dataclass(slots=True)
class _Companion:
    write: bool
    score: int = 1


@dataclass(slots=True)
class _Leader:
    """A page that has led bursts at a host, so often (*turn*). left_out: the companion not fetched last time.

    enough: the companions that are to be fetched, as `Companions.wants` returns them; None if that has changed.
    """

    companions: dict[int, _Companion] = field(default_factory=dict)
    turn: int = 0
    left_out: int | None = None
    enough: list[tuple[int, bool]] | None = None


@dataclass(slots=True)
class _Burst:
    """key: the page that leads, and the host; leader: what is known of it, None if nothing is."""

    key: tuple[int, int]
    leader: _Leader | None
    last: float
    size: int = 0
    next_page: int = -1  # in sequence
    ahead: int = _FIRST_AHEAD
    writes: bool = False


class Companions:
    """By the page that leads and the host; and of each thread, its burst."""

    def __init__(self) -> None:
        self._leaders: dict[tuple[int, int], _Leader] = {}
        self._bursts: dict[int, _Burst] = {}

    def wants(self, tid: int, host: int, page: int, *, write: bool, now: float) -> list[tuple[int, bool]]:
        """Note that a thread waits for a page; return what to fetch for it besides, as (page, whether to write).

        now: in seconds, by any clock.
        """
        found: list[tuple[int, bool]] = []
        burst = self._bursts.get(tid)
        if (
            burst is None
            or burst.key[1] != host
            or now - burst.last > PAUSE_SECONDS
            or burst.size >= _MAX_BURST
        ):
            key = page, host
            leader = self._leaders.pop(key, None)
            if leader is not None:
                self._leaders[key] = leader
                _add_companions(leader, found)
            burst = self._bursts[tid] = _Burst(key, leader, now)
        else:
            burst.size += 1
            burst.last = now
            if burst.leader is None:
                burst.leader = self._lead(burst.key)
            _wanted(burst.leader, page, write)
            if burst.size == 1 and burst.key[0] < 0 and (known := self._leaders.get((page, host))):
                _add_companions(known, found)
        _add_sequence(burst, page, write, found)
        return found

    def wakes(self, tid: int, host: int, now: float) -> list[tuple[int, bool]]:
        """Note that a thread is about to be woken at a host; return what to fetch for it, as `wants`."""
        found: list[tuple[int, bool]] = []
        key = -1 - tid, host  # no page
        leader = self._lead(key)
        _add_companions(leader, found)
        self._bursts[tid] = _Burst(key, leader, now + WAKE_SECONDS)
        return found

    def pause(self, tid: int) -> None:
        """End the burst of a thread: it has made a call, or has ended."""
        self._bursts.pop(tid, None)

    def _lead(self, key: tuple[int, int]) -> _Leader:
        leader = self._leaders.pop(key, None) or _Leader()
        self._leaders[key] = leader  # the last to be forgotten
        if len(self._leaders) > _MAX_LEADERS:
            del self._leaders[next(iter(self._leaders))]
        return leader


def _add_companions(leader: _Leader, found: list[tuple[int, bool]]) -> None:
    if leader.left_out is not None:  # nobody has waited for it
        companion = leader.companions[leader.left_out]
        companion.score -= 1
        if not companion.score:
            del leader.companions[leader.left_out]
        leader.left_out = leader.enough = None
    enough = leader.enough
    if enough is None:  # neighbours next to each other, which then are moved together
        enough = leader.enough = sorted(
            (page, companion.write)
            for page, companion in leader.companions.items()
            if companion.score >= _ENOUGH
        )
    leader.turn += 1
    leave, which = divmod(leader.turn, _LEAVE_OUT if leader.turn < _LEAVE_OUT * _LATER else _LEAVE_OUT_LATER)
    if enough and not which:
        leave %= len(enough)
        leader.left_out = enough[leave][0]
        found += enough[:leave] + enough[leave + 1 :]
    else:
        found += enough


def _wanted(leader: _Leader, page: int, write: bool) -> None:
    leader.enough = None
    companion = leader.companions.get(page)
    if companion is None:
        leader.companions[page] = _Companion(write)
    else:
        companion.score = min(companion.score + 1, _MOST)
        companion.write = write
    if page == leader.left_out:
        leader.left_out = None


def _add_sequence(burst: _Burst, page: int, write: bool, found: list[tuple[int, bool]]) -> None:
    if page == burst.next_page:
        burst.writes = burst.writes or write
        found.extend((each, burst.writes) for each in range(page + 1, page + 1 + burst.ahead))
        burst.next_page = page + 1 + burst.ahead
        burst.ahead = min(2 * burst.ahead, _MAX_AHEAD)
    elif write and burst.next_page - _MAX_AHEAD <= page < burst.next_page:  # it writes what it has read
        burst.writes = True
    else:
        burst.next_page, burst.ahead, burst.writes = page + 1, _FIRST_AHEAD, write
