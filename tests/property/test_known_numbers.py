"""The number that a program's next descriptor gets is known rightly, whatever calls overlap, or unknown."""

from hypothesis import given
from hypothesis import strategies as st

from ptserver.hosts.known_numbers import KnownNumbers

_CALLS = st.lists(
    st.tuples(
        st.sampled_from(["openat", "close", "posted close", "next", "dup", "read", "answer", "late"]),
        st.integers(0, 9),
    ),
    max_size=60,
)


def _open(used: set[int]) -> int:
    number = min(set(range(len(used) + 1)) - used)
    used.add(number)
    return number


def _room(used: set[int], number: int, most: int) -> int:
    return next((room for room in range(most) if number + 1 + room in used), most)


@given(st.sets(st.integers(0, 9), max_size=6), _CALLS)
def test_what_is_known_is_so(used: set[int], calls: list[tuple[str, int]]) -> None:
    """Calls are made when they are asked for, or, for one in three, as late as they are answered.

    Every other open tells how many numbers above its own are free, three at most.
    """
    known = KnownNumbers({"read"})
    waiting: list[tuple[int, str, int, tuple[int, int] | None]] = []

    def make(name: str, fd: int) -> tuple[int, int]:
        if name in ("openat", "dup"):
            number = _open(used)
            return number, _room(used, number, 3) if name == "openat" and fd % 2 else 0
        if name == "close":
            if fd not in used:
                return -1, 0
            used.remove(fd)
        return 0, 0

    for call_id, (name, fd) in enumerate(calls, 1):
        if name == "next":
            if known.next is not None:
                number = known.next
                known.opened_next()
                assert number == _open(used)
        elif name == "posted close":
            if fd in used:
                used.remove(fd)
                known.closed(fd)
        elif name in ("answer", "late"):
            if waiting:
                asked_id, asked, asked_fd, told = waiting.pop(fd % len(waiting))
                value, room = told or make(asked, asked_fd)
                if name == "late":
                    known.heard_late(asked_id)
                else:
                    known.heard(asked_id, asked, asked_fd, value, room)
        else:
            known.asked(call_id, name)
            waiting.append((call_id, name, fd, None if call_id % 3 == 0 else make(name, fd)))


def test_what_was_closed_is_next() -> None:
    known = KnownNumbers(())
    known.asked(1, "openat")
    assert known.next is None
    known.heard(1, "openat", 0, 5)
    assert known.next is None
    known.closed(5)
    assert known.next == 5
    known.closed(3)
    assert known.next == 3
    known.asked(2, "dup")
    assert known.next is None
    known.heard(2, "dup", 0, 3)
    assert known.next is None


def test_what_is_free_above_is_next() -> None:
    known = KnownNumbers(())
    known.asked(1, "openat")
    known.heard(1, "openat", 0, 5, 2)
    assert known.free() == ([6, 7], 8)
    known.asked(2, "accept4")
    known.heard(2, "accept4", 0, 6, 0)
    assert known.free() == ([7], 8)
    known.asked(3, "openat")
    known.heard(3, "openat", 0, 7, 2)
    assert known.free() == ([8, 9], 10)
