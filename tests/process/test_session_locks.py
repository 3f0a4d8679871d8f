"""Locks that a program holds at a server are freed when its session ends, however that comes about."""

import fcntl
import signal
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.running import started


@pytest.mark.parametrize("signo", [signal.SIGKILL, signal.SIGTERM])
def test_the_locks_of_a_lost_program_are_freed(signo: signal.Signals, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    log = tmp_path / "server-log"
    program = build("locks")
    with (
        none_left(),
        serving("passthrough", "127.0.0.1:0", cwd=work, env=base_environment(), log=log) as (address, _),
    ):
        command = ["ptserver", "run", "--server", address, program, "keep"]
        with started(command, program, env=base_environment(), cwd="/") as running:
            running.expect("kept\n")
            with (work / "locked").open("r+b") as file:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                running.signal(signo)
                running.finish()
                fcntl.flock(file, fcntl.LOCK_EX)  # waits as long as the session's end takes
                fcntl.lockf(file, fcntl.LOCK_EX)
