"""The profile of calls: taken apart field by field as profile.proto names them."""

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptserver.tracelog import pprof
from ptserver.tracelog.events import Event, ExitEvent, Frame, LossEvent, SyscallEvent, TraceStart
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.pprof import PprofSink
from ptserver.tracelog.protobuf import split_fields

START = TraceStart(("/bin/main",), "amd64", 1_000, 1_764_000_000_000_000_000, pid=7)
F, G = Frame("main.f", "/src/f.go", 3, 0x401000), Frame("main.g", "/src/g.go", 9, 0x402000)

Message = dict[int, list[int | bytes]]
Sample = tuple[tuple[str, ...], int, int]


class Profile(NamedTuple):
    """What `read` found. samples: places (`name file:line @address`, innermost first), calls, nanoseconds."""

    types: list[tuple[str, str]]
    samples: list[Sample]
    mappings: list[str]
    comments: list[str]
    time_ns: int
    duration_ns: int
    shown_first: str


def message(content: bytes) -> Message:
    fields: Message = {}
    for field, value in split_fields(content):
        fields.setdefault(field, []).append(value)
    return fields


def messages(parent: Message, field: int) -> Iterator[Message]:
    for content in parent.get(field, []):
        assert isinstance(content, bytes)
        yield message(content)


def one(fields: Message, field: int) -> int:
    [number] = fields.get(field, [0])
    assert isinstance(number, int)
    return number


def packed(fields: Message, field: int) -> list[int]:
    [content] = fields[field]
    assert isinstance(content, bytes)
    numbers, shift, number = [], 0, 0
    for byte in content:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            shift = number = 0
    return numbers


def read(path: Path) -> Profile:
    profile = message(gzip.decompress(path.read_bytes()))
    strings = [content.decode() for content in profile[6] if isinstance(content, bytes)]
    assert strings[0] == ""
    functions = {
        one(function, 1): (strings[one(function, 2)], strings[one(function, 4)])
        for function in messages(profile, 5)
    }
    mappings = {one(mapping, 1): strings[one(mapping, 5)] for mapping in messages(profile, 3)}
    places = {}
    for location in messages(profile, 4):
        [line] = messages(location, 4)
        name, file = functions[one(line, 1)]
        in_kernel = mappings[one(location, 2)] == "[kernel]"
        at = " in the kernel" if in_kernel else f" {file}:{one(line, 2)} @{one(location, 3):#x}"
        places[one(location, 1)] = f"{name}{at}"
    samples: list[Sample] = []
    for sample in messages(profile, 2):
        calls, total_ns = packed(sample, 2)
        samples.append((tuple(places[id] for id in packed(sample, 1)), calls, total_ns))
    return Profile(
        types=[(strings[one(kind, 1)], strings[one(kind, 2)]) for kind in messages(profile, 1)],
        samples=samples,
        mappings=list(mappings.values()),
        comments=[strings[index] for index in profile.get(13, []) if isinstance(index, int)],
        time_ns=one(profile, 9),
        duration_ns=one(profile, 10),
        shown_first=strings[one(profile, 14)],
    )


def profile_of(path: Path, events: Iterable[Event]) -> Profile:
    sink = PprofSink(LineWriter.open(str(path)), START)
    for event in events:
        sink.event(event)
    sink.flush()
    assert path.read_bytes() == b""
    sink.close()
    return read(path)


def call(name: str, duration_ns: int | None, *stack: Frame, start_ns: int = 2_000) -> SyscallEvent:
    return SyscallEvent(start_ns, duration_ns, 7, 8, name, (0,) * 6, value=0, stack=stack)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.pb.gz"


def test_calls_are_added_up_by_name_and_stack(path: Path) -> None:
    profile = profile_of(
        path,
        [
            call("read", 5, F, G),
            call("read", 7, F, G),
            call("write", 11, F, G),
            call("read", 13, G),
            ExitEvent(9_000, 7, 7, 0),
        ],
    )
    f, g = "main.f /src/f.go:3 @0x401000", "main.g /src/g.go:9 @0x402000"
    assert profile == Profile(
        types=[("calls", "count"), ("time", "nanoseconds")],
        samples=[
            (("read in the kernel", f, g), 2, 12),
            (("write in the kernel", f, g), 1, 11),
            (("read in the kernel", g), 1, 13),
        ],
        mappings=["/bin/main", "[kernel]"],
        comments=[],
        time_ns=START.realtime_ns,
        duration_ns=1_013,
        shown_first="time",
    )


def test_without_stacks_there_are_names(path: Path) -> None:
    profile = profile_of(path, [call("read", 5), call("close", 6), call("read", 7)])
    assert profile.samples == [(("read in the kernel",), 2, 12), (("close in the kernel",), 1, 6)]


def test_frames_nobody_can_name_and_names_that_are_no_text(path: Path) -> None:
    profile = profile_of(path, [call("read", 5, Frame("", pc=0x10), Frame("\udcff", pc=0x20))])
    assert profile.samples == [(("read in the kernel", "0x10 :0 @0x10", "\\udcff :0 @0x20"), 1, 5)]


def test_what_is_missing_is_said(path: Path) -> None:
    profile = profile_of(path, [call("read", None), LossEvent(1, 2), LossEvent(2, 3)])
    assert profile.samples == [(("read in the kernel",), 1, 0)]
    assert profile.comments == [
        "5 events were lost",
        "1 calls are counted without a time: they did not end, or nobody measured them",
    ]


def test_stacks_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pprof, "_MAX_STACKS", 2)
    stacks = [Frame(f"main.f{number}") for number in range(5)]
    profile = profile_of(path, [call("read", 1, frame) for frame in stacks + stacks])
    assert [(names[1].split()[0], calls) for names, calls, _ in profile.samples] == [
        ("main.f0", 2),
        ("main.f1", 2),
        ("(other", 6),
    ]
    assert profile.comments[0].startswith("6 calls are counted without their stacks")


def test_nothing_happened(path: Path) -> None:
    assert profile_of(path, []).samples == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "write"]), st.integers(0, 2**40), st.lists(st.sampled_from([F, G]))
        )
    )
)
def test_nothing_is_lost(calls: list[tuple[str, int, list[Frame]]]) -> None:
    with TemporaryDirectory() as folder:
        events = [call(name, duration_ns, *stack) for name, duration_ns, stack in calls]
        samples = profile_of(Path(folder) / "profile", events).samples
    assert sum(count for _, count, _ in samples) == len(calls)
    assert sum(total_ns for _, _, total_ns in samples) == sum(duration_ns for _, duration_ns, _ in calls)
    assert len({names for names, _, _ in samples}) == len(samples)
