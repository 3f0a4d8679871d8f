"""What a server at an address does not provide is refused with ENOSYS and a line in its log or the host's."""

import os
from pathlib import Path

from stepping.landlock import abi
from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.running import Ended, started


def run_remotely(program: Path, work: Path, *args: str) -> tuple[Ended, str]:
    """Return how it ended, and the log of both sides."""
    work.mkdir()
    log = work.with_name("server-log")
    with (
        none_left(),
        serving("passthrough", "127.0.0.1:0", cwd=work, env=base_environment(), log=log) as (address, _),
    ):
        command = ["ptserver", "run", "--server", address, program, *args]
        with started(command, program, env=base_environment(), cwd="/") as child:
            ended = child.finish()
    return ended, log.read_text() + ended.stderr.decode()


def test_a_session_signals_no_process_that_is_not_its_own(tmp_path: Path) -> None:
    ended, _ = run_remotely(build("killer"), tmp_path / "work", str(os.getpid()))
    others = b"other operation not permitted\n" if abi() >= 6 else b"other <nil>\n"
    assert ended.stdout == b"own <nil>\n" + others
