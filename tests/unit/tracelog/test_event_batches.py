"""Many events at once are written as each alone would be, and in their order."""

from pathlib import Path

import pytest

from ptserver.tracelog.batch import CallBatch, Wait
from ptserver.tracelog.events import Event, Frame, GcEvent, GoEvent, LossEvent, TraceStart
from ptserver.tracelog.selection import SelectingSink, Selection
from ptserver.tracelog.sinks import Form, open_sink
from ptserver.tracelog.text import TextOptions
from tests.ringrecords import Record, batch_of

STACK = (Frame("runtime.gopark", "/go/proc.go", 9, 1), Frame("main.worker", '/tmp/"x"/é.go', 14, 2))
CALLS = [
    Record("close", (3, 0, 0, 0, 0, 0), 0, goid=18, tid=tid, start=10**9, stack=[1]) for tid in (7, 8, 9)
]
OTHERS: list[tuple[int, Event]] = [
    (0, GoEvent(10**9, 7, 7, "create", 18, 1, function="main.f·1", stack=STACK)),
    (0, GoEvent(10**9, 7, 7, "create", None, 1, function="main.never", stack=())),
    (1, GoEvent(10**9, 7, 8, "block", 18, reason="select", channel=1, stack=STACK, channels=(1, 2))),
    (1, GcEvent(10**9, 7, 7, "sweep", 18)),
    (3, GoEvent(10**9, 7, 7, "block", 19, reason="chan receive", channel=0xC000, stack=STACK)),
    (3, GoEvent(10**9, 7, 7, "exit", 18)),
]
BATCH = CallBatch(batch_of(CALLS), lambda stack: STACK, OTHERS, [Wait(18, 5, True, False)])


@pytest.mark.parametrize("stacks", [False, True])
@pytest.mark.parametrize("form", ["text", "json"])
def test_as_one_by_one(tmp_path: Path, form: Form, stacks: bool) -> None:
    written = []
    for name in ("each", "all"):
        start = TraceStart((), "amd64", 0, 0, 7)
        sink = open_sink(form, str(tmp_path / name), start, TextOptions(durations=True, stacks=stacks))
        for event in BATCH.all_events():  # after which it is known that there are several threads
            sink.event(event)
        if name == "each":
            for event in BATCH.all_events():
                sink.event(event)
        else:
            sink.calls(BATCH)
        sink.close()
        written.append((tmp_path / name).read_text())
    assert written[0] == written[1]
    assert written[0].count("0x1, 0x2" if form == "text" else '"channels":["0x1","0x2"]') == 2


def test_what_is_selected_stays_in_its_order() -> None:
    assert [index for index, _ in BATCH.select([0, 2]).others] == [0, 0, 1, 1, 2, 2]
    assert BATCH.select([]).waits == BATCH.waits
    taken: list[Event] = []

    class Taker:
        def event(self, event: Event) -> None:
            taken.append(event)

        def calls(self, batch: CallBatch) -> None:
            taken.extend(batch.all_events())

        def flush(self) -> None: ...

        def close(self) -> None: ...

    selecting = SelectingSink(Taker(), Selection(frozenset({18})))
    selecting.calls(BATCH)
    one_by_one, taken = taken, []
    for event in BATCH.all_events():
        selecting.event(event)
    assert taken == one_by_one
    assert {event.goid for event in taken if isinstance(event, GoEvent)} == {18}


def test_a_batch_of_events_alone(tmp_path: Path) -> None:
    for form in ("text", "json", "perfetto", "pprof", "otlp", "summary"):
        sink = open_sink(form, str(tmp_path / form), TraceStart((), "amd64", 0, 0, 7))
        sink.calls(CallBatch(BATCH.records.select([]), None, [(0, GoEvent(1, 7, 7, "exit", 5))]))
        sink.event(LossEvent(2, 3))
        sink.close()
    assert "goroutine 5 exits" in (tmp_path / "text").read_text()
    assert '"goid":5' in (tmp_path / "json").read_text()
