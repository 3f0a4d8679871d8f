"""What is said together."""

import socket

from ptserver.net.connection import Connection
from ptserver.net.wire import Codec
from ptserver.spread.bundle import MOST_MESSAGES, Bundle
from ptserver.spread.messages import AllowWrite, Several, SpreadMessage, ToHost
from ptserver.spread.page_messages import Access, PutPages
from stepping.maps import PAGE_BYTES


def _say(messages: list[SpreadMessage]) -> list[SpreadMessage]:
    """Return what arrives of *messages*."""
    here, there = socket.socketpair()
    saying: Connection[ToHost] = Connection(here, Codec("msgpack"), ToHost)
    hearing: Connection[ToHost] = Connection(there, Codec("msgpack"), ToHost)
    try:
        bundle = Bundle(saying)
        for message in messages:
            bundle.say(message)
        sent = bundle.flush()
        heard: list[SpreadMessage] = []
        while new := hearing.receive():
            heard += new
            sent = sent or bundle.flush()
        assert sent
        return heard
    finally:
        saying.close()
        hearing.close()


def test_what_is_said_in_one_round_arrives_as_one_message_in_order() -> None:
    messages: list[SpreadMessage] = [
        PutPages((7,), bytes((Access.WRITE,)), b"\1" * PAGE_BYTES),
        AllowWrite(8),
    ]
    assert _say(messages) == [Several(tuple(messages))]


def test_what_is_said_alone_arrives_alone() -> None:
    assert _say([AllowWrite(8)]) == [AllowWrite(8)]
    assert _say([]) == []


def test_much_goes_in_parts() -> None:
    messages: list[SpreadMessage] = [AllowWrite(page) for page in range(MOST_MESSAGES + 1)]
    assert _say(messages) == [Several(tuple(messages[:-1])), messages[-1]]
