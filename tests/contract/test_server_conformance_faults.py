"""The suite finds faults: a proxy makes a good server do one thing wrong, and the right check must fail."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptserver.conformance.__main__ import CHECKS
from ptserver.conformance.checks import Server, run_checks
from ptserver.net import transport
from ptserver.net.wire import FrameDecoder
from tests.contract.test_server_conformance import TOKEN, serving

Fields = dict[str, Any]
Fault = Callable[[Fields], list[Fields]]


class Proxy:
    """Passes on what a host says, and all that the server says through `fault`."""

    def __init__(self, server: str, fault: Fault, *, keeps_open: bool) -> None:
        self._server = server
        self._fault = fault
        self._keeps_open = keeps_open
        self._listener = transport.listen("127.0.0.1:0")
        self.address = transport.local_address(self._listener)
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                host, _ = self._listener.accept()
                server = transport.connect(self._server)
                self._sockets += [host, server]
                self._start(self._to_server, host, server)
                self._start(self._to_host, server, host)

    @staticmethod
    def _to_server(host: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := host.recv(1 << 16):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _to_host(self, server: socket.socket, host: socket.socket) -> None:
        decoder = FrameDecoder()
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                for frame in decoder.feed(data):
                    for fields in self._fault(json.loads(bytes(frame))):
                        payload = json.dumps(fields).encode()
                        host.sendall(len(payload).to_bytes(4, "big") + payload)
            if not self._keeps_open:
                host.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        for sock in self._sockets:
            sock.close()


def honest(fields: Fields) -> list[Fields]:
    return [fields]


def changed(kind: str, **changes: Any) -> Fault:
    """Change fields of all messages of one type; a function gets the old value."""

    def fault(fields: Fields) -> list[Fields]:
        if fields["type"] == kind:
            for name, change in changes.items():
                fields[name] = change(fields.get(name)) if callable(change) else change
        return [fields]

    return fault


def removed(kind: str) -> Fault:
    return lambda fields: [] if fields["type"] == kind else [fields]


def doubled(kind: str) -> Fault:
    return lambda fields: [fields] * (1 + (fields["type"] == kind))


def longer(outs: dict[str, str] | None) -> dict[str, str]:
    return {index: "AAAA" * 400 + data for index, data in (outs or {}).items()}


def more(data: str) -> str:
    return "eHh4" + data


FAULTS: dict[str, tuple[Fault, str]] = {
    "an empty session name": (changed("welcome", session=""), "a hello is welcomed"),
    "one name for all sessions": (changed("welcome", session="1"), "sessions have names of their own"),
    "a version of its own": (changed("welcome", version=2), "JSON is always spoken"),
    "a codec of its own": (changed("welcome", codec="msgpack"), "JSON is always spoken"),
    "vague refusals": (
        changed("refused", code="internal"),
        "versions that the server does not speak are refused",
    ),
    "refusals of two lines": (changed("refused", message="a\nb"), "codecs that nobody knows are refused"),
    "wrong pongs": (changed("pong", id=lambda old: old + 1), "a ping is answered with its id"),
    "a pong twice": (doubled("pong"), "a thousand frames in one write are all answered, in order"),
    "no goodbye": (removed("goodbye"), "a program that exits is taken leave of, and then the server closes"),
    "wrong ids": (changed("result", id=lambda old: old + 1000), "an answer carries its call's id"),
    "results twice": (doubled("result"), "a cancel may come at any time: every call is answered just once"),
    "more than was asked for": (
        changed("result", outs=longer),
        "no answer has more bytes than the call has room for",
    ),
    "success for all": (changed("result", errno=0), "errors are errno values, and leave value alone"),
    "no ENOSYS": (
        changed("result", errno=lambda old: 1 if old == 38 else old),
        "a call that the server does not know gets ENOSYS, and the session goes on",
    ),
    "no data": (changed("result", outs={}), "what is written can be read again"),
    "streams mixed up": (
        changed("streamdata", stream=1),
        "what the program writes comes out, each stream for itself",
    ),
    "data without credit": (changed("streamdata", data=more), "no more comes than there is credit for"),
    "no credit": (removed("streamcredit"), "what the user types is read, up to its end"),
    "another host name": (changed("welcome", host="elsewhere"), "the host's name is the one of the welcome"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("good")
    with serving("goserver", "127.0.0.1:0", folder) as address:
        yield address, folder


def outcome(good: tuple[str, Path], fault: Fault, title: str, *, keeps_open: bool = False) -> str:
    (check,) = (each for each in CHECKS if each.title == title)
    proxy = Proxy(good[0], fault, keeps_open=keeps_open)
    try:
        server = Server(
            proxy.address, str(good[1]).encode(), TOKEN, timeout=0.5 if fault is not honest else 10
        )
        (finding,) = run_checks([check], server)
        return finding.outcome
    finally:
        proxy.close()


@pytest.mark.parametrize(("fault", "title"), FAULTS.values(), ids=FAULTS.keys())
def test_the_check_finds_the_fault(good: tuple[str, Path], fault: Fault, title: str) -> None:
    assert outcome(good, honest, title) == "ok"
    assert outcome(good, fault, title) == "fail"


DROPS = [
    check.title
    for check in CHECKS
    if "ends the" in check.title or check.title.startswith("so is a program that a signal killed")
]


@pytest.mark.parametrize("title", DROPS)
def test_a_server_that_drops_nobody_is_found(good: tuple[str, Path], title: str) -> None:
    def silent(fields: Fields) -> list[Fields]:
        return [] if fields["type"] == "refused" else [fields]

    assert outcome(good, silent, title, keeps_open=True) == "fail"
