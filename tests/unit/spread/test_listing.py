"""What is said of a goroutine that does not move."""

import pytest

from goabi.goroutine import GoStatus
from ptserver.spread.listing import why_it_stays


@pytest.mark.parametrize(
    ("status", "reason", "doing", "expected"),
    [
        (GoStatus.RUNNING, "", "runs", ""),
        (GoStatus.WAITING, "chan receive", "", "it sleeps (chan receive)"),
        (GoStatus.RUNNABLE, "", "", "it waits for a processor"),
        (GoStatus.SYSCALL, "", "call read", "it is in call read"),
        (GoStatus.SYSCALL, "", "", "it is in a call"),
        (GoStatus.SYSCALL, "", "runs", "it executes C code, and that of a library is at host 0 alone"),
    ],
)
def test_why_a_goroutine_stays_is_said(status: GoStatus, reason: str, doing: str, expected: str) -> None:
    assert why_it_stays(status, reason, doing) == expected
