"""The wire format: what is encoded is what is split, and what is malformed is refused."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ptserver.tracelog.errors import TraceFormatError
from ptserver.tracelog.protobuf import (
    bytes_field,
    number_field,
    packed_field,
    split_fields,
    text_field,
    varint,
)

FIELDS = st.integers(1, 2047)
NUMBERS = st.integers(-(2**63), 2**64 - 1)


@given(FIELDS, NUMBERS, FIELDS, st.binary())
def test_fields_are_split_as_they_were_encoded(first: int, number: int, second: int, content: bytes) -> None:
    message = number_field(first, number) + bytes_field(second, content)
    assert list(split_fields(message)) == [(first, number % 2**64), (second, content)]


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_are_the_library_s(number: int) -> None:
    assert Timestamp.FromString(number_field(1, number)).seconds == number
    assert number_field(1, number) == Timestamp(seconds=number).SerializeToString() or number == 0


def test_examples_of_the_specification() -> None:
    assert number_field(1, 150) == b"\x08\x96\x01"
    assert text_field(2, "testing") == b"\x12\x07testing"
    assert packed_field(6, (3, 270, 86942)) == b"\x32\x06\x03\x8e\x02\x9e\xa7\x05"
    assert varint(-2) == b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    assert text_field(1, "\udcff") == b"\x0a\x06\\udcff"


@given(st.binary())
def test_anything_else_is_refused_with_our_error(message: bytes) -> None:
    try:
        fields = list(split_fields(message))
    except TraceFormatError:
        return
    assert sum(len(content) for _, content in fields if isinstance(content, bytes)) <= len(message)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x08", "ends inside a number"),
        (b"\x0a\x05abc", "ends inside field 1"),
        (b"\x09" + bytes(8), "field 1 is of kind 1"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
    ],
)
def test_what_is_wrong_is_said(message: bytes, reason: str) -> None:
    with pytest.raises(TraceFormatError, match=reason):
        list(split_fields(message))
