"""Codecs and frames under random and broken input."""

import itertools
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptserver.errors import ProtocolError
from ptserver.messages import (
    CODECS,
    Cancel,
    Exited,
    Hello,
    Machine,
    Message,
    Observed,
    Ping,
    Program,
    Result,
    Signal,
    StreamCredit,
    StreamData,
    StreamEnd,
    Syscall,
    Terminal,
    ThreadEvent,
    ToHost,
    ToServer,
    Welcome,
    WindowSize,
)
from ptserver.net.wire import Codec, FrameDecoder

text = st.text(max_size=60)
names = st.text(min_size=1, max_size=64)
ids = st.integers(1, (1 << 53) - 1)
tids = st.integers(0, (1 << 31) - 1)
indices = st.integers(0, 5)
registers = st.tuples(*[st.integers(0, (1 << 64) - 1)] * 6)
blobs = st.binary(max_size=200)
buffers = st.dictionaries(indices, blobs, max_size=6)
streams = st.sampled_from([0, 1, 2])
cells = st.integers(0, 65535)
programs = st.builds(
    Program,
    path=text,
    argv=st.lists(text, max_size=5).map(tuple),
    build_id=text,
    abstraction=text,
    stub=st.booleans(),
)
machines = st.builds(Machine, arch=text, kernel=text, hostname=text, cpu_features=st.just(("avx2",)))

MESSAGES: dict[type[Message], st.SearchStrategy[Message]] = {
    Hello: st.builds(
        Hello,
        versions=st.lists(st.integers(1, 65535), min_size=1, max_size=4).map(tuple),
        codecs=st.lists(text, min_size=1, max_size=4).map(tuple),
        software=text,
        machine=machines,
        program=programs,
        token=text,
        streams=st.lists(streams, max_size=3).map(tuple),
        terminal=st.none() | st.builds(Terminal, rows=cells, columns=cells, name=text),
    ),
    Welcome: st.builds(
        Welcome,
        version=st.integers(1, 65535),
        codec=text,
        server=text,
        software=text,
        session=text,
        host=text,
        resources=st.sampled_from(["server", "host"]),
        interest=st.dictionaries(names, st.sampled_from(["ignore", "observe", "serve"]), max_size=5),
        environment=st.none() | st.lists(blobs, max_size=4).map(tuple),
    ),
    Syscall: st.builds(
        Syscall,
        id=ids,
        tid=tids,
        pid=tids,
        name=names,
        args=registers,
        ins=buffers,
        outs=st.dictionaries(indices, st.integers(0, 8 << 20), max_size=6),
    ),
    Observed: st.builds(Observed, tid=tids, pid=tids, name=names, args=registers, ins=buffers),
    Result: st.builds(
        Result,
        id=ids,
        value=st.integers(-(1 << 63), (1 << 63) - 1),
        errno=st.integers(0, 4095),
        outs=buffers,
        proceed=st.booleans(),
    ),
    Cancel: st.builds(Cancel, id=ids),
    StreamData: st.builds(StreamData, stream=streams, data=blobs),
    StreamCredit: st.builds(StreamCredit, stream=streams, size=st.integers(1, (1 << 31) - 1)),
    StreamEnd: st.builds(StreamEnd, stream=streams),
    WindowSize: st.builds(WindowSize, rows=cells, columns=cells),
    Signal: st.builds(Signal, signo=st.integers(1, 64)),
    ThreadEvent: st.builds(ThreadEvent, tid=tids, event=st.sampled_from(["created", "exited"])),
    Exited: st.builds(Exited, status=st.none() | st.integers(0, 255), signo=st.integers(0, 64)),
    Ping: st.builds(Ping, id=ids),
}
any_message = st.one_of(*MESSAGES.values())
codecs = st.sampled_from(CODECS).map(Codec)
DECODED: typing.Any = ToServer | ToHost


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


def feed_all(pieces: list[bytes], limit: int) -> list[bytes] | None:
    """The frames, or None if the decoder rejected the stream."""
    decoder = FrameDecoder(limit)
    found: list[bytes] = []
    try:
        for piece in pieces:
            found += [bytes(view) for view in decoder.feed(piece)]
    except ProtocolError:
        return None
    return found


@given(codecs, st.lists(any_message, max_size=5), st.lists(st.integers(0, 5000), max_size=10))
def test_messages_come_out_as_they_went_in(codec: Codec, sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(bytes(codec.encode(message)) for message in sent)
    decode, decoder = codec.decoder(DECODED), FrameDecoder()
    assert [decode(view) for piece in cut(stream, cuts) for view in decoder.feed(piece)] == sent
    assert decoder.pending_bytes == 0


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=10), st.integers(1, 40))
def test_the_result_does_not_depend_on_the_pieces(data: bytes, cuts: list[int], limit: int) -> None:
    shrunk = bytes(byte % 3 if place % 5 < 3 else byte % 30 for place, byte in enumerate(data))  # small sizes
    for stream in (data, shrunk):
        assert feed_all(cut(stream, cuts), limit) == feed_all([stream], limit)


@given(codecs, any_message, st.data())
def test_truncated_payloads_raise_only_protocol_errors(
    codec: Codec, message: Message, data: st.DataObject
) -> None:
    payload = bytes(codec.encode(message))[4:]
    short = payload[: data.draw(st.integers(0, len(payload) - 1))]
    with pytest.raises(ProtocolError):
        codec.decoder(DECODED)(short)


@given(
    codecs,
    any_message,
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_mutated_payloads_decode_or_raise_protocol_errors(
    codec: Codec, message: Message, changes: list[tuple[int, int]]
) -> None:
    payload = codec.encode(message)[4:]
    for place, byte in changes:
        payload[place % len(payload)] = byte
    try:
        decoded = codec.decoder(DECODED)(payload)
    except ProtocolError:
        return
    assert codec.decoder(DECODED)(codec.encode(decoded)[4:]) == decoded


@given(codecs, st.binary(max_size=300))
def test_garbage_raises_only_protocol_errors(codec: Codec, garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.decoder(DECODED)(garbage)
    feed_all([garbage], 1000)
