"""What a server at an address does not provide is refused with ENOSYS and a line in its log or the host's."""

from pathlib import Path

import pytest

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
        ("children", "fork/exec /bin/echo: ", "clone"),
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


def test_signals_to_other_processes_are_refused(tmp_path: Path) -> None:
    """A number that is some process here names another one, or none, at the server."""
    ended, _ = run_remotely(build("killer"), tmp_path / "work", "1")
    assert ended.stdout == b"own <nil>\nother function not implemented\n" or ended.stdout.startswith(
        b"own <nil>\n"
    )
    assert b"other <nil>" not in ended.stdout
