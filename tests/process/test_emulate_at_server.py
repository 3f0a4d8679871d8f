"""Emulated programs whose server is at an address: children, the stub, and what others see of them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver
from tests.process.session_client import children
from tests.running import started

SLOW = pytest.mark.slow
ARCHES = pytest.mark.parametrize("arch", [pytest.param("amd64", marks=SLOW), "arm64"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    log = tmp_path / "log"
    with serving("passthrough", "127.0.0.1:0", cwd=tmp_path, env=base_environment(), log=log) as running:
        yield running


@pytest.fixture
def address(server: tuple[str, "subprocess.Popen[str]"]) -> str:
    return server[0]


@ARCHES
def test_children_of_another_architecture_are_emulated(arch: str, address: str) -> None:
    """At the server, where the program finds them."""
    command, child = build("command", arch=arch), build("environment", arch="arm64")
    run = ("run", "--engine=emulate", "--server", address)
    status, out, err = ptserver(*run, command, child, "a b", "")
    assert (status, err) == (0, "")
    assert "FAILED" not in out
    assert out.startswith('args: ["a b" ""]\n')
    assert "Linux aarch64" in out
    assert out.endswith("<nil>\n")


@SLOW
def test_a_child_of_another_architecture_of_a_native_program_is_refused_as_natively(address: str) -> None:
    child = build("hello", arch="arm64")
    status, out, err = ptserver("run", "--server", address, build("command"), child)
    assert (status, out, err) == (0, f"fork/exec {child}: exec format error\n", "")


@SLOW
@ARCHES
def test_the_stub_is_answered(arch: str, address: str) -> None:
    program = build("stub_info", arch=arch, stub=True)
    status, out, err = ptserver("run", "--engine=emulate", "--server", address, program)
    assert (status, err) == (0, "")
    assert out.startswith("init\nconnected true\n{Name:passthrough Version:"), out


@ARCHES
@pytest.mark.parametrize("server", [pytest.param("passthrough", marks=SLOW), "fixed_clock"])
def test_the_stub_is_answered_by_a_server_of_the_same_process(arch: str, server: str) -> None:
    program = build("stub_info", arch=arch, stub=True)
    status, out, err = ptserver("run", "--engine=emulate", "--server", server, program)
    assert (status, err) == (0, "")
    assert out.startswith(f"init\nconnected true\n{{Name:{server} Version:"), out


@ARCHES
def test_the_stub_panics_with_what_the_server_says(arch: str) -> None:
    program = build("stub_info", arch=arch, stub=True)
    run = ("run", "--engine=emulate", "--stub", "--server", "127.0.0.1:1")
    status, out, err = ptserver(*run, program)
    assert (status, out) == (2, "")
    assert err.startswith("panic: remote: nobody listens at 127.0.0.1:1"), err


@ARCHES
def test_the_stub_panics_when_the_server_is_lost(
    arch: str, server: tuple[str, "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    program = build("stub_blocked", arch=arch, stub=True)
    command = ["ptserver", "run", "--engine=emulate", "--server", server[0], program]
    with none_left(), started(command, program, env=base_environment(), cwd="/") as child:
        child.expect("ready\n")
        (zygote,) = children(server[1].pid)
        (guard,) = children(zygote)
        (session,) = children(guard)
        os.kill(session, signal.SIGKILL)
        ended = child.finish()
    assert ended.status == 2, ended
    assert ended.stderr.startswith(b"panic: remote: lost connection to runtime server: "), ended.stderr
    assert b"main.reads" in ended.stderr


@ARCHES
def test_goroutines_can_be_watched_from_anywhere(arch: str, address: str) -> None:
    program = build("stub_blocked", arch=arch)
    with started(
        ["ptserver", "run", "--engine=emulate", "--server", address, program],
        program,
        env=base_environment(),
        cwd="/",
    ) as child:
        child.expect("ready\n")
        session = ptserver("sessions", "--server", address)[1].split()[0]
        status, out, err = ptserver("goroutines", "-k", "--server", address, session)
        assert (status, err) == (0, "")
        for function in ("waitsForChannel", "waitsForMutex", "sleeps", "locked"):
            assert f"\nmain.{function}(...)\n" in out, out
        status, out, err = ptserver("stack", "--server", address, session, "1")
        assert (status, err) == (0, "")
        assert out.startswith("goroutine 1 [select (no cases)]:\nmain.main(...)\n")
        status, out, err = ptserver("attach", "--json", "--once", "--server", address, session)
        assert (status, err) == (0, "")
        assert '"sync.Mutex.Lock":1' in out, out
        status, out, err = ptserver("trace", "--events=all", "--server", address, session)
        assert (status, out) == (66, "")
        assert err.startswith("ptserver: events of goroutines cannot be had: the program is emulated"), err
        child.signal(signal.SIGTERM)
        child.finish()
