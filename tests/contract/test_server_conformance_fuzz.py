"""Random bytes at both servers: the client that sends them may be dropped, and nobody else notices."""

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptserver.conformance.checks import Server
from ptserver.conformance.client import POINTER
from ptserver.errors import ConnectionLostError
from ptserver.messages import (
    CODECS,
    Exited,
    Observed,
    StreamCredit,
    StreamData,
    StreamEnd,
    Syscall,
    WindowSize,
)
from tests.contract.test_server_conformance import TOKEN, serving

few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

SEEDS = [
    Syscall(1, 1, 1, "read", (0, POINTER, 10, 0, 0, 0), {}, {1: 10}),
    Syscall(2, 1, 1, "openat", (3, POINTER, 0, 0, 0, 0), {1: b"/proc/self/status"}),
    Syscall(3, 1, 1, "pipe2", (POINTER, 0, 0, 0, 0, 0), {}, {0: 8}),
    Syscall(4, 1, 1, "epoll_pwait", (5, POINTER, 8, 0, 0, 8), {}, {1: 96}),
    Observed(1, 1, "write", (1, POINTER, 4, 0, 0, 0), {1: b"text"}),
    StreamData(0, b"typed"),
    StreamCredit(1, 1000),
    StreamEnd(0),
    WindowSize(24, 80),
    Exited(0),
]


@pytest.fixture(scope="module", params=["ptserver", "goserver"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzz")
    with serving(request.param, "127.0.0.1:0", folder) as address:
        yield Server(address, token=TOKEN)


@pytest.fixture(scope="module")
def bystander(server: Server) -> Iterator[None]:
    """A session that lives through all of it."""
    with server.session() as client:
        yield
        client.ping()


@few
@given(st.binary(max_size=100))
def test_garbage_instead_of_a_hello(server: Server, bystander: None, data: bytes) -> None:
    with server.raw() as client:
        client.send(data)
    with server.session() as after:
        after.ping()


@few
@given(st.data())
def test_a_hello_with_some_bytes_changed(server: Server, bystander: None, data: st.DataObject) -> None:
    payload = bytearray(msgspec.json.encode(server.hello()))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with server.raw() as client:
        client.send_frame(bytes(payload))
        client.answer()  # a welcome, a refusal or nothing; anything else raises
    with server.session() as after:
        after.ping()


@few
@given(st.sampled_from(CODECS), st.lists(st.sampled_from(SEEDS), min_size=1, max_size=6), st.data())
def test_messages_with_some_bytes_changed(
    server: Server, bystander: None, codec: str, seeds: list[msgspec.Struct], data: st.DataObject
) -> None:
    with server.session(codecs=(codec, "json"), streams=(0, 1)) as client:
        for seed in seeds:
            payload = bytearray(client.encode(msgspec.to_builtins(seed, builtin_types=(bytes,))))
            for _ in range(data.draw(st.integers(0, 3))):
                payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
            client.send_payload(bytes(payload))
        sock = client.connection
        try:
            sock.receive()
        except ConnectionLostError:
            pass  # it was dropped, as it may be
    with server.session() as after:
        after.ping()
