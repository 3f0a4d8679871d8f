"""`ptserver run` on what cannot be run: one line that says what is wrong, an exit status, no traceback."""

import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptserver.errors import LaunchError
from ptserver.program import find_program
from tests.gofixtures import build
from tests.process.commands import ptserver, refusal

SERVERS = "tests.process.bad_servers"


@pytest.fixture(
    params=["", "passthrough", "tests.conformance.servers:Proceeding"], ids=["none", "name", "class"]
)
def server(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return ("--server", request.param) if request.param else ()


def test_no_such_file(tmp_path: Path, server: tuple[str, ...]) -> None:
    assert refusal("run", *server, tmp_path / "none") == (127, f"there is no file {tmp_path}/none")


def test_no_such_program_in_path(server: tuple[str, ...]) -> None:
    assert refusal("run", *server, "no-such-program") == (127, "there is no program no-such-program in PATH")


def test_a_program_here_that_is_not_in_path(tmp_path: Path) -> None:
    (tmp_path / "main").write_bytes(b"")
    status, line = refusal("run", "main", cwd=tmp_path)
    assert (status, line) == (
        127,
        "there is no program main in PATH; for the one in this folder say ./main",
    )


def test_not_executable(tmp_path: Path, server: tuple[str, ...]) -> None:
    path = tmp_path / "main"
    path.write_bytes(build("hello").read_bytes())
    path.chmod(0o644)
    assert refusal("run", *server, path) == (126, f"{path} is not executable; `chmod +x` makes it so")


def test_a_folder(tmp_path: Path, server: tuple[str, ...]) -> None:
    assert refusal("run", *server, tmp_path) == (126, f"{tmp_path} is a folder, not a program")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"text", b"\x7fEL", b"MZ\0\0"], ids=repr)
def test_not_an_elf(tmp_path: Path, content: bytes, server: tuple[str, ...]) -> None:
    path = tmp_path / "main"
    path.write_bytes(content)
    path.chmod(0o755)
    status, line = refusal("run", *server, path)
    assert status == 126
    assert line.startswith(f"{path}: ")
    assert "ELF" in line


def test_a_device_is_not_read() -> None:
    status, line = refusal("run", "/dev/null")
    assert (status, line) == (126, "/dev/null is not executable; `chmod +x` makes it so")


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o755)
    keep = os.open(
        path, os.O_RDWR
    )  # so that a reader is not stuck in its open for ever, but would be in its read
    status, _, err = ptserver("run", path, prefix=("timeout", "-s", "KILL", "5"))
    os.close(keep)
    assert (status, err) == (126, f"ptserver: {path} is no regular file\n")


def test_another_architecture(server: tuple[str, ...]) -> None:
    path = build("hello", arch="arm64")
    line = f"{path} is a program for arm64, this machine is amd64; --engine=emulate runs it"
    assert refusal("run", "--engine=native", *server, path) == (126, line)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cut") / "main"


def refusal_of(path: Path) -> str:
    """What `find_program` says; empty if it finds nothing wrong."""
    try:
        find_program(str(path))
    except LaunchError as error:
        return str(error)
    return ""


def cut_to(path: Path, size: int) -> None:
    path.write_bytes(build("hello").read_bytes()[:size])
    path.chmod(0o755)


@given(data=st.data())
def test_a_truncated_elf_is_refused_or_whole_enough_for_the_kernel(data: st.DataObject, cut: Path) -> None:
    """Wherever it is cut: the check raises nothing but its own error."""
    whole = build("hello").stat().st_size
    cut_to(cut, data.draw(st.integers(0, 4096) | st.integers(0, whole - 1)))
    refused = refusal_of(cut)
    assert str(cut) in refused or refused == ""
    assert "\n" not in refused


@given(size=st.integers(0, 70_000))
@settings(max_examples=8)
def test_a_truncated_elf_gets_one_line(size: int, cut: Path) -> None:
    cut_to(cut, size)
    status, _, err = ptserver("run", "--server", "tests.conformance.servers:Proceeding", cut)
    assert status == 126
    assert err.startswith("ptserver: ")
    assert err.count("\n") == 1


@given(noise=st.binary(min_size=1, max_size=200), at=st.integers(0, 600))
def test_damaged_headers_raise_nothing_else(noise: bytes, at: int, cut: Path) -> None:
    data = bytearray(build("hello").read_bytes()[:100_000])
    data[at : at + len(noise)] = noise
    cut.write_bytes(data)
    cut.chmod(0o755)
    assert "\n" not in refusal_of(cut)


def test_an_unknown_server() -> None:
    status, line = refusal("run", "--server", "nonesuch", "/bin/true")
    assert status == 64
    assert "no server 'nonesuch'" in line


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no.such.module:Class", "there is no module 'no'"),
        ("tests.nonesuch:Class", "there is no module 'tests.nonesuch'"),
        ("tests.conformance.servers:Nonesuch", "has no 'Nonesuch'"),
        ("tests.conformance.servers:OBSERVE", "is not a subclass of"),
        ("os:path", "is not a subclass of"),
        ("tests.conformance.servers:", "expected one of"),
    ],
)
def test_a_class_that_is_not_there(spec: str, words: str) -> None:
    status, line = refusal("run", "--server", spec, "/bin/true")
    assert status == 64
    assert words in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param(
            "FailsAtStart",
            "FailsAtStart.session_started raised RuntimeError: no database",
        ),
        ("Raises", "Raises.openat raised ZeroDivisionError: integer division or modulo by zero"),
        ("NoOutcome", "openat returned 'hello', which is no outcome"),
        pytest.param(
            "UnknownBuffer",
            "'nonesuch'",
        ),
        pytest.param(
            "CannotStart",
            "CannotStart raised RuntimeError: no database",
        ),
    ],
)
def test_a_server_that_makes_a_mistake_ends_the_program_and_says_whose_it_is(name: str, words: str) -> None:
    status, _, err = ptserver("run", "--server", f"{SERVERS}:{name}", build("tree"))
    assert status == 70
    assert words in err.splitlines()[-1]
    assert "ptserver/running/run.py" not in err


def test_a_server_whose_interests_are_wrong() -> None:
    status, line = refusal("run", "--server", f"{SERVERS}:UnknownInterest", "/bin/true")
    assert status == 64
    assert "there is no syscall 'opennat'" in line


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "localhost:{port}", "unix:{folder}/none"])
def test_a_server_that_does_not_answer(address: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, never listening: nobody else can have the port meanwhile
        address = address.format(port=unused.getsockname()[1], folder=tmp_path)
        status, line = refusal("run", "--server", address, build("hello"))
    assert status == 69
    assert address in line


@pytest.mark.parametrize("address", ["localhost:notaport", "localhost:99999", "unix:", "a b:1"])
def test_a_bad_address(address: str) -> None:
    status, line = refusal("run", "--server", address, build("hello"))
    assert status in {64, 69}
    assert address.split(":")[0] in line or address in line


def test_an_unused_option_is_a_usage_error() -> None:
    status, out, err = ptserver("run", "--no-such-option", "/bin/true")
    assert (status, out) == (64, "")
    assert "No such option" in err


def test_inside_a_sandbox_that_has_a_listener_the_line_says_so() -> None:
    """Two listeners for one process are one too many for the kernel."""
    status, line = refusal(
        "run",
        "--server",
        "tests.conformance.servers:Proceeding",
        build("hello"),
        prefix=(sys.executable, "-m", "tests.process.with_listener"),
    )
    assert status == 77
    assert "already runs under a filter with a listener" in line


def test_where_seccomp_is_forbidden_the_line_says_so() -> None:
    status, line = refusal(
        "run",
        "--server",
        "tests.conformance.servers:Proceeding",
        build("hello"),
        prefix=(sys.executable, "-m", "tests.process.without_seccomp"),
    )
    assert status == 77
    assert "a container must allow seccomp(2)" in line


def test_without_a_listener_a_sandbox_does_not_matter() -> None:
    result = ptserver("run", build("hello"), prefix=(sys.executable, "-m", "tests.process.without_seccomp"))
    assert result == (0, "hello, world\n", "")
