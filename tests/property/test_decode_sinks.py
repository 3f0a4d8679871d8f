"""Whatever happens to a program can be written, and what was written can be read."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from ptserver.tracelog.events import (
    Event,
    ExitEvent,
    Frame,
    GcEvent,
    GoEvent,
    LossEvent,
    SignalEvent,
    StopEvent,
    SyscallEvent,
    ThreadEvent,
    TraceStart,
)
from ptserver.tracelog.jsonl import JsonLinesSink, SyscallLine, read_lines
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.summary import SummarySink
from ptserver.tracelog.text import TextOptions, TextSink
from stepping.syscalls import SYSCALLS

TIMES = st.integers(0, 2**63 - 1)
IDS = st.integers(1, 2**22)
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates too
FRAMES = st.builds(Frame, TEXT, TEXT, st.integers(0, 10**6), st.integers(0, 2**64 - 1))
REGISTERS = st.integers(0, 2**64 - 1) | st.integers(0, 64)
BUFFERS = st.dictionaries(st.integers(0, 5), st.binary(max_size=100), max_size=4)
CALLS = st.builds(
    SyscallEvent,
    TIMES,
    st.none() | TIMES,
    IDS,
    IDS,
    st.sampled_from([*SYSCALLS, "syscall_0x1ff"]),
    st.tuples(*[REGISTERS] * 6),
    BUFFERS,
    BUFFERS,
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.just(0) | st.integers(0, 4095),
    st.booleans(),
    st.none() | IDS,
    st.lists(FRAMES, max_size=3).map(tuple),
)
OTHERS = st.one_of(
    st.builds(SignalEvent, TIMES, IDS, IDS, st.integers(0, 255), st.binary(max_size=128)),
    st.builds(StopEvent, TIMES, IDS, IDS, st.integers(0, 255)),
    st.builds(ThreadEvent, TIMES, IDS, IDS, st.sampled_from(["created", "exited"])),
    st.builds(ExitEvent, TIMES, IDS, IDS, st.none() | st.integers(0, 255), st.integers(0, 64)),
    st.builds(
        GoEvent,
        TIMES,
        IDS,
        IDS,
        st.sampled_from(["create", "start", "block", "unblock", "exit"]),
        st.none() | IDS,
        st.none() | IDS,
        TEXT.filter(str.isprintable),
        st.integers(0, 2**64 - 1),
        TEXT.filter(str.isprintable),
        st.lists(FRAMES, max_size=3).map(tuple),
    ),
    st.builds(GcEvent, TIMES, IDS, IDS, st.sampled_from(["start", "stop the world"]), st.none() | IDS),
    st.builds(LossEvent, TIMES, st.integers(0, 10**9)),
)
START = TraceStart(("./main",), "amd64", 0, 0)


@settings(max_examples=40)
@given(events=st.lists(CALLS | OTHERS, max_size=8), stacks=st.booleans())
def test_any_events_are_written(events: list[Event], stacks: bool) -> None:
    fd = os.memfd_create("trace")
    complaints: list[str] = []
    with os.fdopen(fd, "r+b") as file:
        json_lines = JsonLinesSink(LineWriter(fd, "memory", complain=complaints.append), START)
        for event in events:
            json_lines.event(event)
        json_lines.close()
        file.seek(0)
        lines = list(read_lines(file))
        assert len(lines) == 1 + len(events)
        calls = [line.name for line in lines if isinstance(line, SyscallLine)]
        assert calls == [event.name for event in events if isinstance(event, SyscallEvent)]

        file.truncate(0)
        file.seek(0)
        writer = LineWriter(fd, "memory", complain=complaints.append)
        text = TextSink(writer, START, TextOptions("relative", durations=True, stacks=stacks))
        summary = SummarySink(writer, by="function")
        for event in events:
            text.event(event)
            summary.event(event)
        text.flush()
        file.seek(0)
        frames = sum(len(e.stack) for e in events if isinstance(e, SyscallEvent | GoEvent)) if stacks else 0
        written = file.read().decode()
        assert written.count("\n") == len(events) + frames
        assert all(line.isprintable() for line in written.split("\n"))
        summary.close()
    assert complaints == []
