"""decode_wait_status: every kind of report, and that any 32-bit number gives a value or ValueError."""

import contextlib
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepping.wait_status import Event, WaitKind, WaitStatus, decode_wait_status, signal_name


def stop(signo: int, event: int = 0) -> int:
    return event << 16 | signo << 8 | 0x7F


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        (3 << 8, WaitStatus(WaitKind.EXITED, exit_status=3), "exited with 3"),
        (9, WaitStatus(WaitKind.KILLED, signo=9), "killed by SIGKILL"),
        (
            11 | 0x80,
            WaitStatus(WaitKind.KILLED, signo=11, core_dumped=True),
            "killed by SIGSEGV (core dumped)",
        ),
        (stop(23), WaitStatus(WaitKind.SIGNAL_DELIVERY, signo=23), "signal-delivery-stop SIGURG"),
        (stop(5), WaitStatus(WaitKind.SIGNAL_DELIVERY, signo=5), "signal-delivery-stop SIGTRAP"),
        (stop(5 | 0x80), WaitStatus(WaitKind.SYSCALL), "syscall-stop"),
        (stop(19), WaitStatus(WaitKind.SIGNAL_DELIVERY, signo=19), "signal-delivery-stop SIGSTOP"),
        (stop(19, 128), WaitStatus(WaitKind.GROUP, signo=19), "group-stop SIGSTOP"),
        (stop(20, 128), WaitStatus(WaitKind.GROUP, signo=20), "group-stop SIGTSTP"),
        (stop(5, 128), WaitStatus(WaitKind.EVENT, event=Event.STOP), "event-stop STOP"),
        (stop(5, 3), WaitStatus(WaitKind.EVENT, event=Event.CLONE), "event-stop CLONE"),
        (stop(5, 7), WaitStatus(WaitKind.EVENT, event=Event.SECCOMP), "event-stop SECCOMP"),
    ],
)
def test_kinds(raw: int, status: WaitStatus, text: str) -> None:
    assert decode_wait_status(raw) == status
    assert str(decode_wait_status(raw)) == text


def test_agrees_with_os_on_ends() -> None:
    for raw in range(0x10000):
        if not os.WIFEXITED(raw) and not os.WIFSIGNALED(raw):
            continue
        status = decode_wait_status(raw)
        assert not status.is_stop
        if raw & 0x7F or not raw & 0x80:
            assert status.raw_end == (raw & 0xFF if raw & 0x7F else raw)
        if os.WIFEXITED(raw):
            assert (status.kind, status.exit_status) == (WaitKind.EXITED, os.WEXITSTATUS(raw))
        else:
            assert (status.kind, status.signo) == (WaitKind.KILLED, os.WTERMSIG(raw))
            assert status.core_dumped == os.WCOREDUMP(raw)


@given(st.integers(0, (1 << 32) - 1))
def test_any_number(raw: int) -> None:
    with contextlib.suppress(ValueError):
        assert str(decode_wait_status(raw))


def test_signal_names() -> None:
    assert signal_name(signal.SIGURG) == "SIGURG"
    assert signal_name(40) == "SIGRT_8"
    assert signal_name(99) == "99"
