"""What becomes of the goroutines of a spread program is told to a server or a policy, which says where they run."""

import json
import os
import re
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from ptserver.messages import GoroutineEvent
from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver, refusal
from tests.process.hearing_servers import WORKER, host_of
from tests.process.session_client import children

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")

_SERVER, _POLICY = "tests.process.hearing_servers:Places", "tests.process.hearing_servers:Policy"
_HERE = Path(__file__).resolve().parents[2]


class _Workers:
    """`spread_workers` over three hosts. err: what was left on standard error when it ended."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self.err = ""

    def line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def error_line(self) -> str:
        assert self._child.stderr is not None
        return self._child.stderr.readline()

    def goes_on(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        assert self.line() == "went on\n"

    def ends(self) -> None:
        out, self.err = self._child.communicate(timeout=60)
        assert (self._child.returncode, out) == (0, "wrong: 0\n"), self.err


@contextmanager
def _workers(*words: str) -> Iterator[_Workers]:
    command = ["ptserver", "run", "--spread", "local,local", *words, str(build("spread_workers")), "3"]
    with (
        none_left(),
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_HERE,
            env=base_environment() | {"GOMAXPROCS": "4"},
        ) as child,
    ):
        try:
            workers = _Workers(child)
            assert workers.line() == "working\n"
            yield workers
        finally:
            child.kill()


def _events(texts: Iterable[str]) -> list[GoroutineEvent]:
    found = (re.search(r"\{.*\}", text) for text in texts)
    return [msgspec.json.decode(match[0], type=GoroutineEvent) for match in found if match]


def _logged(log: Path) -> list[GoroutineEvent]:
    """Return the events that a server at an address has logged, in whole lines."""
    lines = log.read_text().splitlines(keepends=True)
    return _events(json.loads(line)["text"] for line in lines if line.endswith("\n"))


def _placed(events: Iterable[GoroutineEvent]) -> set[int]:
    """Return the workers that have gone to the host at which the server wants them."""
    return {
        event.goid
        for event in events
        if event.function == WORKER and event.what == "move" and event.host == host_of(event.goid)
    }


def _check_order(events: list[GoroutineEvent]) -> None:
    """Check that each goroutine runs only between a start and what ends that."""
    running: dict[int, int | None] = defaultdict(lambda: None)
    for event in events:
        if event.what == "create":
            assert event.goid not in running
        elif event.what == "start":
            assert running[event.goid] is None, event
            running[event.goid] = event.host
        elif event.what == "move":
            assert running[event.goid] == event.origin != event.host, event
            running[event.goid] = event.host
        else:
            if event.what != "unblock":
                assert running[event.goid] == event.host, event
            running[event.goid] = None
    moments = [event.monotonic_ns for event in events if event.what != "create"]
    assert moments == sorted(moments)


def test_a_server_at_an_address_hears_of_goroutines_and_places_them(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(_SERVER, "127.0.0.1:0", cwd=tmp_path, env=base_environment(), log=log) as (address, _):
        with _workers("--place", "stay", "--server", address) as workers:
            while len(_placed(_logged(log))) < 3:
                workers.goes_on()
            workers.ends()
        assert workers.err == ""
    events = _logged(log)
    _check_order(events)
    mine = [event for event in events if event.function == WORKER]
    goids = {event.goid for event in mine}
    assert len(goids) == 3
    for what in ("create", "start", "exit"):
        assert {event.goid for event in mine if event.what == what} == goids, what
    assert {event.by for event in mine if event.what == "create"} == {1}
    assert {event.reason for event in events} & {"sync.WaitGroup.Wait", "semacquire"}  # main waits for them


def test_a_policy_of_ones_own_hears_of_goroutines_and_places_them() -> None:
    with _workers("--place", _POLICY) as workers:
        assert len({workers.error_line() for _ in range(3)}) == 3
        workers.ends()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_events_are_in_order_while_threads_go_anywhere(seed: int) -> None:
    words = ("--server", _SERVER, "--check-memory", "0.2", build("spread_tasks", stub=True), "recursion")
    place = f"random:{seed}"
    status, out, err = ptserver(
        "run", "--spread", "local,local", "--place", place, *words, cwd=_HERE, env={"GOMAXPROCS": "3"}
    )
    assert (status, out) == (0, "5000 5000\n"), err
    events = _events(err.splitlines())
    assert len(events) == err.count("\n")
    _check_order(events)


@pytest.mark.slow
def test_a_program_goes_on_without_a_server_that_is_lost() -> None:
    command = ["ptserver", "serve", _SERVER, "--listen", "127.0.0.1:0", "--json"]
    with (
        none_left(),
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=_HERE, env=base_environment()
        ) as server,
    ):
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        with _workers("--place", "stay", "--server", address) as workers:
            for pid in (server.pid, *_descendants(server.pid)):
                os.kill(pid, signal.SIGKILL)
            line = workers.error_line()
            workers.goes_on()
            workers.ends()
    assert re.fullmatch(r"ptserver: the server at \S+ is lost \(.*\); the program goes on without it\n", line)


def _descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *_descendants(child))]


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ("read_only", "the server read_only takes calls (chmod, "),
        ("tests.process.hearing_servers:Policy", "is not a subclass of ptserver.server.RuntimeServer"),
    ],
)
def test_a_server_that_cannot_be_for_a_spread_program_is_refused(server: str, text: str) -> None:
    _, line = refusal("run", "--spread", "local", "--server", server, build("hello"), cwd=_HERE)
    assert text in line
