"""Sockets that a remote program reads and writes itself: what programs do to them, natively and remotely."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.running import started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("direct")
    with serving("passthrough", "127.0.0.1:0", cwd=folder, env=base_environment(), log=folder / "log") as (
        address,
        _,
    ):
        yield address


def seen(prefix: tuple[str, ...]) -> tuple[list[str], int]:
    """Return what the program sees of its connections, and how many sockets its process has in the end."""
    program = build("direct")
    with started([*prefix, program], program, env=base_environment(), cwd="/") as running:
        running.expect("# both ways\n")
        address = running.stdout.so_far().partition(b"\n")[0].decode()
        asked = subprocess.run(
            [program, "ask", address], capture_output=True, text=True, timeout=60, check=False
        )
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, "asked\n", "")
        running.expect("end nothing\n")
        descriptors = Path(f"/proc/{running.pid_of_program()}/fd")
        sockets = sum(os.readlink(link).startswith("socket:") for link in descriptors.iterdir())
        ended = running.finish()
    assert (ended.status, ended.stderr) == (0, b"")
    return ended.stdout.decode().splitlines()[1:], sockets


@pytest.fixture(scope="module")
def natively() -> list[str]:
    return seen(())[0]


@pytest.mark.parametrize("sync", [False, True], ids=["direct", "sync"])
def test_they_are_as_natively(server: str, natively: list[str], sync: bool) -> None:
    with none_left():
        lines, sockets = seen(("ptserver", "run", "--server", server, *["--sync"] * sync))
    assert lines == natively
    assert not any("FAILED" in line for line in lines)
    assert (sockets > 5) is not sync  # one end of each pair that the program has had
