"""The connections of hosts of a spread program with each other, in one process."""

import secrets
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from ptserver.errors import ConnectionLostError, PtServerError, UntrustedError
from ptserver.net.poll_loop import PollLoop
from ptserver.spread.message_base import SpreadMessage
from ptserver.spread.passing_messages import Link, Linked, Listening, PassedPage, Unlink, Unlinked
from ptserver.spread.peer_link import Listener, call
from ptserver.spread.peers import Peers
from stepping.maps import PAGE_BYTES

_PAGE = PassedPage(7, 30, bytes([5]) * PAGE_BYTES, dirty=True)


class _Host:
    """A host on this machine. told: what the home is told; taken: pages, and from whom; forgotten: whose pages."""

    def __init__(self, number: int, loop: PollLoop) -> None:
        self.told: list[SpreadMessage] = []
        self.taken: list[tuple[int, PassedPage]] = []
        self.forgotten: list[int] = []
        self.home, self.theirs = socket.socketpair()
        self.peers = Peers(number, self.home, loop, self.told.append, 0.0)
        self.peers.begin(lambda *taken: self.taken.append(taken), self.forgotten.append)
        listening = self.peers.listening
        assert listening is not None
        self.address = f"@{listening.name}"

    def say(self, message: SpreadMessage) -> None:
        """Say it as the home."""
        self.peers.takers[type(message)](message)

    def close(self) -> None:
        self.peers.close()
        self.home.close()
        self.theirs.close()


class _Hosts:
    def __init__(self) -> None:
        self.loop = PollLoop(prompt=True)
        self.one, self.two = (_Host(number, self.loop) for number in (1, 2))
        self.secret = secrets.token_bytes(32)

    def until(self, happens: Callable[[], object]) -> None:
        """Let the hosts go on until it is so."""
        while not happens():
            self.loop.round(self._flush)

    def _flush(self) -> None:
        self.one.peers.flush()
        self.two.peers.flush()

    def link(self, secret: bytes | None = None) -> None:
        """Have host 1 connect to host 2, which may be told another secret."""
        self.one.say(Link(2, self.secret, self.two.address))
        self.two.say(Link(1, secret or self.secret))


@pytest.fixture
def hosts() -> Iterator[_Hosts]:
    made = _Hosts()
    yield made
    made.one.close()
    made.two.close()


def test_pages_go_both_ways_between_hosts_that_the_home_has_announced(hosts: _Hosts) -> None:
    assert not hosts.one.peers.say(2, _PAGE)
    hosts.link()
    hosts.until(lambda: hosts.one.told and hosts.two.told)
    assert (hosts.one.told, hosts.two.told) == ([Linked(2)], [Linked(1)])
    assert hosts.one.peers.say(2, _PAGE)
    for _ in range(2):
        assert hosts.two.peers.say(1, _PAGE)
    hosts.until(lambda: hosts.two.taken and len(hosts.one.taken) == 2)
    assert (hosts.two.taken, hosts.one.taken) == ([(1, _PAGE)], [(2, _PAGE), (2, _PAGE)])


def test_who_connects_with_another_secret_is_refused(hosts: _Hosts) -> None:
    hosts.link(secrets.token_bytes(32))
    hosts.until(lambda: hosts.one.told)
    assert hosts.one.told == [Unlinked(2, f"who listens at {hosts.two.address} is not host 2")]
    assert not hosts.two.told
    hosts.two.say(Unlink(1))
    assert hosts.two.told == [Unlinked(1)]


def test_an_end_says_once_that_a_connection_is_over_and_takes_nothing_of_it_afterwards(hosts: _Hosts) -> None:
    hosts.link()
    hosts.until(lambda: hosts.one.told and hosts.two.told)
    hosts.one.peers.say(2, _PAGE)
    hosts.one.peers.flush()
    hosts.two.say(Unlink(1))
    hosts.two.say(Unlink(1))
    assert hosts.two.told == [Linked(1), Unlinked(1)]
    assert hosts.two.forgotten == [1]
    hosts.until(lambda: len(hosts.one.told) == 2)
    assert isinstance(hosts.one.told[1], Unlinked)
    assert not hosts.two.taken
    assert not hosts.one.peers.say(2, _PAGE)


def test_a_peer_that_sends_anything_else_than_pages_is_left(hosts: _Hosts) -> None:
    hosts.one.say(Link(2, hosts.secret))
    found: list[PtServerError | object] = []
    thread = threading.Thread(target=lambda: found.append(call(hosts.one.address, "", 2, 1, hosts.secret)))
    thread.start()
    hosts.until(lambda: hosts.one.told)
    thread.join()
    stream = found[0]
    assert isinstance(stream, socket.socket)
    with stream:
        stream.sendall(b"\0\0\0\1\xc0")
        hosts.until(lambda: len(hosts.one.told) == 2)
    assert isinstance(hosts.one.told[1], Unlinked)
    assert "malformed" in hosts.one.told[1].reason


def test_nobody_gets_a_connection_who_does_not_know_the_secret() -> None:
    """Neither who connects, nor who listens, learns it from the other."""
    home, theirs = socket.socketpair()
    listener = Listener(home)
    secret = secrets.token_bytes(32)
    refused: list[Exception] = []

    def welcome() -> None:
        sock, _ = listener.sock.accept()
        try:
            listener.welcome(sock, 1, lambda peer: secret if peer == 2 else None)
        except PtServerError as error:
            refused.append(error)

    with home, theirs, listener.sock:
        for number, meant in ((2, 1), (3, 1), (2, 4)):
            thread = threading.Thread(target=welcome)
            thread.start()
            with pytest.raises((UntrustedError, ConnectionLostError)):
                call(f"@{listener.listening.name}", "", number, meant, secrets.token_bytes(32))
            thread.join()
    assert len(refused) == 3


def test_a_host_that_is_reached_over_the_network_speaks_tls_with_a_certificate_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ptserver.spread.peer_link.is_private", lambda name: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        home = socket.create_connection(server.getsockname())
        with home:
            listeners = [Listener(home) for _ in range(2)]
    secret = secrets.token_bytes(32)
    ends: list[tuple[int, bytes, object]] = []
    refused: list[PtServerError] = []

    def welcome(listener: Listener) -> None:
        sock, _ = listener.sock.accept()
        try:
            ends.append(listener.welcome(sock, 1, lambda peer: secret))
        except PtServerError as error:
            refused.append(error)

    def connect(listening: Listening, certificate: str) -> None:
        call(f"127.0.0.1:{listening.port}", certificate, 2, 1, secret).close()

    for certificate in (listener.listening.certificate for listener in listeners):
        thread = threading.Thread(target=welcome, args=(listeners[0],))
        thread.start()
        if certificate == listeners[0].listening.certificate:
            connect(listeners[0].listening, certificate)
        else:
            with pytest.raises(UntrustedError):
                connect(listeners[0].listening, certificate)
        thread.join()
    assert len(refused) == 1
    ((peer, known, stream),) = ends
    assert (peer, known) == (2, secret)
    stream.close()  # type: ignore[attr-defined]
    for listener in listeners:
        listener.sock.close()
