"""Who answers the traps of remote memory has a real-time priority, where it may; what it starts has not."""

import os
import subprocess
from pathlib import Path

import pytest

from ptserver.net.urgency import be_ordinary, be_urgent
from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build

_URGENT = os.SCHED_RR | os.SCHED_RESET_ON_FORK


def _may_be_urgent() -> bool:
    try:
        be_urgent()
        return os.sched_getscheduler(0) == _URGENT
    finally:
        be_ordinary()


needs_priority = pytest.mark.skipif(not _may_be_urgent(), reason="needs CAP_SYS_NICE or RLIMIT_RTPRIO")


def test_it_is_undone() -> None:
    be_urgent()
    be_ordinary()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    be_ordinary()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@needs_priority
def test_host_and_session_have_it_and_the_program_has_not(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving("passthrough", "127.0.0.1:0", cwd=tmp_path, env=base_environment(), log=log) as (
        address,
        server,
    ):
        command = ["ptserver", "run", "--server", address, "--remote-var", "main.counter"]
        child = subprocess.Popen(
            [*command, build("remote_counter"), "wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        (program,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        assert os.sched_getscheduler(child.pid) == _URGENT
        assert {os.sched_getscheduler(int(tid)) for tid in os.listdir(f"/proc/{program}/task")} == {
            os.SCHED_OTHER
        }
        urgent = [pid for pid in _descendants(server.pid) if os.sched_getscheduler(pid) == _URGENT]
        assert len(urgent) == 1
        out, _ = child.communicate("look\n", timeout=60)
        assert (child.returncode, out) == (0, "0\n")


def _descendants(pid: int) -> list[int]:
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(other for child in children for other in _descendants(child))]
