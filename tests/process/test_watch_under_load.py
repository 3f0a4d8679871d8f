"""Attach, trace, detach, over and over, to servers whose clients check every answer: no error, and nothing is left.

`ring_net` is a server of Go 1.27 and its own clients, seen through the ring. Debian's nats-server is a program that
nobody made for this: it uses cgo and an older Go, so that its calls are seen by stops, and attach says why it cannot.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepping.ring_site import find_site
from tests.gofixtures import build
from tests.process.commands import refusal
from tests.process.test_ring_program import traces_of

ROUNDS = [
    pytest.param(2, 0.3, id="2"),
    pytest.param(200, 5.0, id="200", marks=[pytest.mark.slow, pytest.mark.timeout(4000)]),
]


def watched(words: list[str], seconds: float) -> bytes:
    """Run a command that watches, for so long; return what it wrote on standard output."""
    with subprocess.Popen(["ptserver", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # What says that it has begun: the remark on the source of a trace, or the first interval.
        first = (process.stderr if words[0] == "trace" else process.stdout).readline()
        assert first
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    return first + out


@pytest.mark.parametrize(("rounds", "seconds"), ROUNDS)
def test_a_server_that_the_ring_is_for(rounds: int, seconds: float, tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([build("ring_net")], stdin=pipe, stdout=pipe, text=True) as server:
        try:
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline().startswith("ready")
            server.stdin.write("get 1\n")
            server.stdin.flush()
            assert server.stdout.readline() == "got 8\n"
            site = find_site(server.pid)
            clean = traces_of(server.pid, site)
            server.stdin.write("get 100000000\n")
            server.stdin.flush()
            for number in range(rounds):
                log = tmp_path / "log"
                watched(["trace", "-k", "--json", "-o", str(log), str(server.pid)], seconds)
                assert b'"connect"' in log.read_bytes()
                taken = watched(["attach", "--json", "-n", "0.2", str(server.pid)], seconds + 1)
                assert taken.count(b"\n") >= 1
                assert server.poll() is None, f"after {number} rounds"
            now = traces_of(server.pid, site)
            now["descriptors"] = clean["descriptors"]  # the clients' connections come and go
            assert now == clean
        finally:
            server.kill()


@contextlib.contextmanager
def nats() -> Iterator[tuple[int, int]]:
    """Run Debian's nats-server; give its pid and port."""
    program = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nats-server is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(
        [program, "--addr", "127.0.0.1", "--port", str(port)], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            while "Server is ready" not in server.stderr.readline():
                pass
            yield server.pid, port
            server.terminate()
            server.communicate(timeout=60)
        finally:
            server.kill()


class Client(threading.Thread):
    """Publishes messages and checks that each comes back, until it is told to stop; sent: how many did."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.sent = 0
        self.wrong: list[bytes] = []
        self.enough = threading.Event()
        self._socket = socket.create_connection(("127.0.0.1", port), 60)

    def run(self) -> None:
        file = self._socket.makefile("rb")
        file.readline()  # INFO
        self._socket.sendall(b'CONNECT {"verbose":false}\r\nSUB news.* 1\r\n')
        while not self.enough.is_set() and not self.wrong:
            body = b"%08d" % self.sent
            self._socket.sendall(b"PUB news.x 8\r\n" + body + b"\r\n")
            lines = [file.readline(), file.readline()]
            while lines[0] == b"PING\r\n":
                self._socket.sendall(b"PONG\r\n")
                lines = [lines[1], file.readline()]
            if lines != [b"MSG news.x 1 8\r\n", body + b"\r\n"]:
                self.wrong = lines
            self.sent += 1
        file.close()
        self._socket.close()


@pytest.mark.parametrize(("rounds", "seconds"), ROUNDS)
def test_debians_nats_server(rounds: int, seconds: float, tmp_path: Path) -> None:
    with nats() as (pid, port):
        client = Client(port)
        client.start()
        try:
            descriptors = None
            for _ in range(rounds):
                log = tmp_path / "log"
                before = client.sent
                watched(["trace", "--json", "-o", str(log), str(pid)], seconds + 1)
                text = log.read_bytes()
                assert b'"text":"MSG news.x' in text or b"MSG news.x 1 8" in text
                deadline = time.monotonic() + 60
                while client.sent <= before and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert client.sent > before
                assert client.wrong == []
                status = Path(f"/proc/{pid}/status").read_text()
                assert "TracerPid:\t0" in status
                there = sorted(os.listdir(f"/proc/{pid}/fd"))
                assert descriptors in (None, there)
                descriptors = there
            status_code, message = refusal("attach", "--once", str(pid))
            assert status_code == 66
            assert "ptserver trace" in message
        finally:
            client.enough.set()
            client.join(60)
        assert client.wrong == []
