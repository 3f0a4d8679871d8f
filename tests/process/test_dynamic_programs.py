"""Dynamically linked programs at a server: their libraries and their dynamic linker are the server's."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from goabi.elf_header import read_elf_header
from tests.cfixtures import build_c
from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.running import Ended, started


def served(
    work: Path,
    prefix: list[str],
    program: Path | str,
    *args: str,
    server: str = "passthrough",
    engine: str = "auto",
) -> Ended:
    """Run at a server that *prefix* starts."""

    def popen(command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen([*prefix, *command], **options)

    where = {"cwd": work, "env": base_environment(), "log": work / "server-log"}
    with none_left(), serving(server, "127.0.0.1:0", **where, popen=popen) as (address, _):
        command = ["ptserver", "run", f"--engine={engine}", "--server", address, program, *args]
        with started(command, program, env=base_environment(), cwd="/") as running:
            return running.finish()


def test_python_imports_modules_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "only_there.py").write_text("WHERE = 'at the server'\n")
    text = "import sys, json, socket; sys.path.insert(0, ''); import only_there; print(only_there.WHERE)"
    ended = served(tmp_path, [], Path(sys.executable).resolve(), "-c", text)
    assert (ended.status, ended.stdout, ended.stderr) == (0, b"at the server\n", b"")


def test_cgo(tmp_path: Path) -> None:
    program = build("stub_cgo", cgo=True)
    native = subprocess.run([program], capture_output=True, check=False, cwd=tmp_path)
    ended = served(tmp_path, [], program)
    assert (ended.status, ended.stdout) == (native.returncode, native.stdout)


def test_the_servers_dynamic_linker_is_used_if_it_is_another(tmp_path: Path) -> None:
    """The server gets a mount namespace in which the linker has another byte at its end."""
    program = build_c("syscalls_c")
    linker = read_elf_header(program).interpreter
    assert linker is not None
    other = tmp_path / "linker"
    shutil.copy(linker, other)
    with other.open("ab") as file:
        file.write(b"\0")
    mount = f'mount --bind {other} $(readlink -f {linker}) && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    native = subprocess.run([program, "last"], capture_output=True, check=False, cwd=tmp_path)
    ended = served(tmp_path, prefix, program, "last")
    assert (ended.status, ended.stdout, ended.stderr) == (native.returncode, native.stdout, b"")


@pytest.mark.parametrize("engine", ["native", "emulate"])
def test_a_dynamic_linker_that_the_server_alone_has(engine: str, tmp_path: Path) -> None:
    there = "/mnt/linker-of-the-server"
    program = build_c("suspend_c", flags=(f"-Wl,--dynamic-linker={there}",))
    linker = read_elf_header(build_c("suspend_c")).interpreter
    assert linker is not None
    shutil.copy(linker, tmp_path / Path(there).name)
    prefix = ["unshare", "--mount", "sh", "-c", f'mount --bind {tmp_path} /mnt && exec "$@"', "sh"]
    native = subprocess.run([linker, program], capture_output=True, check=False, cwd=tmp_path)
    ended = served(tmp_path, prefix, program, engine=engine)
    assert (ended.status, ended.stdout) == (native.returncode, native.stdout)


def test_a_server_without_the_dynamic_linker_is_told(tmp_path: Path) -> None:
    (tmp_path / "without.py").write_text(
        "import errno\nfrom ptserver.server import Call, Outcome, RuntimeServer\n"
        "class Without(RuntimeServer):\n    def openat(self, call: Call) -> Outcome:\n"
        "        return call.fail(errno.ENOENT)\n"
    )
    ended = served(tmp_path, [], build_c("syscalls_c"), server="without:Without")
    assert ended.status == 126
    assert b"which the server does not give: No such file" in ended.stderr
