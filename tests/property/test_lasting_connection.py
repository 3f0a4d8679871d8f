"""A connection that is moved from stream to stream, each cut anywhere: every message arrives once, in order."""

import contextlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptserver.errors import ConnectionLostError, ProtocolError
from ptserver.messages import Message, Received, StreamData, ToServer
from ptserver.net.lasting import ACKNOWLEDGED_BYTES, LastingConnection
from ptserver.net.wire import Codec

Ends = tuple[LastingConnection[Message], LastingConnection[Message]]

#: What happens: an end says something of that size, or the stream carries so many bytes each way, and breaks or not.
events = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 1), st.integers(0, 4000)),
        st.tuples(st.just("pass"), st.integers(0, 3000), st.integers(0, 3000)),
        st.tuples(st.just("cut"), st.integers(0, 3000), st.integers(0, 3000)),
    ),
    max_size=60,
)


class Wire:
    """The way between two ends, which are given new streams whenever it is cut."""

    def __init__(self) -> None:
        self._far = self._streams()
        self.ends: Ends = tuple(LastingConnection(sock, Codec("msgpack"), ToServer) for sock in self._near)  # type: ignore[assignment]
        self.heard: tuple[list[Message], list[Message]] = ([], [])

    def _streams(self) -> tuple[socket.socket, socket.socket]:
        pairs = [socket.socketpair() for _ in range(2)]
        self._near = [near for near, _ in pairs]
        for _, far in pairs:
            far.setblocking(False)
        return pairs[0][1], pairs[1][1]

    def carry(self, *sizes: int) -> None:
        for end, size in enumerate(sizes):
            self.ends[end].flush()
            with contextlib.suppress(BlockingIOError):
                data = self._far[end].recv(size) if size else b""
                self._far[1 - end].sendall(data)
        for end in range(2):
            with contextlib.suppress(ConnectionLostError):
                self.heard[end].extend(self.ends[end].receive())

    def cut(self) -> None:
        for end, far in zip(self.ends, self._far, strict=True):
            far.close()
            end.suspend()
        self._far = self._streams()
        received = [end.received_bytes for end in self.ends]
        for number, end in enumerate(self.ends):
            end.resume(self._near[number], received[1 - number])

    def close(self) -> None:
        for each in (*self.ends, *self._far):
            each.close()


@settings(deadline=None)
@given(events)
def test_every_message_comes_once_and_in_order(happens: list[tuple[str, int, int]]) -> None:
    wire, said = Wire(), ([], [])  # type: ignore[var-annotated]
    for number, (what, first, second) in enumerate(happens):
        if what == "say":
            message = StreamData(0, bytes([number % 256]) * second)
            wire.ends[first].send(message)
            said[1 - first].append(message)
        else:
            wire.carry(first, second)
            if what == "cut":
                wire.cut()
    while any(end.wants_write for end in wire.ends):
        wire.carry(1 << 16, 1 << 16)
    wire.carry(1 << 16, 1 << 16)
    assert wire.heard == said
    wire.close()


def test_what_was_acknowledged_is_kept_no_more() -> None:
    wire = Wire()
    message = StreamData(0, bytes(60_000))
    for _ in range(2 * ACKNOWLEDGED_BYTES // 60_000):
        wire.ends[0].send(message)
        wire.carry(1 << 17, 1 << 17)
    assert not wire.ends[0].can_resume_at(0)
    wire.cut()
    wire.ends[0].send(message)
    wire.carry(1 << 17, 1 << 17)
    assert wire.heard[1] == [message] * (2 * ACKNOWLEDGED_BYTES // 60_000 + 1)
    wire.close()


@pytest.mark.parametrize("claimed", [1, 1 << 40])
def test_a_peer_claims_nothing_that_it_was_not_sent(claimed: int) -> None:
    wire = Wire()
    wire.ends[1].send(Received(claimed))
    wire.ends[1].flush()
    with pytest.raises(ProtocolError, match="acknowledges what it was not sent"):
        wire.carry(100, 100)
    assert not wire.ends[0].can_resume_at(claimed)
    wire.close()
