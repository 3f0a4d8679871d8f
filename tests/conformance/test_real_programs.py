"""Programs that people use, from Debian, at a server, each against what it does natively.

They are dynamically linked and not made for this: hugo builds a site of the server's files, caddy serves them, rclone
copies them, etcd loses its process and keeps its data, nats-server passes messages on.
"""

import base64
import contextlib
import filecmp
import http.client
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.measure import output, program
from tests.conformance.modes import base_environment, serving
from tests.leftovers import none_left
from tests.running import Running, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_SECONDS = 120.0


def executable(name: str) -> str:
    found = shutil.which(name, path="/usr/bin:/usr/sbin")
    if found is None:
        pytest.skip(f"needs the Debian package of {name}")
    return found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder where the server is."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def address(work: Path) -> Iterator[str]:
    log = work.with_name("server-log")
    with (
        none_left(),
        serving("passthrough", "127.0.0.1:0", cwd=work, env=base_environment(), log=log) as (address, _),
    ):
        yield address


@contextlib.contextmanager
def running(address: str | None, work: Path, name: str, *args: str) -> Iterator[Running]:
    """Run a program, at the server if there is an *address*."""
    path = executable(name)
    prefix = ["ptserver", "run", "--server", address] if address else []
    env = base_environment() | {"HOME": str(work)}
    with started([*prefix, path, *args], Path(path), env=env, cwd="/" if address else work) as child:
        yield child


def run(address: str | None, work: Path, name: str, *args: str) -> str:
    with running(address, work, name, *args) as child:
        ended = child.finish(seconds=PATIENCE_SECONDS)
    assert ended.status == 0, ended.stderr.decode()
    return ended.stdout.decode()


def same(left: Path, right: Path) -> bool:
    names = sorted(str(path.relative_to(left)) for path in left.rglob("*") if path.is_file())
    others = sorted(str(path.relative_to(right)) for path in right.rglob("*") if path.is_file())
    return bool(names) and names == others and not filecmp.cmpfiles(left, right, names, shallow=False)[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def await_answer(ask: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask():
                return
        assert time.monotonic() < until, "it does not answer"
        time.sleep(0.05)


def accepts(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), 5).close()
    return True


def test_hugo_builds_the_same_site(address: str, work: Path) -> None:
    site = work / "site"
    (site / "content" / "posts").mkdir(parents=True)
    (site / "layouts" / "_default").mkdir(parents=True)
    for number in range(100):
        text = f"---\ntitle: Post {number}\ndate: 2024-01-01\n---\n# Hello {number}\n\n*text* of it\n"
        (site / "content" / "posts" / f"{number}.md").write_text(text)
    (site / "config.toml").write_text('baseURL = "http://example.test/"\ntitle = "a site"\n')
    page = (
        "<title>{{ .Title }}</title>{{ .Content }}{{ range .Pages }}<a href='{{ .Permalink }}'>x</a>{{ end }}"
    )
    for name in ("_default/single.html", "_default/list.html", "index.html"):
        (site / "layouts" / name).write_text(page)
    run(None, work, "hugo", "--source", "site", "--destination", "../native")
    run(address, work, "hugo", "--source", "site", "--destination", "../served")
    assert same(work / "native", work / "served")


def test_caddy_answers_ten_thousand_requests(address: str, work: Path) -> None:
    (work / "page.html").write_text("a page of the server's\n" * 100)
    port = free_port()
    with running(address, work, "caddy", "file-server", "--listen", f"127.0.0.1:{port}") as child:
        await_answer(lambda: accepts(port))
        told = json.loads(output([program("web"), f"http://127.0.0.1:{port}/page.html", "50", "10000"]))
        assert told["count"] == 10_000
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/page.html")
        assert connection.getresponse().read() == (work / "page.html").read_bytes()
        connection.close()
        child.signal(15)
        assert child.finish().status == 0


def test_rclone_copies_and_checks(address: str, work: Path) -> None:
    source = work / "source"
    for number in range(50):
        file = source / f"folder{number % 5}" / f"file{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(number * 5000))
    run(address, work, "rclone", "--config", "/dev/null", "copy", "source", "copy")
    assert same(source, work / "copy")
    run(address, work, "rclone", "--config", "/dev/null", "check", "source", "copy")
    (work / "copy" / "folder0" / "file5").write_bytes(b"another")
    with running(address, work, "rclone", "--config", "/dev/null", "check", "source", "copy") as child:
        assert child.finish(seconds=PATIENCE_SECONDS).status != 0


def test_etcd_keeps_what_it_acknowledged(address: str, work: Path) -> None:
    port, peers = free_port(), free_port()
    here, there = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    args = [
        *("--data-dir", "data", "--listen-client-urls", here, "--advertise-client-urls", here),
        *("--listen-peer-urls", there, "--initial-advertise-peer-urls", there),
        *("--initial-cluster", f"default={there}"),
    ]

    def healthy() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/health")
            return b"true" in connection.getresponse().read()

    def ask(connection: http.client.HTTPConnection, path: str, **body: Any) -> Any:
        connection.request("POST", f"/v3/kv/{path}", json.dumps(body))
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())

    def coded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    with running(address, work, "etcd", *args) as child:
        await_answer(healthy)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            for number in range(1000):
                ask(connection, "put", key=coded(f"key{number:04}"), value=coded(f"value {number}"))
        os.kill(child.pid_of_program(), 9)
        child.finish()
    with running(address, work, "etcd", *args) as child:
        await_answer(healthy)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            found = ask(connection, "range", key=coded("key"), range_end=coded("kez"))["kvs"]
        assert [base64.b64decode(each["value"]).decode() for each in found] == [
            f"value {number}" for number in range(1000)
        ]
        child.signal(15)
        child.finish(seconds=PATIENCE_SECONDS)


def test_nats_server_passes_messages_on(address: str, work: Path) -> None:
    port = free_port()
    with running(address, work, "nats-server", "--addr", "127.0.0.1", "--port", str(port)) as child:
        await_answer(lambda: accepts(port))
        with Nats(port) as reader, Nats(port) as writer:
            reader.send(b"SUB news.* 1\r\nPING\r\n")
            assert reader.line() == b"PONG"
            for number in range(500):
                writer.send(b"PUB news.x 5\r\n%05d\r\n" % number)
            for number in range(500):
                assert reader.line() == b"MSG news.x 1 5"
                assert reader.line() == b"%05d" % number
        child.signal(15)
        child.finish(seconds=PATIENCE_SECONDS)


class Nats:
    """A client that speaks the protocol's lines."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._file = self._socket.makefile("rb")
        assert self.line().startswith(b"INFO ")
        self.send(b'CONNECT {"verbose":false}\r\nPING\r\n')
        assert self.line() == b"PONG"

    def __enter__(self) -> "Nats":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def line(self) -> bytes:
        return self._file.readline().rstrip(b"\r\n")
