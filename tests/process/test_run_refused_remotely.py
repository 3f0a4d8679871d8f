"""What a server at an address does not provide is refused with ENOSYS and a line in its log or the host's."""

import os
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("fixture", "says", "call"),
    [
        ("mappedfile", "function not implemented", "mmap"),
    ],
)
def test_refused_clearly(fixture: str, says: str, call: str, tmp_path: Path) -> None:
    ended, log = run_remotely(build(fixture), tmp_path / "work")
    assert says in (ended.stdout + ended.stderr).decode()
    assert [line for line in log.splitlines() if call in line and "ENOSYS" in line], log


def test_a_dynamically_linked_program_is_refused_before_it_runs(tmp_path: Path) -> None:
    ended, _ = run_remotely(Path("/bin/true"), tmp_path / "work")
    assert ended.status == 126
    assert ended.stderr.startswith(b"ptserver: /bin/true is dynamically linked: ")


def test_a_session_signals_no_process_that_is_not_its_own(tmp_path: Path) -> None:
    ended, _ = run_remotely(build("killer"), tmp_path / "work", str(os.getpid()))
    others = b"other operation not permitted\n" if abi() >= 6 else b"other <nil>\n"
    assert ended.stdout == b"own <nil>\n" + others
