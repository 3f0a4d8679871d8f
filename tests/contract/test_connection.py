"""Connections and handshakes, the same over every transport."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ptserver.errors import ConnectError, ConnectionLostError, ProtocolError, PtServerError, RefusedError
from ptserver.messages import (
    CODECS,
    PROTOCOL_VERSION,
    Hello,
    Machine,
    Message,
    Ping,
    Pong,
    Program,
    StreamData,
    ToHost,
    ToServer,
    Welcome,
)
from ptserver.net import transport
from ptserver.net.connection import HIGH_WATER_BYTES, Connection, Stream, client_handshake, server_handshake
from ptserver.net.tls import accept_tls, connect_tls, connecting_keys, listening_keys
from ptserver.net.wire import MAX_HELLO_BYTES, Codec

Pair = tuple[Stream, Stream]

HELLO = Hello(
    versions=(PROTOCOL_VERSION,),
    codecs=CODECS,
    software="test",
    machine=Machine("amd64", "6.1", "here"),
    program=Program.shown("/bin/true", ["true"]),
)


def welcome(_: Hello, version: int, codec: str) -> Welcome:
    return Welcome(version, codec, "test", "test", "1", "there", "server", {"openat": "serve"})


@pytest.fixture(params=["pair", "unix", "tcp", "tls"])
def sockets(request: pytest.FixtureRequest, tmp_path: Path, keys: Path) -> Iterator[Pair]:
    """The host's socket and the server's."""
    here: Stream
    there: Stream
    if request.param == "pair":
        here, there = transport.pair()
    elif request.param == "tls":
        here, there = tls_pair(keys)
    else:
        with transport.listen(f"unix:{tmp_path}/s" if request.param == "unix" else "127.0.0.1:0") as listener:
            here = transport.connect(transport.local_address(listener))
            there, _ = listener.accept()
    with contextlib.closing(here), contextlib.closing(there):
        yield here, there


def tls_pair(keys: Path) -> tuple[Stream, Stream]:
    """Return both ends of TLS over a pair of sockets."""
    here, there = transport.pair()
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(accept_tls, there, listening_keys(keys / "server"), 10)
        return connect_tls(here, connecting_keys(keys / "client"), "localhost", 10), accepted.result(10)


def exactly(sock: Stream, size: int) -> bytes:
    """Return the next *size* bytes."""
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


@pytest.fixture
def beside() -> Iterator[Callable[..., Future[Any]]]:
    """Run a function on another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


def wait(connection: Connection[Any]) -> list[Any]:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    assert connection.has_received or poll.poll(10_000), "nothing came"
    connection.has_received = False
    return connection.receive()


def connections(sockets: Pair, codec: str = "msgpack") -> tuple[Connection[ToHost], Connection[ToServer]]:
    here, there = sockets
    return Connection(here, Codec(codec), ToHost), Connection(there, Codec(codec), ToServer)


@pytest.mark.parametrize("codec", CODECS)
def test_messages_go_both_ways(sockets: Pair, codec: str) -> None:
    host, server = connections(sockets, codec)
    assert host.receive() == []
    host.send(Ping(id=1))
    host.send(Ping(id=2))
    assert host.wants_write
    assert host.flush()
    assert not host.wants_write
    assert wait(server) == [Ping(id=1), Ping(id=2)]
    server.send(Pong(id=1))
    server.flush()
    assert wait(host) == [Pong(id=1)]


def test_a_slow_reader_is_felt(sockets: Pair) -> None:
    host, server = connections(sockets)
    data = StreamData(stream=0, data=bytes(1 << 20))
    count = 0
    while not host.congested:
        host.send(data)
        host.flush()
        count += 1
    assert host.pending_bytes >= HIGH_WATER_BYTES
    assert not host.flush()
    got: list[Message] = []
    while len(got) < count:
        host.flush()
        got += wait(server)
    assert got == [data] * count
    assert host.flush()
    assert not host.congested


def test_drain_gives_up_after_its_time(sockets: Pair) -> None:
    host, _ = connections(sockets)
    for _ in range(8):
        host.send(StreamData(stream=0, data=bytes(8 << 20)))
    assert not host.drain(0.01)


def test_a_peer_that_closes_is_lost_after_its_last_message(sockets: Pair) -> None:
    host, server = connections(sockets)
    server.send(Pong(id=1))
    server.flush()
    server.close()
    assert wait(host) == [Pong(id=1)]
    with pytest.raises(ConnectionLostError, match=r"closed by the other side$"):
        wait(host)


def test_a_peer_that_closes_within_a_message(sockets: Pair) -> None:
    host, _ = connections(sockets)
    sockets[1].send(b"\0\0\0\x05ab")
    sockets[1].close()
    assert wait(host) == []
    with pytest.raises(ConnectionLostError, match="in the middle of a message"):
        wait(host)


def test_last_words_are_heard_though_sending_fails(sockets: Pair) -> None:
    host, server = connections(sockets)
    server.send(Pong(id=1))
    server.flush()
    server.close()
    heard: list[Message] = []
    with pytest.raises(ConnectionLostError):  # noqa: PT012 - until the loss shows
        while True:
            host.send(Ping(id=1))
            host.flush()
            heard += host.receive()
    assert heard == [Pong(id=1)]


def test_finish_delivers_what_is_queued(sockets: Pair, beside: Callable[..., Future[Any]]) -> None:
    host, server = connections(sockets)
    host.send(Ping(id=3))  # unread input at the closing side must not destroy its output
    host.flush()
    server.send(StreamData(stream=1, data=bytes(6 << 20)))
    server.send(Pong(id=1))
    done = beside(server.finish, 10)
    got: list[Message] = []
    while not got or got[-1] != Pong(id=1):
        got += wait(host)
    host.close()
    done.result(10)
    assert server.fileno() == -1


def test_garbage_is_a_protocol_error(sockets: Pair) -> None:
    host, _ = connections(sockets)
    sockets[1].send(b"\0\0\0\x02zz")
    with pytest.raises(ProtocolError):
        wait(host)


@pytest.mark.parametrize("codecs", [("msgpack", "json"), ("json", "msgpack"), ("later", "json")])
def test_handshake(sockets: Pair, beside: Callable[..., Future[Any]], codecs: tuple[str, ...]) -> None:
    hello = msgspec.structs.replace(HELLO, codecs=codecs, versions=(7, PROTOCOL_VERSION))
    served = beside(server_handshake, sockets[1], 10, welcome)
    said, host = client_handshake(sockets[0], hello, 10)
    heard, told, server = served.result(10)
    assert (heard, told) == (hello, said)
    assert said.codec == codecs[codecs[0] == "later"]
    host.send(Ping(id=1))
    host.flush()
    assert wait(server) == [Ping(id=1)]


def test_what_follows_the_welcome_at_once_is_not_lost(
    sockets: Pair, beside: Callable[..., Future[Any]]
) -> None:
    def serve() -> None:
        _, _, server = server_handshake(sockets[1], 10, welcome)
        server.send(Ping(id=9))
        server.drain(10)

    served = beside(serve)
    _, host = client_handshake(sockets[0], HELLO, 10)
    served.result(10)
    assert wait(host) == [Ping(id=9)]


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "version": ({"versions": (2, 3)}, "version", "speaks version 1 of the protocol, the host 2, 3; install"),
    "codec": ({"codecs": ("xml",)}, "codec", "speaks msgpack and json, the host neither"),
}


@pytest.mark.parametrize(("change", "code", "said"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_agreed_on_is_refused(
    sockets: Pair, beside: Callable[..., Future[Any]], change: dict[str, Any], code: str, said: str
) -> None:
    served = beside(server_handshake, sockets[1], 10, welcome)
    with pytest.raises(RefusedError, match=said) as caught:
        client_handshake(sockets[0], msgspec.structs.replace(HELLO, **change), 10)
    assert caught.value.code == code
    with pytest.raises(RefusedError, match=said):
        served.result(10)
    assert sockets[0].fileno() == sockets[1].fileno() == -1


def test_the_servers_own_refusal(sockets: Pair, beside: Callable[..., Future[Any]]) -> None:
    def choose(hello: Hello, version: int, codec: str) -> Welcome:
        raise RefusedError("token", "the token is wrong")

    served = beside(server_handshake, sockets[1], 10, choose)
    with pytest.raises(RefusedError, match="the server refuses: the token is wrong"):
        client_handshake(sockets[0], HELLO, 10)
    with pytest.raises(RefusedError):
        served.result(10)


def test_a_failure_of_the_servers_own_closes_without_details(
    sockets: Pair, beside: Callable[..., Future[Any]]
) -> None:
    def choose(hello: Hello, version: int, codec: str) -> Welcome:
        raise PtServerError("/secret/path is missing")

    served = beside(server_handshake, sockets[1], 10, choose)
    with pytest.raises(RefusedError, match="the server failed") as caught:
        client_handshake(sockets[0], HELLO, 10)
    assert caught.value.code == "internal"
    with pytest.raises(PtServerError, match="secret"):
        served.result(10)


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


BAD_HELLOS = {
    "a web browser": b"GET / HTTP/1.1\r\n\r\n",
    "an oversize hello": (MAX_HELLO_BYTES + 1).to_bytes(4, "big"),
    "no JSON": framed(b"\x81\xa4type\xa5hello"),
    "another message": framed(b'{"type":"ping","id":1}'),
    "a hello without a program": framed(b'{"type":"hello","versions":[1],"codecs":["json"]}'),
}


@pytest.mark.parametrize("data", BAD_HELLOS.values(), ids=BAD_HELLOS.keys())
def test_a_bad_hello_is_told_so(sockets: Pair, beside: Callable[..., Future[Any]], data: bytes) -> None:
    served = beside(server_handshake, sockets[1], 10, welcome)
    here = sockets[0]
    here.sendall(data)
    size = int.from_bytes(exactly(here, 4), "big")
    refused = msgspec.json.decode(exactly(here, size))
    assert (refused["type"], refused["code"]) == ("refused", "malformed")
    here.close()
    with pytest.raises(ProtocolError):
        served.result(10)


def test_a_hello_of_a_later_version_need_not_look_like_ours(
    sockets: Pair, beside: Callable[..., Future[Any]]
) -> None:
    served = beside(server_handshake, sockets[1], 10, welcome)
    sockets[0].sendall(framed(b'{"type":"hello","versions":[2],"codecs":7}'))
    sockets[0].shutdown(socket.SHUT_WR)
    with pytest.raises(RefusedError) as caught:
        served.result(10)
    assert caught.value.code == "version"


UNFINISHED = [b"", b"\0\0", framed(b"{" * 10)[:-1]]


@pytest.mark.parametrize("data", UNFINISHED)
def test_a_peer_that_stops_in_its_hello(
    sockets: Pair, beside: Callable[..., Future[Any]], data: bytes
) -> None:
    served = beside(server_handshake, sockets[1], 0.05, welcome)
    sockets[0].sendall(data)
    assert b"did not complete its hello within 0.05 s" in sockets[0].recv(1000)
    sockets[0].close()
    with pytest.raises(ProtocolError):
        served.result(10)


@pytest.mark.parametrize("data", UNFINISHED)
def test_a_peer_that_leaves_in_its_hello(sockets: Pair, data: bytes) -> None:
    sockets[0].sendall(data)
    sockets[0].close()
    with pytest.raises(ConnectionLostError, match="before the session began"):
        server_handshake(sockets[1], 10, welcome)


def test_a_server_that_says_nothing(sockets: Pair) -> None:
    with pytest.raises(ConnectError, match=r"said nothing for 0\.05 s; is it a ptserver"):
        client_handshake(sockets[0], HELLO, 0.05)


def test_a_server_that_closes(sockets: Pair) -> None:
    sockets[1].close()
    with pytest.raises(ConnectionLostError, match="before the session began"):
        client_handshake(sockets[0], HELLO, 10)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is it a ptserver"),
        (framed(b'{"type":"pong","id":1}'), "malformed message"),
        (framed(msgspec.json.encode(welcome(HELLO, 2, "json"))), "which were not offered"),
        (framed(msgspec.json.encode(welcome(HELLO, 1, "xml"))), "which were not offered"),
    ],
)
def test_a_server_that_answers_something_else(sockets: Pair, answer: bytes, said: str) -> None:
    threads = threading.active_count()
    sockets[1].sendall(answer)
    with pytest.raises(ProtocolError, match=said):
        client_handshake(sockets[0], HELLO, 10)
    assert threading.active_count() == threads
