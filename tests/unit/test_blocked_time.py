"""Waits add up to the time that each goroutine was blocked."""

from ptserver.inspection.blocked_time import BlockedTime
from ptserver.inspection.goroutine_stats import Accounts, Listed
from ptserver.tracelog.batch import Wait

SINCE = 1000


def blocked(accounts: Accounts) -> dict[int, int]:
    return {account.goid: account.blocked_ns for account in accounts.by_goroutine()}


def measured() -> tuple[Accounts, BlockedTime]:
    accounts = Accounts(estimate_blocked=False)
    return accounts, BlockedTime(accounts, SINCE)


def begins(goid: int, at_ns: int) -> Wait:
    return Wait(goid, at_ns, True, False)


def ends(goid: int, at_ns: int, *, ended: bool = False) -> Wait:
    return Wait(goid, at_ns, False, ended)


def test_waits_are_added_up() -> None:
    accounts, time = measured()
    time.take([begins(7, 1100), begins(8, 1150), ends(7, 1200), begins(7, 1300)])
    assert blocked(accounts) == {7: 100}
    time.settle(1500)
    assert blocked(accounts) == {7: 300, 8: 350}
    time.take([ends(7, 1600)])
    time.settle(1700)
    assert blocked(accounts) == {7: 400, 8: 550}


def test_a_wait_that_was_there_before_counts_from_the_beginning() -> None:
    accounts, time = measured()
    time.take([ends(7, 1200), ends(8, 1300, ended=True)])
    assert blocked(accounts) == {7: 200}
    time.take([ends(7, 1400)])  # it was running, and did not wait
    assert blocked(accounts) == {7: 200}


def test_who_waits_all_the_time_is_known_by_two_lists() -> None:
    accounts, time = measured()
    listed = [Listed(7, True, "a"), Listed(8, False, "b"), Listed(9, True, "c")]
    time.take_listing(1400, listed)
    time.settle(1500)
    assert blocked(accounts) == dict.fromkeys((7, 8, 9), 0)
    time.take([begins(9, 1390)])  # what the list saw already was on its way
    time.take_listing(1600, listed)
    time.settle(2000)
    assert blocked(accounts) == {7: 1000, 8: 0, 9: 610}


def test_after_a_loss_all_begins_anew() -> None:
    accounts, time = measured()
    time.take([begins(7, 1100)])
    time.lose(1500)
    time.take([ends(7, 1600), begins(8, 1550)])
    time.settle(1700)
    assert blocked(accounts) == {7: 100, 8: 150}


def test_numbers_that_make_no_sense_do_no_harm() -> None:
    accounts, time = measured()
    time.take([begins(7, 1200), ends(7, 1100), ends(7, 900, ended=True), ends(1 << 63, 0)])
    time.settle(0)
    assert blocked(accounts) == {}
