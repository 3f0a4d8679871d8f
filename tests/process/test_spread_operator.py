"""What an operator sees of a spread program and does to it while it runs: the program's results stay right."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import refusal
from tests.process.session_client import children

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")


class _Running:
    """`spread_workers`, spread."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.session = str(child.pid)

    def line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline()

    def goes_on(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        assert self.line() == "went on\n"

    def command(self, *words: str) -> str:
        done = subprocess.run(
            ["ptserver", *words],
            capture_output=True,
            env=base_environment(),
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def rows(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.command(*words, "--json", self.session).splitlines()]

    def hosts(self) -> dict[int, str]:
        return {row["host"]: row["condition"] for row in self.rows("ps") if row["type"] == "host"}

    def finds(self, goid: int, host: int) -> None:
        """Look until the goroutine is seen to run at a host; between two threads it is nowhere."""
        for _ in range(50):
            if self.workers().get(goid, {}).get("host") == host:
                return
        raise AssertionError(f"goroutine {goid} never is at host {host}")

    def instances(self) -> tuple[int, int, int]:
        """Return how many the home has: children, memories of instances, descriptors of threads that are gone."""
        folder = f"/proc/{self.child.pid}/fd"
        links = []
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):
                links.append(os.readlink(f"{folder}/{name}"))
        return (
            len(children(self.child.pid)),
            sum("instance" in link for link in links),
            sum("schedstat" in link and not os.path.exists(link) for link in links),
        )

    def workers(self) -> dict[int, dict[str, Any]]:
        rows = self.rows("ps")
        return {row["goid"]: row for row in rows if row.get("function", "").startswith("main.main.")}


@contextmanager
def _workers(count: int, hosts: str = "local", place: str = "stay") -> Iterator[_Running]:
    program = build("spread_workers")
    with (
        none_left(),
        subprocess.Popen(
            [
                "ptserver",
                "run",
                "--spread",
                hosts,
                "--straight",
                "all",
                "--place",
                place,
                str(program),
                str(count),
            ],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            env=base_environment() | {"GOMAXPROCS": str(count + 1)},
            text=True,
        ) as child,
    ):
        running = _Running(child)
        assert running.line() == "working\n"
        yield running
        assert child.communicate()[0] == "wrong: 0\n"
    assert child.returncode == 0


def test_goroutines_are_seen_and_moved_and_hosts_come_and_go() -> None:
    with _workers(1) as running:
        (goid,) = running.workers()
        said = running.command("migrate", running.session, str(goid), "--to", "1", "--wait", "60")
        assert said == f"goroutine {goid} goes on at host 1\n"
        running.goes_on()
        assert running.command("join", "agent", running.session) == "agent is host 2\n"
        assert running.hosts() == {0: "ready", 1: "ready", 2: "ready"}
        assert (
            running.command("drain", "1", running.session) == "host 1 has nothing of the program any more\n"
        )
        assert running.hosts() == {0: "ready", 2: "ready"}
        running.goes_on()
        said = running.command("migrate", running.session, str(goid), "--to", "2", "--wait", "60", "--json")
        assert json.loads(said) == {"goroutine": goid, "host": 2, "stays": None}
        running.finds(goid, 2)
        faults = [row for row in running.rows("top", "--count", "1", "-n", "0.2") if row["type"] == "faults"]
        assert sum(row.get("reads", 0) + row.get("writes", 0) for row in faults) > 0
        said = running.command("join", "local", running.session, "--json")
        assert json.loads(said) == {"address": "local", "host": 3}
        assert json.loads(running.command("drain", "2", running.session, "--json")) == {"host": 2}
        assert running.instances() == (2, 2, 0)  # nothing is left of the hosts that have gone


def test_what_cannot_move_stays_and_the_reason_is_said() -> None:
    """A goroutine that sleeps, one that reads, and one in the C library, which only host 0 has."""
    program = build("spread_stays", cgo=True)
    with (
        none_left(),
        subprocess.Popen(
            ["ptserver", "run", "--spread", "local", "--place", "stay", str(program)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            env=base_environment(),
            text=True,
        ) as child,
    ):
        running = _Running(child)
        assert running.line() == "ready\n"
        reasons = {
            "main.main.gowrap1": "it sleeps (chan receive)",
            "main.reads": "it is in call read",
            "main.sorts": "it executes C code, and that of a library is at host 0 alone",
        }
        for _ in range(50):  # they may have just begun
            rows = {row["function"]: row for row in running.rows("ps") if row["type"] == "goroutine"}
            if {name: rows.get(name, {}).get("stays") for name in reasons} == reasons:
                break
        else:
            raise AssertionError(rows)
        goid = str(rows["main.sorts"]["goid"])
        said = running.command("migrate", running.session, goid, "--to", "1", "--wait", "0.3")
        assert said.startswith(f"goroutine {goid} has not gone in 0.3 s: {reasons['main.sorts']}; ")
        assert [row["moves"] for row in running.rows("ps") if row["type"] == "program"] == [0]
        assert child.communicate("x", timeout=30)[0] == ""
    assert child.returncode == 0


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("migrate", "SESSION", "999999", "--to", "1"), 69, "there is no goroutine 999999"),
        (("migrate", "SESSION", "1", "--to", "7"), 69, "there is no host 7; there are 0 (local), 1 (local)"),
        (("drain", "0", "SESSION"), 69, "host 0 is where the program began"),
        (("join", "localhost:1", "SESSION"), 69, "nobody listens at localhost:1"),
        (("ps", "999999-9"), 66, "there is no session 999999-9"),
    ],
)
def test_what_an_operator_cannot_have_is_refused_in_one_line(
    words: tuple[str, ...], status: int, text: str, idle: _Running
) -> None:
    got, line = refusal(*(idle.session if word == "SESSION" else word for word in words))
    assert got == status
    assert text in line


@pytest.fixture(scope="module")
def idle() -> Iterator[_Running]:
    with _workers(0) as running:
        yield running


@pytest.mark.slow
def test_hosts_are_drained_and_joined_again_and_again_under_load() -> None:
    with _workers(3, place="idle") as running:
        for last in range(1, 6):
            running.command("join", "agent" if last % 2 else "local", running.session)
            running.goes_on()
            running.command("drain", str(last), running.session)
            running.goes_on()
        assert running.hosts() == {0: "ready", 6: "ready"}
