"""Frames and codecs byte by byte."""

import base64
import json

import msgspec
import pytest

from ptserver.errors import ProtocolError
from ptserver.messages import (
    CODECS,
    MAX_TRANSFER_BYTES,
    Message,
    Pong,
    Program,
    Result,
    StreamData,
    Syscall,
    ToHost,
    ToServer,
)
from ptserver.net.wire import HEADER_BYTES, MAX_FRAME_BYTES, Codec, FrameDecoder, frame_size

CALL = Syscall(
    id=5,
    tid=12,
    pid=11,
    name="openat",
    args=((1 << 64) - 100, 0xC000, 0, 0, 0, 0),
    ins={1: b"/\xff"},
    outs={2: 9},
)


def frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def test_a_frame_is_a_big_endian_size_and_the_payload() -> None:
    assert Codec("json").encode(Pong(id=7)) == b'\0\0\0\x16{"type":"pong","id":7}'


def test_json_has_bytes_in_base64_and_indices_as_strings() -> None:
    payload = json.loads(bytes(Codec("json").encode(CALL))[HEADER_BYTES:])
    assert payload["type"] == "syscall"
    assert payload["args"][0] == (1 << 64) - 100
    assert base64.b64decode(payload["ins"]["1"]) == b"/\xff"
    assert payload["outs"] == {"2": 9}


@pytest.mark.parametrize("name", CODECS)
def test_what_is_encoded_is_decoded(name: str) -> None:
    codec = Codec(name)
    (payload,) = FrameDecoder().feed(codec.encode(CALL))
    assert codec.decoder(ToServer)(payload) == CALL


@pytest.mark.parametrize("name", CODECS)
def test_messages_are_appended(name: str) -> None:
    codec, out = Codec(name), bytearray(b"before")
    codec.encode_into(CALL, out)
    codec.encode_into(Pong(id=1), out)
    assert out == b"before" + codec.encode(CALL) + codec.encode(Pong(id=1))


def test_frames_come_in_any_pieces() -> None:
    stream = frame(b"one") + frame(b"two") + frame(b"x" * 1000)
    decoder = FrameDecoder()
    found = [bytes(payload) for byte in stream for payload in decoder.feed(bytes([byte]))]
    assert found == [b"one", b"two", b"x" * 1000]
    assert decoder.pending_bytes == 0


def test_pending_bytes_counts_an_incomplete_frame() -> None:
    decoder = FrameDecoder()
    assert [bytes(view) for view in decoder.feed(frame(b"one") + frame(b"two")[:-1])] == [b"one"]
    assert decoder.pending_bytes == HEADER_BYTES + 2


def test_an_earlier_frame_survives_the_next_feed() -> None:
    decoder = FrameDecoder()
    decoder.feed(frame(b"first")[:-1])
    (first,) = decoder.feed(b"t")
    decoder.feed(frame(b"second")[:-1])
    assert bytes(first) == b"first"


@pytest.mark.parametrize("size", [0, 11, 0xFFFFFFFF, int.from_bytes(b"HTTP", "big")])
def test_a_size_that_is_not_allowed_is_refused_before_the_payload_comes(size: int) -> None:
    with pytest.raises(ProtocolError, match="is it a ptserver"):
        FrameDecoder(10).feed(size.to_bytes(4, "big"))


def test_the_limit_itself_is_allowed() -> None:
    assert frame_size(b"\0\0\0\x0a", 10) == 10
    assert FrameDecoder(10).feed(frame(b"0123456789")) == [b"0123456789"]


@pytest.mark.parametrize("name", CODECS)
def test_a_frame_holds_a_whole_transfer(name: str) -> None:
    codec = Codec(name)
    message = Result(id=1, value=MAX_TRANSFER_BYTES, outs={1: bytes(MAX_TRANSFER_BYTES)})
    (payload,) = FrameDecoder().feed(codec.encode(message))
    assert codec.decoder(ToHost)(payload) == message


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "message",
    [
        StreamData(stream=1, data=bytes(MAX_FRAME_BYTES + 1)),
        msgspec.structs.replace(CALL, name="\udcff"),
    ],
    ids=["too large", "not UTF-8"],
)
def test_what_cannot_be_sent_leaves_the_buffer_as_it_was(name: str, message: Message) -> None:
    out = bytearray(b"before")
    with pytest.raises(ProtocolError, match="cannot send"):
        Codec(name).encode_into(message, out)
    assert out == b"before"


def test_unknown_codecs_are_named() -> None:
    with pytest.raises(ValueError, match="no codec 'xml'; there are msgpack, json"):
        Codec("xml")


BAD_CALLS: dict[str, dict[str, object]] = {
    "no id": {"id": 0},
    "an id that JSON readers round": {"id": 1 << 53},
    "a register above 64 bits": {"args": [1 << 64, 0, 0, 0, 0, 0]},
    "a goroutine above 64 bits": {"goid": 1 << 64},
    "a register below zero": {"args": [-1, 0, 0, 0, 0, 0]},
    "five registers": {"args": [0] * 5},
    "an argument index of 6": {"ins": {6: b""}},
    "an empty name": {"name": ""},
    "a long name": {"name": "x" * 65},
    "a huge out-buffer": {"outs": {1: MAX_TRANSFER_BYTES + 1}},
    "a negative out-buffer": {"outs": {1: -1}},
    "text for a number": {"tid": "1"},
    "an unknown type": {"type": "nonsense"},
    "a message of the other direction": {"type": "result"},
}


@pytest.mark.parametrize(("what", "bad"), BAD_CALLS.items(), ids=BAD_CALLS.keys())
def test_bounds_are_enforced(what: str, bad: dict[str, object]) -> None:
    fields = {"type": "syscall"} | msgspec.structs.asdict(CALL) | bad
    with pytest.raises(ProtocolError, match="malformed message"):
        Codec("json").decoder(ToServer)(msgspec.json.encode(fields))
    if "above 64 bits" not in what:  # which MessagePack cannot write
        with pytest.raises(ProtocolError, match="malformed message"):
            Codec("msgpack").decoder(ToServer)(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"nonsense",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"x":' + b"[" * 100_000,
        b'{"type":"pong","id":1} x',
    ],
)
@pytest.mark.parametrize("name", CODECS)
def test_malformed_payloads_are_one_line_errors(name: str, payload: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        Codec(name).decoder(ToServer)(payload)
    assert "\n" not in str(caught.value)


def test_an_error_does_not_carry_the_peers_line_ends() -> None:
    with pytest.raises(ProtocolError) as caught:
        Codec("json").decoder(ToServer)(b'{"type":"a\\nb' + b"x" * 1000 + b'"}')
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_unknown_fields_are_ignored() -> None:
    assert Codec("json").decoder(ToServer)(b'{"type":"pong","id":1,"later":[1,{}]}') == Pong(id=1)


def test_a_program_of_any_bytes_fits_into_a_hello() -> None:
    program = Program.shown(b"/tmp/\xff" + b"p" * 5000, ["main", "\udcff", "\x01" * 100_000, "y"])
    assert program.argv[:2] == ("main", "\ufffd")
    assert program.path.startswith("/tmp/\ufffdp")
    assert len(msgspec.json.encode(program)) < 60_000
    many = Program.shown("main", ["a"] * 100_000)
    assert len(many.argv) == 1024
    assert msgspec.convert(msgspec.to_builtins(many), Program) == many
