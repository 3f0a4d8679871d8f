"""Pages that go straight from one host of a spread program to another, and by way of the home where they cannot."""

import ctypes
import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.modes import base_environment, waiting
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver
from tests.process.session_client import children
from tests.two_machines import skip_without_machines, two_machines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")

_PIDFD_GETFD = 438
#: How many pages of the program change hosts with each line of input: 16 there and back, 10 times.
_PAGES = 320


class _Exchanging:
    """`spread_tasks exchange` over three hosts, which counts up to a multiple of 20 with each line."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self.child = child
        numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{child.pid}/status").read_text(), re.M)
        assert numbers is not None
        self.session = numbers[1].split()[-1]  # as its own machine numbers it
        self.lines = 0

    def go_on(self) -> None:
        """Have pages passed between hosts 1 and 2; all of them are right."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.lines += 1
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        assert self.child.stdout.readline() == f"counted {self.lines * 20 % 256}\n"

    def look(self) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
        """Return what `ptserver ps` says of the program, and of its hosts."""
        rows = [json.loads(line) for line in ptserver("ps", "--json", self.session)[1].splitlines()]
        return rows[0], {row["host"]: row for row in rows if row["type"] == "host"}

    def counts(self) -> tuple[int, int]:
        """Return how many pages went straight, and how many by way of the home."""
        counts = self.look()[0]["counts"]
        return counts["straight"], counts["relayed"]


@contextmanager
def _exchanging(
    hosts: str, *options: str, popen: Callable[..., Any] = subprocess.Popen
) -> Iterator[_Exchanging]:
    program = str(build("spread_tasks", stub=True))
    command = ["ptserver", "run", "--spread", hosts, "--place", "stay", "--check-memory", "0.2", *options]
    with (
        none_left(),
        popen(
            [*command, program, "exchange"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=base_environment() | {"GOMAXPROCS": "3"},
            text=True,
        ) as child,
    ):
        running = _Exchanging(child)
        running.go_on()
        yield running
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (0, "", "")


def _links(agent: int) -> list[int]:
    """Return the descriptors of a process that are connections of one host with another on this machine."""
    with open("/proc/net/unix", encoding="ascii") as file:
        named = {line.split()[6] for line in file if "@ptserver-" in line and line.split()[5] == "03"}
    found = []
    for entry in Path(f"/proc/{agent}/fd").iterdir():
        with suppress(FileNotFoundError):
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
            if match and match[1] in named:
                found.append(int(entry.name))
    return found


def _break_link(home: int) -> None:
    """End the connection of two hosts on this machine, at that end which was connected to."""
    agents = [pid for pid in children(home) if children(pid)]
    ((agent, fd),) = [(agent, fd) for agent in agents for fd in _links(agent)]
    pidfd = os.pidfd_open(agent)
    try:
        with socket.socket(
            fileno=ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, fd, 0)
        ) as link:
            link.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(pidfd)


def test_pages_go_straight_from_host_to_host_and_through_the_home_when_the_connection_is_lost() -> None:
    with _exchanging("agent,agent", "--straight", "all") as running:
        running.go_on()
        straight, relayed = running.counts()
        assert straight > _PAGES
        assert relayed < _PAGES  # those that went before there was a connection
        _, hosts = running.look()
        assert [hosts[host].get("straight", []) for host in range(3)] == [[], [2], [1]]
        _break_link(running.child.pid)
        for _ in range(2):
            running.go_on()
        assert running.counts()[1] > relayed + _PAGES
        program, hosts = running.look()
        assert [hosts[host].get("straight", []) for host in range(3)] == [[], [], []]
        assert program["unlinked"] == [[1, 2, "the connection was closed by the other side"]]
        shown = ptserver("ps", running.session)[1].splitlines()[0]
        assert shown.endswith(
            "; hosts 1 and 2 exchange pages by way of host 0: the connection was closed by the other side"
        )


def test_pages_go_through_the_home_where_hosts_cannot_reach_each_other(tmp_path: Path) -> None:
    def popen(command: list[str], **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(["unshare", "--net", *command], **options)

    with (
        waiting(f"unix:{tmp_path}/host", tmp_path, popen=popen) as (address, _),
        _exchanging(f"agent,{address}", "--straight", "all") as running,
    ):
        running.go_on()
        straight, relayed = running.counts()
        assert (straight, relayed > 2 * _PAGES) == (0, True)
        ((one, other, reason),) = running.look()[0]["unlinked"]
        assert (one, other) == (1, 2)
        assert reason.endswith("Connection refused")


@skip_without_machines
def test_pages_go_straight_between_machines_under_tls(tmp_path: Path) -> None:
    with ExitStack() as stack:
        machines = stack.enter_context(two_machines(tmp_path))
        addresses = []
        for machine in (machines.here, machines.there):
            place, folder = f"{machine.address}:0", tmp_path / machine.name
            folder.mkdir()
            keys = machines.listening_keys
            addresses.append(stack.enter_context(waiting(place, folder, *keys, popen=machine.popen))[0])
        running = stack.enter_context(
            _exchanging(",".join(addresses), *machines.connecting_keys, popen=machines.here.popen)
        )
        running.go_on()
        straight, relayed = running.counts()
        assert straight > _PAGES
        assert relayed < _PAGES
