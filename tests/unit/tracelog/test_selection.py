"""Which calls are shown."""

import os
from pathlib import Path

import pytest

from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.errors import FilterError
from ptserver.tracelog.events import Event, ExitEvent, Frame, SyscallEvent
from ptserver.tracelog.selection import DurationTest, SelectingSink, Selection


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def calls(self, batch: CallBatch) -> None:
        self.events += batch.events()

    def flush(self) -> None: ...

    def close(self) -> None: ...


MAIN = (Frame("os.Open", "/go/os.go", 1), Frame("main.load", "/main.go", 7))
OPEN = SyscallEvent(
    0, 5_000, 7, 8, "openat", (2**64 - 100, 1, 0, 0, 0, 0), {1: b"/etc/hosts"}, {}, 3, goid=17, stack=MAIN
)
READ = SyscallEvent(9, 900, 7, 9, "read", (3, 1, 9, 0, 0, 0), {}, {1: b"x"}, 1, goid=18)
FAILED = SyscallEvent(9, None, 7, 9, "openat", (2**64 - 100, 1, 0, 0, 0, 0), {1: b"/none"}, {}, -1, 2)
CLOSE = SyscallEvent(9, 100, 7, 9, "close", (3, 0, 0, 0, 0, 0), value=0)
EXIT = ExitEvent(10, 7, 7, 0)
ALL = [OPEN, READ, FAILED, CLOSE, READ, EXIT]


@pytest.mark.parametrize(
    ("selection", "shown"),
    [
        (Selection(), ALL),
        (Selection.parse(goids=[17, 99]), [OPEN, EXIT]),
        (Selection.parse(function=r"main\."), [OPEN, EXIT]),
        (Selection.parse(paths=["/etc/*"]), [OPEN, READ, CLOSE, EXIT]),
        (Selection.parse(paths=["/none", "hosts"]), [FAILED, EXIT]),
        (Selection.parse(duration=">1us"), [OPEN, EXIT]),
        (Selection.parse(duration="<= 0.9 us"), [READ, CLOSE, READ, EXIT]),
        (Selection.parse(errors=True), [FAILED, EXIT]),
        (Selection.parse(goids=[18], paths=["/etc/hosts"]), [READ, EXIT]),
    ],
)
def test_what_is_shown(selection: Selection, shown: list[Event]) -> None:
    sink = Sink()
    selecting = SelectingSink(sink, selection)
    for event in ALL:
        selecting.event(event)
    assert sink.events == shown


def test_descriptors_that_were_open_before_are_known(tmp_path: Path) -> None:
    sink, path = Sink(), tmp_path / "apple"
    path.touch()
    with path.open() as file:
        selecting = SelectingSink(sink, Selection.parse(paths=["*/apple"]), os.getpid())
        calls = [READ._replace(pid=os.getpid(), args=(fd, 1, 9)) for fd in (file.fileno(), file.fileno() + 1)]
    for call in calls:
        selecting.event(call)
    assert sink.events == calls[:1]


@pytest.mark.parametrize("text", ["", "1", ">ms", ">1h", "1ms2", "=1ms", "-1ms"])
def test_durations_that_mean_nothing(text: str) -> None:
    with pytest.raises(FilterError, match="--duration"):
        DurationTest.parse(text)


@pytest.mark.parametrize(
    ("text", "test"),
    [
        ("1ms", DurationTest(">", 1_000_000)),
        (">=1.5s", DurationTest(">=", 1_500_000_000)),
        ("< 20 µs", DurationTest("<", 20_000)),
    ],
)
def test_durations(text: str, test: DurationTest) -> None:
    assert DurationTest.parse(text) == test


def test_a_bad_function_pattern_says_so() -> None:
    with pytest.raises(FilterError, match="--func"):
        Selection.parse(function="(")
