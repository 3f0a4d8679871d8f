"""Programs that do one thing hard, over hosts, with threads that move anywhere: the same as natively."""

import os
import subprocess

import pytest

from tests.gofixtures import build
from tests.process.commands import ptserver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")

_TASKS = {
    "ring": 60,
    "mutexes": 30,
    "collections": 6,
    "many": 2_000,
    "select": 100,
    "recursion": 4_000,
    "panics": 80,
}


def _check(task: str, size: int, hosts: str, seed: int) -> None:
    program = build("torture")
    expected = subprocess.run([program, task, str(size)], capture_output=True, text=True, check=True).stdout
    status, out, err = ptserver(
        *(
            "run",
            "--straight",
            "all",
            "--spread",
            hosts,
            "--place",
            f"random:{seed}",
            "--check-memory",
            "1",
            program,
            task,
            str(size),
        ),
        env={"GOMAXPROCS": "3"},
        timeout=600,
    )
    assert (status, out, err) == (0, expected, "")
    assert "false" not in expected.split()[0]


@pytest.mark.parametrize("task", ["panics"])
def test_a_torture_does_the_same_over_three_hosts(task: str) -> None:
    _check(task, 10, "local,local", 1)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_ten_thousand_goroutines_are_right_over_three_hosts() -> None:
    _check("many", 10_000, "local,local", 1)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hosts", ["local", "agent,agent", "local,local,agent,agent"])
@pytest.mark.parametrize("task", _TASKS)
def test_every_torture_does_the_same(task: str, hosts: str, seed: int) -> None:
    _check(task, _TASKS[task], hosts, seed)
