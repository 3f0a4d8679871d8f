"""Whoever of a spread program is killed or hangs, whenever: no wrong output, the reason is said, nothing is left."""

import json
import os
import random
import select
import signal
import subprocess

import pytest

from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver
from tests.process.session_client import children

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")

_KEEPALIVE_SECONDS = "3"
_LATEST_SECONDS = 1.0

_KILLED, _LOST, _GOES_ON = -signal.SIGKILL, 69, 0  # it goes on if nothing of it was at the host that is lost
#: What happens to whom, and how `ptserver run` ends then.
_BLOWS = {
    "the home is killed": (signal.SIGKILL, {_KILLED}),
    "an agent is killed": (signal.SIGKILL, {_LOST, _GOES_ON}),
    "an agent hangs": (signal.SIGSTOP, {_LOST, _GOES_ON}),
    "the program is killed at host 0": (signal.SIGKILL, {_KILLED}),
    "the program is killed at another host": (signal.SIGKILL, {_LOST, _GOES_ON}),
}


def _victim(blow: str, home: int, choose: random.Random) -> int:
    (agent,) = (pid for pid in children(home) if children(pid))
    program, at_home = sorted(children(home) - {agent})  # that of host 0 is made first
    return {
        "the home is killed": home,
        "an agent is killed": agent,
        "an agent hangs": agent,
        "the program is killed at host 0": program,
        "the program is killed at another host": choose.choice([at_home, min(children(agent))]),
    }[blow]


def _strike(blow: str, seed: int, place: str) -> None:
    choose = random.Random(f"{blow} {seed}")
    signo, expected = _BLOWS[blow]
    command = ["ptserver", "run", "--spread", "local,agent", "--place", place]
    command += ["--straight", "all", "--keepalive", _KEEPALIVE_SECONDS, str(build("spread_workers")), "2"]
    with (
        none_left(30),
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=base_environment() | {"GOMAXPROCS": "3"},
            text=True,
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        while not json.loads(ptserver("ps", "--json", str(child.pid))[1].splitlines()[0])["moves"]:
            pass  # until something of the program is elsewhere
        victim = _victim(blow, child.pid, choose)
        select.select([child.stdout], [], [], choose.uniform(0, _LATEST_SECONDS))
        os.kill(victim, signo)
        assert child.stdin is not None
        select.select([child.stderr], [], [], 60)  # the reason, or the end of everything
        out, err = child.communicate(timeout=60)
    assert child.returncode in expected, err
    assert out == ("wrong: 0\n" if child.returncode == _GOES_ON else "")
    if child.returncode == _LOST:
        assert "of the program is lost" in err.splitlines()[-1]


@pytest.mark.parametrize("blow", ["the home is killed", "an agent is killed"])
def test_a_blow_ends_the_program_and_leaves_nothing(blow: str) -> None:
    _strike(blow, 0, "idle")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("blow", _BLOWS)
def test_blows_at_any_time_end_the_program_and_leave_nothing(blow: str, seed: int) -> None:
    _strike(blow, seed, f"random:{seed}" if seed % 4 == 0 else "idle")
