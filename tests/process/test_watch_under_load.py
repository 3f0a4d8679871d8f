"""Attach, trace, detach, over and over, to servers whose client checks every answer: no error, and nothing is left.

Two of nats-server, a program that nobody made for this: one of a new Go and without cgo, whose calls are seen through
the ring; and Debian's, which uses cgo and an older Go, so that its calls are seen by stops, and attach says why it
cannot.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepping.ring_site import find_site
from tests.nats import DEBIANS, MODERN, NatsClient, nats_server
from tests.process.commands import refusal
from tests.process.test_ring_program import traces_of

ROUNDS = [
    pytest.param(2, 0.3, id="2"),
    pytest.param(200, 5.0, id="200", marks=[pytest.mark.slow, pytest.mark.timeout(4000)]),
]

#: How many messages the client is asked to send.
_AT_ONCE = 1600


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


class Load(threading.Thread):
    """Sends messages through a server and checks each, until it is told to stop."""

    def __init__(self, client: NatsClient) -> None:
        super().__init__()
        self._client = client
        self._enough = threading.Event()
        self._wrong: AssertionError | None = None
        self._progress = threading.Condition()

    def run(self) -> None:
        while not self._enough.is_set():
            try:
                self._client.send(_AT_ONCE // 8, 20)
            except AssertionError as error:
                self._wrong = error
                self._enough.set()
            with self._progress:
                self._progress.notify_all()

    def check(self) -> None:
        """Wait until more messages have come back, all of them right."""
        with self._progress:
            enough = self._client.sent + 2 * _AT_ONCE  # those under way may have passed before
            assert self._progress.wait_for(lambda: self._wrong or self._client.sent >= enough, 60)
        assert self._wrong is None

    def stop(self) -> None:
        """Wait until it has ended."""
        self._enough.set()
        self.join(60)


@contextlib.contextmanager
def loaded(program: Path) -> Iterator[tuple[int, Load]]:
    """Run a server whose client sends messages meanwhile; give its pid."""
    with nats_server(program) as (pid, port):
        client = NatsClient(port)
        try:
            load = Load(client)
            load.start()
            try:
                load.check()
                yield pid, load
                load.check()
            finally:
                load.stop()
        finally:
            client.close()


@pytest.mark.parametrize(("rounds", "seconds"), ROUNDS)
def test_a_server_that_the_ring_is_for(rounds: int, seconds: float, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with loaded(MODERN) as (pid, load):
        site = find_site(pid)
        clean = traces_of(pid, site)
        for _ in range(rounds):
            watched(["trace", "-k", "--json", "-o", str(log), str(pid)], seconds)
            assert b"PUB load." in log.read_bytes()
            load.check()
            taken = watched(["attach", "--json", "-n", "0.2", str(pid)], seconds)
            assert taken.count(b"\n") >= 1
            load.check()
            assert traces_of(pid, site) == clean


@pytest.mark.skipif(not DEBIANS.exists(), reason="Debian's nats-server is not installed")
@pytest.mark.parametrize(("rounds", "seconds"), ROUNDS)
def test_debians_nats_server(rounds: int, seconds: float, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with loaded(DEBIANS) as (pid, load):
        descriptors = sorted(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(rounds):
            watched(["trace", "--json", "-o", str(log), str(pid)], seconds)
            assert b"PUB load." in log.read_bytes()
            load.check()
            assert "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text()
            assert sorted(os.listdir(f"/proc/{pid}/fd")) == descriptors
        status_code, message = refusal("attach", "--once", str(pid))
        assert status_code == 66
        assert "ptserver trace" in message
