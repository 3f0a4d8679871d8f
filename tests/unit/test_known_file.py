"""What a host believes of a file that it reads ahead, against a file that does not change."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptserver.hosts import known_file
from ptserver.hosts.known_file import FRESH_SECONDS, KnownFile
from ptserver.messages import Ahead

CONTENT = bytes(itertools.islice(itertools.cycle(range(251)), 1_500_000))


def file_of(size: int) -> KnownFile:
    stat = bytearray(144)
    stat[48:56] = size.to_bytes(8, "little")
    return KnownFile(Ahead(1, 0, bytes(stat)))


class Session:
    """Answers what a KnownFile asks for, later."""

    def __init__(self, content: bytes, file: KnownFile) -> None:
        self.content = content
        self.file = file
        self.asked: list[tuple[int, int, int]] = []
        self._ids = itertools.count(1)

    def ask(self, size: int, *, urgent: bool) -> None:
        for offset, piece in self.file.wanted(size, urgent=urgent):
            call_id = next(self._ids)
            self.file.asked(call_id, offset, piece)
            self.asked.append((call_id, offset, piece))

    def answer(self) -> None:
        call_id, offset, size = self.asked.pop(0)
        self.file.arrived(call_id, self.content[offset : offset + size])

    def read(self, size: int) -> bytes:
        data = self.file.take(size)
        while data is None:
            self.ask(size, urgent=True)
            self.answer()
            data = self.file.take(size)
        self.ask(size, urgent=False)
        return data


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, 200_000)),
        st.tuples(st.just("move"), st.integers(0, 1_600_000)),
        st.tuples(st.just("answer"), st.just(0)),
        st.tuples(st.just("forget"), st.just(0)),
        st.tuples(st.just("look"), st.integers(0, 1_600_000)),
    ),
    max_size=60,
)


@given(_STEPS, st.sampled_from([0, 1, 4096, 65536, 65537, 524_288, 1_500_000]), st.integers(0, 65536))
def test_every_read_gives_what_the_file_has(steps: list[tuple[str, int]], size: int, begun: int) -> None:
    content = CONTENT[:size]
    file = file_of(size)
    session = Session(content, file)
    file.begin(content[:begun], end=begun > size)
    position = 0
    for step, value in steps:
        match step:
            case "read":
                assert session.read(value) == content[position : position + value]
                position = min(position + value, max(size, position))
                assert file.position == position
            case "move":
                file.move(value)
                position = value
            case "answer" if session.asked:
                session.answer()
            case "forget":
                file.forget_all()
            case "look":
                assert file.look(value, 1000) in (None, content[value : value + 1000])


def test_a_reader_in_order_is_read_ahead_for_more_and_more() -> None:
    file = file_of(len(CONTENT))
    session = Session(CONTENT, file)
    file.begin(CONTENT[:65536], end=False)
    waits = 0
    for _ in range(len(CONTENT) // 32768):
        data = file.take(32768)
        if data is None:
            waits += 1
            data = session.read(32768)
        session.ask(32768, urgent=False)
        while session.asked:
            session.answer()
    assert waits == 0


def test_who_reads_the_beginning_alone_costs_nothing() -> None:
    file = file_of(len(CONTENT))
    file.begin(CONTENT[:65536], end=False)
    assert file.take(4096) == CONTENT[:4096]
    assert file.wanted(4096, urgent=False) == []


def test_nothing_is_used_for_longer_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(known_file.time, "monotonic", lambda: now[0])
    file = file_of(10)
    file.begin(CONTENT[:10], end=True)
    assert file.take(4) == CONTENT[:4]
    assert file.is_fresh
    now[0] += FRESH_SECONDS + 0.001
    assert file.take(4) is None
    assert not file.is_fresh
    assert file.wanted(4, urgent=True) == [(4, 65536)]
    file.asked(1, 4, 65536)
    assert file.arrived(1, CONTENT[4:10])
    assert file.take(100) == CONTENT[4:10]
    assert file.take(100) == b""
    now[0] += FRESH_SECONDS + 0.001
    assert file.take(100) is None, "the file may have grown"


def test_what_comes_too_late_is_not_wanted() -> None:
    file = file_of(len(CONTENT))
    ((offset, size),) = file.wanted(10, urgent=True)[:1]
    file.asked(1, offset, size)
    file.move(1_000_000)
    assert not file.arrived(1, CONTENT[offset : offset + size])
    assert file.look(0, 10) is None
