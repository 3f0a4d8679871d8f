"""What the check of a spread program's memory finds."""

import pytest

from ptserver.spread.coherence import CoherenceChecker, MemoryDiffersError
from ptserver.spread.members import Members
from ptserver.spread.messages import Inventory, SpreadMessage
from ptserver.spread.outgoing import Outgoing
from ptserver.spread.pages import PageDirectory


class _Checked:
    """Two hosts: page 1 is with both to read, page 2 with host 0 alone."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, SpreadMessage]] = []
        self.pages = PageDirectory(Outgoing(lambda *told: self.sent.append(told)), lambda page: page == 1)
        self.pages.place(0, [1, 2])
        self.pages.request(1, 1, write=False)
        self.pages.take_data([1], b"\1", b"")
        self.checker = CoherenceChecker(
            Members(2), self.pages, lambda host, message: None, lambda seconds, then: None, 1.0
        )
        self.passed = 0
        self.checker.check(self._pass)

    def _pass(self) -> None:
        self.passed += 1


def test_equal_copies_pass() -> None:
    checked = _Checked()
    checked.checker.take(1, Inventory(((1, 7),)))
    assert not checked.passed
    checked.checker.take(0, Inventory(((1, 7), (2, 9))))
    assert checked.passed == checked.checker.checks == 1


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (((1, 7), (2, 9)), ((1, 8),), "hosts 0 and 1 differ in page 0x1"),
        (((1, 7), (2, 9)), ((1, 7), (2, 9)), "host 1 has page 0x2"),
        (((1, 7), (2, 9)), (), "host 1 does not have page 0x1"),
    ],
)
def test_what_differs_is_found(
    first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...], said: str
) -> None:
    checked = _Checked()
    checked.checker.take(0, Inventory(first))
    with pytest.raises(MemoryDiffersError, match=said):
        checked.checker.take(1, Inventory(second))


def test_pages_on_their_way_are_left_out() -> None:
    checked = _Checked()
    checked.checker.take(0, Inventory(((1, 7), (2, 9))))
    checked.checker.take(1, Inventory(((1, 7),)))
    checked.pages.request(1, 2, write=True)
    checked.checker.check(lambda: None)
    checked.checker.take(0, Inventory(((1, 7),)))
    checked.checker.take(1, Inventory(((1, 7),)))
    checked.pages.take_data([2], b"\1", b"")
    assert checked.checker.checks == 2


def test_a_host_that_goes_is_not_waited_for() -> None:
    checked = _Checked()
    checked.checker.take(0, Inventory(((1, 7), (2, 9))))
    checked.checker.forget_host(1)
    assert checked.passed == 1
