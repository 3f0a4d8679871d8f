"""A connection that is cut in the middle of an atomic operation: it has happened exactly once, or not at all."""

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.process.commands import ptserver

Moment = Literal["before it is sent", "half sent", "done, and not answered"]

#: The operation that is cut, counted from 1.
CUT = 7
_SIZE = struct.Struct(">I")


class Cutter:
    """Relays one connection between a host and the server at *address*, up to a moment of an atomic operation."""

    def __init__(self, address: str, moment: Moment) -> None:
        self._moment = moment
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._at = address.rpartition(":")
        self._server: socket.socket | None = None
        self._host: socket.socket | None = None
        self._operations = 0
        self._is_last_answer = threading.Event()
        self._threads = [threading.Thread(target=self._relay_requests, daemon=True)]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads[0].start()

    def _relay_requests(self) -> None:
        self._host, _ = self._listener.accept()
        self._server = server = socket.create_connection((self._at[0], int(self._at[2])))
        answers = threading.Thread(target=self._relay_answers, args=(server, self._host), daemon=True)
        self._threads.append(answers)
        answers.start()
        for frame in _frames(self._host):
            if b"memoryatomic" in frame:
                self._operations += 1
                if self._operations == CUT:
                    self._cut(server, frame)
                    return
            server.sendall(frame)

    def _cut(self, server: socket.socket, frame: bytes) -> None:
        if self._moment == "half sent":
            server.sendall(frame[: len(frame) // 2])
        elif self._moment == "done, and not answered":
            self._is_last_answer.set()
            server.sendall(frame)
            return  # the answer to it ends both
        self.close()

    def _relay_answers(self, server: socket.socket, host: socket.socket) -> None:
        for frame in _frames(server):
            if self._is_last_answer.is_set() and b"memoryresult" in frame:
                self.close()
                return
            host.sendall(frame)

    def close(self) -> None:
        for one in (self._host, self._server, self._listener):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


def _frames(stream: socket.socket) -> Iterator[bytes]:
    """Yield frames with their sizes, up to the end of *stream*."""
    data = b""
    with contextlib.suppress(OSError):
        while more := stream.recv(1 << 16):
            data += more
            while len(data) >= _SIZE.size and len(data) >= (end := _SIZE.size + _SIZE.unpack_from(data)[0]):
                yield data[:end]
                data = data[end:]


@pytest.mark.parametrize("engine", ["native", pytest.param("emulate", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("moment", "done"),
    [("before it is sent", CUT - 1), ("half sent", CUT - 1), ("done, and not answered", CUT)],
)
def test_it_has_happened_once_or_not_at_all(moment: Moment, done: int, engine: str, tmp_path: Path) -> None:
    program = build("remote_counter")
    log = tmp_path / "server-log"
    with serving("passthrough", "127.0.0.1:0", cwd=tmp_path, env=base_environment(), log=log) as (address, _):
        cutter = Cutter(address, moment)
        run = ["ptserver", "run", f"--engine={engine}", "--remote-var", "main.counter", "--server"]
        child = subprocess.run(
            [*run, cutter.address, program, "add", "100", "1"], capture_output=True, text=True, check=False
        )
        cutter.close()
        assert (child.returncode, child.stdout) == (69, "")
        assert child.stderr.startswith("ptserver: ")
        assert "lost connection to runtime server" in child.stderr or "the server " in child.stderr
        status, out, _ = ptserver(*run[1:], address, program, "add", "0", "1")
        assert (status, out) == (0, f"{done}\n")
