"""The ring's calls and the log's events have the same fields, so that the reader can make events directly."""

from ptserver.tracelog.by_stops import event_of_traced
from ptserver.tracelog.events import Event, ExitEvent, SignalEvent, SyscallEvent, ThreadEvent
from stepping.ring import RingCall
from stepping.syscall_stops import (
    Traced,
    TracedCall,
    TracedExit,
    TracedSignal,
    TracedStart,
    TracedStop,
)
from stepping.syscalls.table import SYSCALLS
from stepping.wait_status import WaitKind, WaitStatus

ARGS = (1, 2, 3, 4, 5, 6)


def test_fields_agree() -> None:
    assert RingCall._fields[:-1] == SyscallEvent._fields[:-1]
    assert (RingCall._fields[-1], SyscallEvent._fields[-1]) == ("frames", "stack")


def call(value: int | None) -> TracedCall:
    return TracedCall(7, 6, SYSCALLS["read"], ARGS, {}, {1: b"x"}, 100, 20, value)


def test_reports_become_events() -> None:
    cases: list[tuple[Traced, Event | None]] = [
        (call(1), SyscallEvent(100, 20, 6, 7, "read", ARGS, {}, {1: b"x"}, 1)),
        (call(-4), SyscallEvent(100, 20, 6, 7, "read", ARGS, {}, {1: b"x"}, -1, 4)),
        (call(-512), SyscallEvent(100, 20, 6, 7, "read", ARGS, {}, {1: b"x"}, -1, 512)),
        (call(-4096), SyscallEvent(100, 20, 6, 7, "read", ARGS, {}, {1: b"x"}, -4096)),
        (call(None), SyscallEvent(100, None, 6, 7, "read", ARGS, {}, {1: b"x"}, None, 0, True)),
        (TracedSignal(7, 6, 5, 10, b"info"), SignalEvent(5, 6, 7, 10, b"info")),
        (TracedStart(7, 6, 5), ThreadEvent(5, 6, 7, "created")),
        (TracedExit(7, 6, 5, WaitStatus(WaitKind.EXITED)), ThreadEvent(5, 6, 7, "exited")),
        (TracedExit(6, 6, 5, WaitStatus(WaitKind.EXITED, exit_status=3)), ExitEvent(5, 6, 6, 3)),
        (
            TracedExit(6, 6, 5, WaitStatus(WaitKind.KILLED, signo=11, core_dumped=True)),
            ExitEvent(5, 6, 6, None, 11, True),
        ),
        (TracedStop(6, 6, 5, 19), None),
    ]
    for traced, event in cases:
        assert event_of_traced(traced) == event
