"""The example servers with a real program, in the stub host's process and over a connection."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from session_client import TIMEOUT
from test_serve import PTSERVER, serving

from tests.gofixtures import build

REFUSED = "read-only file system"

#: What the program prints under each server, where that differs from what it prints natively.
EXPECTED: dict[str, dict[str, str]] = {
    "passthrough": {},
    "tracelogger": {},
    "fake_hosts": {"hosts": r'"127.0.0.1 localhost\n192.0.2.7 db.example db\n" <nil>'},
    "fault_injection": {"failed": "[1-9][0-9]?"},
    "read_only": dict.fromkeys(("write", "mkdir", "rename", "chmod"), REFUSED),
    "fixed_clock": {"time": "1000000000", "hostname": "fixed <nil>"},
}


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GODEBUG": ""}


def facts(command: list[str], folder: Path) -> tuple[dict[str, str], str]:
    """Run the program in *folder*; return what it prints by its first word, and its standard error."""
    folder.mkdir()
    (folder / "old").touch()
    done = subprocess.run(
        [*command, str(build("example_servers")), str(folder)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=3 * TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines()), done.stderr


@pytest.mark.parametrize("mode", ["here", "there"])
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_program_sees_what_the_server_promises(name: str, mode: str, tmp_path: Path) -> None:
    native, _ = facts([], tmp_path / "native")
    if mode == "here":
        seen, log = facts([*PTSERVER, "run", "--server", name], tmp_path / "served")
    else:
        with serving(name, "--listen", "127.0.0.1:0", "--log", str(tmp_path / "log")) as server:
            seen, _ = facts([*PTSERVER, "run", "--server", server.address], tmp_path / "served")
            assert server.stop() == (0, "")
        log = (tmp_path / "log").read_text()
    for word, value in EXPECTED[name].items():
        if word == "failed":
            assert re.fullmatch(value, seen.pop(word))
        else:
            assert seen.pop(word) == value.replace("\\n", r"\n")
        native.pop(word)
    assert abs(int(seen.pop("time", "0")) - int(native.pop("time", "0"))) < 60
    assert seen == native
    if name == "tracelogger":
        result = r" = \d+" if mode == "there" else "$"
        assert re.search(rf' openat\(AT_FDCWD, "/etc/hosts", O_RDONLY\|O_CLOEXEC\){result}', log, re.M)
