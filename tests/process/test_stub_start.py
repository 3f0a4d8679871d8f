"""Programs with the stub that nobody stands by: they refuse, or replace themselves by `ptserver run`."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ptserver.stub.hypercalls import Hypercall
from tests.gofixtures import DEFAULT_GO, GO_VERSIONS, build
from tests.process.stub_double import StubDouble

EVERY_GO = [
    version if version == DEFAULT_GO else pytest.param(version, marks=pytest.mark.goversions)
    for version in GO_VERSIONS
]

# In ptserver's place: prints its own arguments, one a line, and what it inherits.
RECORDER = """#!/bin/sh
printf '<%s>\\n' "$@"
echo "GO_REMOTE=${GO_REMOTE-unset} KEPT=$KEPT self=$0"
exit 7
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "ptserver"
    path.parent.mkdir()
    path.write_text(RECORDER)
    path.chmod(0o755)
    return path


def run(
    program: Path, *arguments: str, argv0: str | None = None, cwd: Path | None = None, **environment: str
) -> tuple[int, list[str], list[str]]:
    """Exit status, lines of standard output and of standard error."""
    done = subprocess.run(
        [argv0 or str(program), *arguments],
        executable=program,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def panic(result: tuple[int, list[str], list[str]]) -> str:
    """The message of a program that has panicked before it did anything else."""
    code, out, err = result
    assert (code, out) == (2, [])
    assert err[0].startswith("panic: ")
    assert err[2].startswith("goroutine 1 [running")
    return err[0].removeprefix("panic: ")


@pytest.mark.parametrize("go", EVERY_GO)
def test_without_a_server_it_refuses(go: str, recorder: Path) -> None:
    program = build("stub_info", go=go, stub=True)
    path = str(recorder.parent)
    assert panic(run(program, PATH=path)) == "remote binary requires runtime server"
    assert panic(run(program, "--", "-go.remote=x:1", PATH=path)) == "remote binary requires runtime server"
    assert panic(run(program, "-go.remote", PATH=path)) == "remote binary requires runtime server"
    assert panic(run(program, PATH=path, GO_REMOTE="")) == "remote binary requires runtime server"


@pytest.mark.parametrize("go", EVERY_GO)
def test_the_flag_becomes_a_stub_host(go: str, recorder: Path) -> None:
    program = build("stub_info", go=go, stub=True)
    arguments = ["a b", "-go.remote=first:1", "", "--go.remote=localhost:11235", "--", "-go.remote=z"]
    code, out, err = run(
        program, *arguments, argv0="my name", PATH=str(recorder.parent), GO_REMOTE="other:2", KEPT="kept"
    )
    assert (code, err) == (7, [])
    assert out == [
        *("<run>", "<--stub>", "<--argv0>", "<my name>", "<--server>", "<localhost:11235>", "<-->"),
        *(f"<{program}>", "<a b>", "<>", "<-->", "<-go.remote=z>"),
        f"GO_REMOTE=unset KEPT=kept self={recorder}",
    ]


def test_the_environment_variable_becomes_a_stub_host(recorder: Path) -> None:
    program = build("stub_info", stub=True)
    code, out, _ = run(program, "a", PTSERVER=str(recorder), GO_REMOTE="unix:/a b=c", PATH="/nowhere")
    assert code == 7
    assert out[4:] == [
        *("<--server>", "<unix:/a b=c>", "<-->", f"<{program}>", "<a>"),
        f"GO_REMOTE=unset KEPT= self={recorder}",
    ]


def test_under_a_host_the_environment_variable_does_nothing(recorder: Path) -> None:
    program = build("stub_info", stub=True)
    environment = {"PTSERVER": str(recorder), "GO_REMOTE": "localhost:1"}
    with StubDouble(program, environment=environment) as double:
        code, out, _ = double.finish()
        assert double.calls[0][0] == Hypercall.HELLO
    assert (code, out.splitlines()[0]) == (0, "init")


def search_paths(recorder: Path) -> Mapping[str, str]:
    """Values of PATH that all lead to the recorder."""
    folder = recorder.parent
    denied = folder.parent / "denied"
    denied.mkdir()
    (denied / "ptserver").write_text(RECORDER)
    (folder.parent / "file").write_text("")
    return {
        "plain": str(folder),
        "missing first": f"/nowhere:{folder}",
        "no folder first": f"{folder.parent}/file:{folder}",
        "not executable first": f"{denied}:{folder}",
        "empty element": ":/nowhere",
        "empty last element": "/nowhere:",
        "relative": "../bin",
    }


def test_path_is_searched_as_by_a_shell(recorder: Path) -> None:
    program = build("stub_info", stub=True)
    for kind, path in search_paths(recorder).items():
        code, out, err = run(program, "-go.remote=x:1", cwd=recorder.parent, PATH=path)
        assert (code, err) == (7, []), kind
        assert out[-1].endswith("/ptserver"), kind


def test_ptserver_without_a_slash_is_looked_for_on_path(recorder: Path) -> None:
    program = build("stub_info", stub=True)
    other = recorder.with_name("other")
    recorder.rename(other)
    code, out, _ = run(program, "-go.remote=x:1", PATH=str(other.parent), PTSERVER="other")
    assert (code, out[-1]) == (7, f"GO_REMOTE=unset KEPT= self={other}")


def test_a_stub_host_that_cannot_be_started(tmp_path: Path) -> None:
    program = build("stub_info", stub=True)
    plain = tmp_path / "ptserver"
    plain.write_text("no program")
    remedy = "; set PTSERVER to the path of ptserver"

    def message(**environment: str) -> str:
        return panic(run(program, "-go.remote=x:1", **environment))

    nowhere = "remote: no stub host: ptserver is not on PATH; install ptserver or set PTSERVER to its path"
    assert message(PATH="/nowhere") == nowhere
    refused = f"remote: cannot start the stub host {plain}: not executable{remedy}"
    assert message(PTSERVER=str(plain)) == refused
    assert message(PATH=f"{tmp_path}:/nowhere") == refused
    absent = message(PTSERVER="/nowhere/x")
    assert absent == f"remote: cannot start the stub host /nowhere/x: no such file{remedy}"
    plain.chmod(0o755)
    assert message(PTSERVER=str(plain)) == f"remote: cannot start the stub host {plain}: errno 8{remedy}"


def test_an_empty_address() -> None:
    program = build("stub_info", stub=True)
    said = "remote: -go.remote names no runtime server: give HOST:PORT or unix:PATH"
    assert panic(run(program, "-go.remote=", GO_REMOTE="x:1")) == said


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a set-uid program")
def test_a_set_uid_program_starts_no_stub_host(public_folder: Path) -> None:
    program = public_folder / "program"
    shutil.copy(build("stub_info", stub=True), program)
    program.chmod(0o755 | stat.S_ISUID)
    host = public_folder / "ptserver"
    host.write_text(RECORDER)
    host.chmod(0o755)

    def status(user: int) -> int:
        return subprocess.run(
            [program, "-go.remote=x:1"],
            env={"PTSERVER": str(host)},
            user=user,
            cwd=public_folder,
            capture_output=True,
            check=False,
            timeout=60,
        ).returncode

    assert status(0) == 7
    assert status(65534) == 2
