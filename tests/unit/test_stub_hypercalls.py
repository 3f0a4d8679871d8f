"""The hypercalls' codecs, and that the Go side says the same."""

import re
from pathlib import Path

import pytest

import ptserver.stub
from ptserver.stub.hypercalls import (
    FIRST_HYPERCALL,
    INFO_KEYS,
    INFO_MAX_BYTES,
    LAST_HYPERCALL,
    MESSAGE_BYTES,
    REQUEST_MAX_BYTES,
    STUB_ABI,
    Hypercall,
    MarkerError,
    decode_marker,
    encode_info,
    encode_marker,
    encode_message,
)

SOURCES = Path(ptserver.stub.__file__).parent


def go_constants(name: str) -> dict[str, int]:
    text = (SOURCES / name).read_text()
    found = re.findall(r"^\t(\w+) += (0x[0-9a-f]+|\d+(?: << \d+)?)(?: |$)", text, re.MULTILINE)
    return {key: eval(value) for key, value in found}


def test_go_and_python_agree() -> None:
    runtime, remote = go_constants("runtime_stub.go"), go_constants("remote.go")
    assert runtime["remoteHello"] == Hypercall.HELLO == FIRST_HYPERCALL
    assert runtime["remoteWatch"] == Hypercall.WATCH
    assert runtime["remoteMessageBytes"] == MESSAGE_BYTES
    assert remote["infoCall"] == Hypercall.INFO
    assert remote["hostsCall"] == Hypercall.HOSTS
    assert remote["hereCall"] == Hypercall.HERE
    assert remote["migrateCall"] == Hypercall.MIGRATE
    assert remote["lastCall"] == LAST_HYPERCALL
    assert remote["infoMaxBytes"] == INFO_MAX_BYTES
    assert tuple(re.findall(r'case "(\w+)":', (SOURCES / "remote.go").read_text())) == INFO_KEYS


def test_every_hypercall_is_beyond_every_kernel_and_in_the_range() -> None:
    assert all(FIRST_HYPERCALL <= call <= LAST_HYPERCALL for call in Hypercall)


def test_marker_round_trip() -> None:
    longest = "a" * 32
    for name in ("linux", "plan9", "a_b", longest):
        assert decode_marker(encode_marker(name) + b"rest") == (STUB_ABI, name)
    assert decode_marker(encode_marker("x", abi=9999)) == (9999, "x")
    assert len(encode_marker(longest, abi=9999)) <= REQUEST_MAX_BYTES


@pytest.mark.parametrize("name", ["", "Linux", "9p", "a-b", "a b", "a" * 33, "linux\n", "é"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="no name of an OS abstraction"):
        encode_marker(name)


def test_every_truncation_of_a_marker_is_an_error() -> None:
    marker = encode_marker("linux")
    for length in range(len(marker)):
        with pytest.raises(MarkerError):
            decode_marker(marker[:length])
    with pytest.raises(MarkerError):
        decode_marker(b" " + marker)


def test_messages_are_one_line_and_end_in_zero() -> None:
    assert encode_message("no\nway\t\x00!") == b"no way !\0"
    assert encode_message("") == b"\0"
    assert encode_message("é" * 10, 6) == "éé".encode() + b"\0"
    assert encode_message("abc", 1) == b"\0"
    assert encode_message("abc", 0) == b""
    assert encode_message("\ud800") == b"?\0"
    assert len(encode_message("x" * 5000)) == MESSAGE_BYTES


def test_info_is_lines() -> None:
    assert encode_info({"name": "a=b", "host": "x\ny"}) == b"name=a=b\nhost=x y\n"
    assert encode_info({}) == b""


@pytest.mark.parametrize("key", ["", "a=b", "a\nb"])
def test_info_refuses_keys_that_cannot_be_read_back(key: str) -> None:
    with pytest.raises(ValueError, match="cannot be a key"):
        encode_info({key: "x"})


def test_info_refuses_what_the_stub_would_not_read() -> None:
    with pytest.raises(ValueError, match="are allowed"):
        encode_info({"host": "x" * INFO_MAX_BYTES})
