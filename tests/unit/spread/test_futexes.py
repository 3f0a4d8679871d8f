"""Who sleeps on which futex."""

from ptserver.spread.futexes import Futexes


def test_sleepers_are_woken_in_their_order_and_no_more_than_asked() -> None:
    futexes = Futexes()
    for tid in (1, 2, 3):
        futexes.enter(tid, 0x1000)
    futexes.enter(4, 0x2000)
    assert futexes.wake(0x1000, 2) == [1, 2]
    assert futexes.wake(0x1000, 5) == [3]
    assert futexes.wake(0x1000, 1) == []
    assert futexes.sleeps(4)


def test_who_leaves_is_not_woken_and_is_not_found_twice() -> None:
    futexes = Futexes()
    futexes.enter(1, 0x1000)
    assert futexes.leave(1)
    assert not futexes.leave(1)
    assert futexes.wake(0x1000, 1) == []
