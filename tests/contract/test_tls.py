"""TLS: who is let in, what is said to whom, and what a poll loop may rely on."""

import datetime
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ptserver import keys as making
from ptserver.errors import (
    ConnectError,
    ConnectionLostError,
    KeysError,
    ProtocolError,
    PtServerError,
    RefusedError,
    UntrustedError,
)
from ptserver.messages import Ping, StreamData, ToHost, ToServer
from ptserver.net import transport
from ptserver.net.connection import Connection, client_handshake, server_handshake
from ptserver.net.reach import reach
from ptserver.net.tls import accept_tls, connect_tls, connecting_keys, listening_keys
from ptserver.net.tls_stream import TlsStream
from ptserver.net.transport import RECEIVE_BYTES
from ptserver.net.wire import Codec
from tests.contract.test_connection import HELLO, tls_pair, wait, welcome

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def sockets() -> Iterator[Pair]:
    here, there = transport.pair()
    with here, there:
        yield here, there


@pytest.fixture
def beside() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


def serve(sock: socket.socket, folder: Path, timeout: float = 10.0) -> str:
    """Be the end that listens; return what it says of its peer."""
    try:
        stream = accept_tls(sock, listening_keys(folder), timeout)
        server_handshake(stream, timeout, welcome)[2].finish()
    except PtServerError as error:
        return str(error)
    return "let in"


def connect(sock: socket.socket, folder: Path, name: str = "localhost") -> None:
    stream = connect_tls(sock, connecting_keys(folder), name, 10)
    client_handshake(stream, HELLO)[1].close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "db1.example", "DB1.example"])
def test_both_ends_of_one_ca_meet(
    sockets: Pair, beside: Callable[..., Future[Any]], keys: Path, name: str
) -> None:
    served = beside(serve, sockets[1], keys / "server")
    connect(sockets[0], keys / "client", name)
    assert served.result(10) == "let in"


def test_one_more_client_is_let_in(
    sockets: Pair, beside: Callable[..., Future[Any]], keys: Path, tmp_path: Path
) -> None:
    shutil.copytree(keys, tmp_path / "keys")
    laptop = making.add_client(tmp_path / "keys", "laptop", days=1)
    served = beside(serve, sockets[1], keys / "server")
    connect(sockets[0], laptop)
    assert served.result(10) == "let in"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> dict[str, Path]:
    """Folders of keys that are not in order, by what is wrong with them."""
    where = tmp_path_factory.mktemp("others")
    making.make_keys(where / "other", ["db1.example"], days=1, token=False)
    making.make_keys(where / "token", ["db1.example"], days=1, token=True)
    made: dict[str, Path] = {"other server": where / "other/server", "other client": where / "other/client"}
    made |= {"token server": where / "token/server", "token client": where / "token/client"}
    (where / "bare").mkdir()
    shutil.copy(keys / "client/ca.pem", where / "bare")
    made["bare client"] = where / "bare"
    shutil.copytree(
        keys / "client", where / "mixed"
    )  # trusts the right CA, and shows a certificate of another
    for name in ("cert.pem", "key.pem"):
        shutil.copy(where / "other/client" / name, where / "mixed" / name)
    made["mixed client"] = where / "mixed"
    shutil.copytree(keys / "client", where / "as-server")  # a client that plays the server
    made["client as server"] = where / "as-server"
    now = datetime.datetime.now(datetime.UTC)
    for age, days in (("old", -400), ("new", 2)):
        moment = now + datetime.timedelta(days=days)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(making, "_now", lambda moment=moment: moment)
            making.make_keys(where / age, ["db1.example"], days=100, token=False)
    for age in ("old", "new"):
        shutil.copy(where / age / "ca/cert.pem", where / age / "client/ca.pem")
        made[f"{age} server"], made[f"{age} client"] = where / age / "server", where / age / "client"
    return made


@pytest.mark.parametrize(
    ("server", "client", "said", "logged"),
    [
        (
            "old server",
            "old client",
            "the certificate of db1.example has expired: make new keys",
            "certificate",
        ),
        ("new server", "new client", "is not valid yet: is the clock of this machine right?", "alert"),
        ("other server", "client", "is of another CA than ca.pem says", "does not accept our certificate"),
        ("server", "bare client", "cert.pem and key.pem are missing", "the peer shows no certificate"),
        ("server", "mixed client", "the other side does not trust our certificate", "is not trusted"),
        ("client as server", "client", "is of another CA than ca.pem says .unsuitable", "does not accept"),
    ],
)
def test_who_is_not_trusted_is_told_why(
    sockets: Pair,
    beside: Callable[..., Future[Any]],
    keys: Path,
    others: dict[str, Path],
    server: str,
    client: str,
    said: str,
    logged: str,
) -> None:
    folders = others | {"server": keys / "server", "client": keys / "client"}
    served = beside(serve, sockets[1], folders[server])
    with pytest.raises(UntrustedError, match=said) as caught:
        connect(sockets[0], folders[client], "db1.example")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 77
    assert logged in served.result(10)


@pytest.mark.parametrize("name", ["db2.example", "192.0.2.1", "db1.example.org", "example"])
def test_a_server_under_another_name_is_not_trusted(
    sockets: Pair, beside: Callable[..., Future[Any]], keys: Path, name: str
) -> None:
    served = beside(serve, sockets[1], keys / "server")
    with pytest.raises(UntrustedError, match=f"the certificate there is not for {name}"):
        connect(sockets[0], keys / "client", name)
    assert "does not accept our certificate" in served.result(10)


def test_a_token_needs_no_certificate_of_the_client(
    sockets: Pair, beside: Callable[..., Future[Any]], others: dict[str, Path]
) -> None:
    ours, theirs = connecting_keys(others["token client"]), listening_keys(others["token server"])
    assert ours.token == theirs.token != ""
    assert not theirs.mutual
    served = beside(serve, sockets[1], others["token server"])
    connect(sockets[0], others["token client"])
    assert served.result(10) == "let in"


def test_a_plain_client_is_told_that_tls_is_wanted(
    sockets: Pair, beside: Callable[..., Future[Any]], keys: Path
) -> None:
    served = beside(serve, sockets[1], keys / "server")
    with pytest.raises(RefusedError, match="TLS is wanted here") as caught:
        client_handshake(sockets[0], HELLO)
    assert caught.value.code == "tls"
    assert "TLS is wanted here" in served.result(10)


def test_a_tls_client_is_told_that_a_server_is_plain(
    sockets: Pair, beside: Callable[..., Future[Any]], keys: Path
) -> None:
    served = beside(server_handshake, sockets[1], 10, welcome)
    with pytest.raises(ProtocolError, match="localhost does not speak TLS: start it with --keys DIR"):
        connect(sockets[0], keys / "client")
    with pytest.raises(RefusedError, match="one side speaks TLS"):
        served.result(10)


def test_an_older_tls_is_refused(sockets: Pair, beside: Callable[..., Future[Any]], keys: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(keys / "client/ca.pem")
    context.load_cert_chain(keys / "client/cert.pem", keys / "client/key.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    served = beside(serve, sockets[1], keys / "server")
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        context.wrap_socket(sockets[0], server_hostname="localhost")
    assert "unsupported protocol" in served.result(10)


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x16\x03\x01\x02\x00" + bytes(20), b"\x15\x03"])
def test_a_peer_that_stops_in_its_handshake_is_given_up(
    sockets: Pair, beside: Callable[..., Future[Any]], keys: Path, data: bytes
) -> None:
    sockets[0].sendall(data)
    assert "within 0.05 s" in serve(sockets[1], keys / "server", 0.05)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\n\r\n" * 10])
def test_a_peer_that_speaks_something_else_is_given_up(
    sockets: Pair, keys: Path, data: bytes, beside: Callable[..., Future[Any]]
) -> None:
    served = beside(serve, sockets[1], keys / "server")
    sockets[0].sendall(data)
    sockets[0].shutdown(socket.SHUT_WR)
    assert "the TLS handshake failed" in served.result(10)


def test_a_peer_that_says_nothing_or_leaves(sockets: Pair, keys: Path) -> None:
    with pytest.raises(ConnectError, match=r"says nothing for 0\.05 s"):
        connect_tls(sockets[0], connecting_keys(keys / "client"), "localhost", 0.05)
    here, there = transport.pair()
    there.close()
    with pytest.raises(ConnectionLostError, match="closed the connection during the TLS handshake"):
        connect_tls(here, connecting_keys(keys / "client"), "localhost", 10)


def test_no_byte_is_left_where_poll_cannot_see_it(keys: Path) -> None:
    here, there = tls_pair(keys)
    host, server = Connection(here, Codec("msgpack"), ToHost), Connection(there, Codec("msgpack"), ToServer)
    for _ in range(3):
        for number in range(1, 2001):  # many records' worth
            host.send(Ping(number))
        host.send(StreamData(0, bytes(300_000)))
        got: list[Any] = []
        while len(got) < 2001:
            host.flush()
            got += wait(server)
            assert isinstance(there, TlsStream)
            assert there.pending() < 1 << 14  # less than a record: the rest is still to come
        assert [ping.id for ping in got[:2000]] == list(range(1, 2001))
    host.close()
    server.close()


class Wire:
    """What one end has sent and the other has not read; it gives as much as is asked for."""

    def __init__(self) -> None:
        self.data = bytearray()

    def send(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def recv_into(self, view: memoryview) -> int:
        count = min(len(view), len(self.data))
        if not count:
            raise BlockingIOError
        view[:count] = self.data[:count]
        del self.data[:count]
        return count


def reading(stream: TlsStream, buffer: bytearray) -> int:
    """Return how much one read gives, nothing if it must wait."""
    try:
        return stream.recv_into(buffer)
    except BlockingIOError:
        return 0


def test_nor_when_a_read_completes_a_record_and_brings_as_much_as_it_can(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tls_pair(keys)
    assert isinstance(here, TlsStream)
    assert isinstance(there, TlsStream)
    here.send(b"x")
    assert there.recv(RECEIVE_BYTES) == b"x"
    overhead, record = 22, 10_000
    first = (RECEIVE_BYTES + 1) % (
        record + overhead
    ) - overhead  # so that one read leaves a record all but complete
    buffer, wire, came = bytearray(RECEIVE_BYTES), Wire(), 0
    with monkeypatch.context() as patch:
        for stream in (here, there):
            stream.setblocking(False)
            patch.setattr(stream, "_sock", wire)
        for size in (first, *[record] * 52):
            here.sendall(bytes(size))
        while wire.data:
            came += reading(there, buffer)
        assert came == first + 52 * record
    here.close()
    there.close()


def test_what_came_with_the_handshake_is_not_lost(
    sockets: Pair, beside: Callable[..., Future[Any]], keys: Path
) -> None:
    """A server may put its next words into one record with its welcome."""

    def serve_at_once() -> None:
        stream = accept_tls(sockets[1], listening_keys(keys / "server"), 10)
        json = Codec("json")
        hello = stream.recv(1 << 16)
        assert hello
        stream.sendall(json.encode(welcome(HELLO, 1, "json")) + json.encode(Ping(7)) + json.encode(Ping(8)))

    served = beside(serve_at_once)
    stream = connect_tls(sockets[0], connecting_keys(keys / "client"), "localhost", 10)
    _, connection = client_handshake(stream, HELLO)
    served.result(10)
    assert connection.has_received
    assert connection.receive() == [Ping(7), Ping(8)]
    assert connection.receive() == []


def test_bytes_on_the_wire_that_were_changed_end_the_connection(keys: Path) -> None:
    here, there = tls_pair(keys)
    host = Connection(here, Codec("msgpack"), ToHost)
    assert isinstance(there, TlsStream)
    there._sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ConnectionLostError, match="the TLS connection broke"):
        wait(host)
    host.close()
    there.close()


@pytest.mark.parametrize(
    "damage", ["cut", "foreign", "other key", "encrypted", "missing", "open", "short token"]
)
def test_folders_that_are_not_in_order(
    keys: Path, others: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "server"
    shutil.copytree(keys / "server", folder)
    key, certificate = folder / "key.pem", folder / "cert.pem"
    match damage:
        case "cut":
            key.write_bytes(key.read_bytes()[:60])
            said = "is no certificate or key in PEM form"
        case "foreign":
            (folder / "ca.pem").write_text("hello\n")
            said = "holds no certificates in PEM form"
        case "other key":
            key.write_bytes((keys / "client/key.pem").read_bytes())
            said = f"{key} is not the key of {certificate}"
        case "encrypted":
            key.write_bytes(_encrypted(key.read_bytes()))
            said = "is encrypted"
        case "missing":
            key.unlink()
            said = f"cannot read {key}: No such file or directory"
        case "open":
            key.chmod(0o640)
            said = r"is open to others .mode 0640., so it is no secret: chmod 600"
        case _:
            (folder / "token").touch(0o600)
            said = "has 0 characters, fewer than 16"
    with pytest.raises(KeysError, match=said) as caught:
        listening_keys(folder)
    assert "\n" not in str(caught.value)


def _encrypted(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pem, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_keys_are_for_their_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    making.make_keys(folder, ["db1.example", "10.0.0.7", "fe80::1"], days=1, token=False)
    before = {path: path.read_bytes() for path in folder.rglob("*.pem")}
    assert {path.parent.name for path in before} == {"ca", "server", "client"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in before)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in folder.iterdir())
    with pytest.raises(KeysError, match="is there already, and keys are not overwritten"):
        making.make_keys(folder, ["db1.example"], days=1, token=False)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.pem")}
    with pytest.raises(KeysError, match="is there already"):
        making.add_client(folder, "client", days=1)


@pytest.mark.parametrize("name", ["a b", "db1:11235", "", "-x", "a..b", "*"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="neither a host name nor an address"):
        making.make_keys(tmp_path / "keys", [name], days=1, token=False)
    with pytest.raises(KeysError):
        making.add_client(tmp_path, "../x", days=1)


def test_another_machine_is_not_reached_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    with transport.listen("127.0.0.1:0") as listener:
        address = transport.local_address(listener)
        stream, token = reach(address, None)
        stream.close()
        assert token == ""
        monkeypatch.setattr("ptserver.net.reach.is_private", lambda name: False)
        with pytest.raises(UntrustedError, match="is another machine, which needs TLS"):
            reach(address, None)


@pytest.mark.parametrize(
    ("name", "private"),
    [
        ("/run/socket", True),
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("0.0.0.0", 1), False),
        (("::", 1, 0, 0), False),
        (("10.0.0.1", 1), False),
        (("::ffff:10.0.0.1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), False),
    ],
)
def test_what_is_private(name: object, private: bool) -> None:
    assert transport.is_private(name) is private
