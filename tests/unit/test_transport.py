"""Addresses and sockets."""

import os
import re
import socket
import stat
from pathlib import Path

import pytest

from ptserver.errors import AddressError, ConnectError
from ptserver.net import transport
from ptserver.net.transport import TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:11235", TcpAddress("localhost", 11235)),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("[::1]:80", TcpAddress("::1", 80)),
        (":65535", TcpAddress("", 65535)),
        ("unix:/run/x:1", UnixAddress("/run/x:1")),
        ("unix:relative", UnixAddress("relative")),
    ],
)
def test_addresses(text: str, address: transport.Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text
    assert transport.is_address(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no address"),
        ("localhost", "HOST:PORT"),
        ("11235", "HOST:PORT"),
        ("::1:80", "in brackets"),
        ("[::1]", "in brackets"),
        ("[::1]80", "in brackets"),
        ("[host]:80", "in brackets"),
        ("host:65536", "no port number"),
        ("host:-1", "no port number"),
        ("host:", "no port number"),
        ("host:٣", "no port number"),
        ("module:Class", "no port number"),
        ("unix:", "no path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("unix:/a\0b", "at most 107 bytes"),
    ],
)
def test_malformed_addresses(text: str, said: str) -> None:
    with pytest.raises(AddressError, match=re.escape(said)) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)
    assert not transport.is_address(text)


@pytest.fixture(params=["127.0.0.1:0", ":0", "localhost:0", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/socket" if request.param == "unix" else str(request.param)


def test_connect_to_a_listener(address: str) -> None:
    listener = transport.listen(address)
    where = transport.local_address(listener)
    if address == ":0":  # listens everywhere; an empty host connects to this machine
        where = f":{parse_address(where).port}"  # type: ignore[union-attr]
    with listener, transport.connect(where, 5) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"ping")
            assert server.recv(10) == b"ping"
            assert client.gettimeout() is None
            if client.family != socket.AF_UNIX:
                assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = transport.local_address(taken)
    for address in (where, f"unix:{tmp_path}/none"):
        with pytest.raises(ConnectError, match=f"nobody listens at {re.escape(address)}; start a server"):
            transport.connect(address, 5)


def test_a_host_that_does_not_answer() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = transport.local_address(full)
        with (
            socket.create_connection(full.getsockname()),  # fills the backlog: further SYNs are dropped
            pytest.raises(ConnectError, match=r"does not answer within 0\.2 s"),
        ):
            transport.connect(where, 0.2)


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    for address in ("127.0.0.1:0", f"unix:{tmp_path}/socket"):
        with (
            transport.listen(address) as first,
            pytest.raises(ConnectError, match=r"cannot listen at .*: Address already in use; stop"),
        ):
            transport.listen(transport.local_address(first))


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    transport.listen(address).close()  # as a killed server leaves it
    listener = transport.listen(address)
    transport.connect(address).close()
    transport.close_listener(listener)
    assert not os.path.exists(tmp_path / "socket")


def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConnectError, match="cannot listen"):
        transport.listen(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_unix_socket_is_its_owners(tmp_path: Path) -> None:
    with transport.listen(f"unix:{tmp_path}/socket"):
        assert stat.S_IMODE(os.stat(tmp_path / "socket").st_mode) == 0o600


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="No such file or directory"):
        transport.listen(f"unix:{tmp_path}/none/socket")


def test_a_pair_is_connected() -> None:
    here, there = transport.pair()
    with here, there:
        here.sendall(b"x")
        assert there.recv(1) == b"x"
