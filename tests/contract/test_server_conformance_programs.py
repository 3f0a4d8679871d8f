"""Real programs under the server in Go: the protocol, not this project's own server, is what makes them run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_server_conformance import TOKEN, serving
from tests.gofixtures import ROOT, build

PROGRAMS: dict[str, bytes] = {
    "hello": b"",
    "tree": b"",
    "pipes": b"",
    "manyio": b"",
    "stdin": b"a line\n" * 500,
    "goroutines": b"",
    "timers": b"",
    "panics": b"",
    "exit3": b"",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the folder that its programs find themselves in."""
    folder = tmp_path_factory.mktemp("served")
    with serving("goserver", "127.0.0.1:0", folder) as address:
        yield address, folder


def run(words: list[str], program: str, folder: Path) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [*words, str(build(program)), "argument"],
        input=PROGRAMS[program],
        capture_output=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    errors = b"\n".join(line for line in done.stderr.splitlines() if not line.startswith(b"\t"))
    return done.returncode, done.stdout, errors  # without the addresses in a panic's trace


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_behaves_as_it_does_natively(place: tuple[str, Path], program: str, tmp_path: Path) -> None:
    (place[1] / "token").write_text(TOKEN)
    (tmp_path / "native").mkdir()
    (tmp_path / "elsewhere").mkdir()
    ptserver = [sys.executable, "-c", "import cli; cli.main()", "run"]
    served = [*ptserver, "--server", place[0], "--token-file", str(place[1] / "token")]
    assert run(served, program, tmp_path / "elsewhere") == run([], program, tmp_path / "native")
    assert os.listdir(tmp_path / "elsewhere") == [], "files appeared at the stub host"


def test_the_servers_environment_is_the_programs(place: tuple[str, Path], tmp_path: Path) -> None:
    (place[1] / "token").write_text(TOKEN)
    ptserver = [
        sys.executable,
        "-c",
        "import cli; cli.main()",
        "run",
        "--token-file",
        str(place[1] / "token"),
    ]
    done = subprocess.run(
        [*ptserver, "--server", place[0], str(build("environment"))],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ONLY_AT_THE_HOST": "1"},
        timeout=60,
        check=True,
    )
    assert f"PTSERVER_TEST_RUN={os.environ['PTSERVER_TEST_RUN']}".encode() in done.stdout
    assert b"ONLY_AT_THE_HOST" not in done.stdout
