"""The two halves of a stream against each other, without a connection between them."""

import os
import pty
from pathlib import Path

import pytest

from ptserver.errors import ProtocolError
from ptserver.messages import Message, StreamCredit, StreamData, StreamEnd
from ptserver.net.streams import WINDOW_BYTES, IncomingStream, OutgoingStream


def relay(outgoing: OutgoingStream, incoming: IncomingStream, sent: list[Message]) -> None:
    """Deliver what both have said to each other."""
    while sent:
        match sent.pop(0):
            case StreamData(data=data):
                incoming.receive(data)
            case StreamCredit(size=size):
                outgoing.add_credit(size)
            case StreamEnd():
                incoming.end()
                outgoing.stop()


def test_bytes_flow_within_the_credit_until_the_end(tmp_path: Path) -> None:
    data = os.urandom(3 * WINDOW_BYTES + 17)
    (tmp_path / "in").write_bytes(data)
    sent: list[Message] = []
    outgoing = OutgoingStream(1, os.open(tmp_path / "in", os.O_RDONLY), sent.append, owned=True)
    assert not outgoing.wants_read
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    incoming = IncomingStream(1, out, sent.append, owned=True)
    assert sent == [StreamCredit(1, WINDOW_BYTES)]
    rounds = 0
    while not incoming.ended:
        relay(outgoing, incoming, sent)
        while outgoing.wants_read:
            outgoing.on_readable()
        relay(outgoing, incoming, sent)
        incoming.on_writable()
        rounds += 1
    assert outgoing.ended
    assert (tmp_path / "out").read_bytes() == data
    assert rounds > 3
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(out)


def test_a_full_pipe_stops_the_sender_and_nothing_is_lost() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sent: list[Message] = []
    incoming = IncomingStream(0, writing, sent.append, owned=True)
    sent.clear()
    data = os.urandom(WINDOW_BYTES)
    incoming.receive(data)
    incoming.end()
    assert sent == []
    received = b""
    while not incoming.ended:
        incoming.on_writable()
        received += os.read(reading, 1 << 20)
    while piece := os.read(reading, 1 << 20):
        received += piece
    assert received == data
    os.close(reading)


def test_a_blocking_pipe_is_written_in_pieces_that_cannot_block() -> None:
    reading, writing = os.pipe()
    incoming = IncomingStream(1, writing, lambda message: None, owned=True)
    incoming.receive(bytes(WINDOW_BYTES))
    incoming.on_writable()
    assert incoming.wants_write  # the pipe is full, and this test has not blocked
    assert len(os.read(reading, 1 << 20)) == 65536
    incoming.stop()
    os.close(reading)


def test_a_reader_that_went_away_ends_the_stream_backwards() -> None:
    reading, writing = os.pipe()
    sent: list[Message] = []
    incoming = IncomingStream(0, writing, sent.append, owned=True)
    os.close(reading)
    incoming.receive(b"abc")
    incoming.on_writable()
    assert sent[1:] == [StreamEnd(0)]
    assert incoming.ended
    incoming.receive(b"was under way")
    assert not incoming.wants_write


def test_data_beyond_the_credit_or_the_end_is_an_error() -> None:
    with open(os.devnull, "wb") as file:
        incoming = IncomingStream(0, file.fileno(), lambda message: None, owned=False)
        incoming.receive(bytes(WINDOW_BYTES))
        with pytest.raises(ProtocolError, match="more of stream 0 than it may"):
            incoming.receive(b"x")
        incoming = IncomingStream(0, file.fileno(), lambda message: None, owned=False)
        incoming.end()
        assert incoming.ended
        with pytest.raises(ProtocolError, match="more of stream 0 than it may"):
            incoming.receive(b"x")


def test_the_end_of_a_terminal_is_the_end_of_the_stream() -> None:
    master, slave = pty.openpty()
    sent: list[Message] = []
    outgoing = OutgoingStream(1, master, sent.append, owned=True)
    outgoing.add_credit(100)
    os.write(slave, b"last\n")
    os.close(slave)
    outgoing.on_readable()
    outgoing.on_readable()
    assert sent == [StreamData(1, b"last\r\n"), StreamEnd(1)]


def test_an_end_can_leave_a_mark() -> None:
    reading, writing = os.pipe()
    incoming = IncomingStream(0, writing, lambda message: None, owned=True, at_end=b"\x04")
    incoming.receive(b"abc")
    incoming.end()
    incoming.end()
    incoming.on_writable()
    assert os.read(reading, 10) == b"abc\x04"
    assert os.read(reading, 10) == b""
    os.close(reading)
