"""Ends from outside: of the program, of its host, of the server; no process is left, and each says what happened."""

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.leftovers import descendants, none_left
from tests.running import Running, started

IN_PROCESS = ("ptserver", "run", "--server", "tests.conformance.servers:Proceeding")


@contextlib.contextmanager
def waiting(way: str, folder: Path) -> Iterator[tuple[Running, int, int]]:
    """A program that waits; give it, its pid, and the server's pid (0 if there is none)."""
    program = build("sigkill")
    work = folder / "work"
    work.mkdir()
    with none_left(), contextlib.ExitStack() as stack:
        prefix, server = IN_PROCESS, 0
        if way == "remote":
            address, process = stack.enter_context(
                serving(
                    "passthrough", "127.0.0.1:0", cwd=work, env=base_environment(), log=folder / "server-log"
                )
            )
            prefix, server = ("ptserver", "run", "--server", address), process.pid
        child = stack.enter_context(started([*prefix, program], program, env=base_environment(), cwd="/"))
        child.expect("waiting\n")
        yield child, child.pid_of_program(), server


every_way = pytest.mark.parametrize("way", ["in-process", "remote"])


def await_end(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    assert ended, f"process {pid} goes on"


@pytest.mark.parametrize("signo", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@every_way
def test_a_program_that_is_killed(way: str, signo: signal.Signals, tmp_path: Path) -> None:
    with waiting(way, tmp_path) as (child, pid, _):
        os.kill(pid, signo)
        ended = child.finish()
    # A Go program ends by itself, with a traceback and status 2, at a signal like SIGSEGV.
    assert ended.status == (2 if signo == signal.SIGSEGV else -signo)


@every_way
def test_a_host_that_is_killed_takes_the_program_with_it(way: str, tmp_path: Path) -> None:
    with waiting(way, tmp_path) as (child, pid, _):
        child.signal(signal.SIGKILL)
        assert child.child.wait(20) == -signal.SIGKILL
        await_end(pid)


@contextlib.contextmanager
def server_in(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    work = folder / "work"
    work.mkdir()
    with (
        none_left(),
        serving(
            "passthrough", "127.0.0.1:0", cwd=work, env=base_environment(), log=folder / "server-log"
        ) as served,
    ):
        yield served


@contextlib.contextmanager
def run_at(address: str, program: Path, *args: str) -> Iterator[Running]:
    command = ["ptserver", "run", "--server", address, program, *args]
    with started(command, program, env=base_environment(), cwd="/") as child:
        yield child


def test_a_server_that_is_told_to_end_ends_its_sessions(tmp_path: Path) -> None:
    with server_in(tmp_path) as (address, server), run_at(address, build("sigkill")) as child:
        child.expect("waiting\n")
        pid = child.pid_of_program()
        server.send_signal(signal.SIGTERM)
        ended = child.finish()
        await_end(pid)
        assert server.wait(20) == 0
    assert ended.status == 69
    assert ended.stderr.startswith(b"ptserver: lost connection to runtime server ")
    assert ended.stderr.count(b"\n") == 1


def test_a_session_that_is_killed_ends_its_program_and_the_server_goes_on(tmp_path: Path) -> None:
    with server_in(tmp_path) as (address, server):
        before = set(descendants(server.pid))
        with run_at(address, build("sigkill")) as child:
            child.expect("waiting\n")
            (session,) = set().union(
                *map(descendants, set(descendants(server.pid)) - before)
            )  # below its guard
            os.kill(session, signal.SIGKILL)
            ended = child.finish()
        assert ended.status == 69
        assert b"lost connection" in ended.stderr
        with run_at(address, build("hello")) as another:
            assert another.finish().stdout == b"hello, world\n"


def test_a_server_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    log = tmp_path / "log"
    command = ["ptserver", "serve", "passthrough", "--listen", "127.0.0.1:0", "--json", "--log", log]
    with none_left(), started(command, Path("ptserver"), env=base_environment(), cwd=work) as server:
        server.expect("}\n")
        address = json.loads(server.stdout.so_far())["address"]
        with run_at(address, build("sigkill")) as child:
            child.expect("waiting\n")
            server.signal(signal.SIGKILL)
            server.child.wait(20)


def test_a_stubbed_program_panics_when_its_server_is_lost(tmp_path: Path) -> None:
    program = build("stdin", stub=True)
    with server_in(tmp_path) as (address, server):
        command = [program, f"-go.remote={address}", "lines"]
        with started(command, program, env=base_environment(), cwd="/") as child:
            child.expect("ready\n")
            server.send_signal(signal.SIGTERM)
            child.stderr.wait_for(b"main.main()")
            ended = child.finish()
        assert server.wait(20) == 0
    assert ended.status == 2
    assert b"panic: remote: lost connection to runtime server" in ended.stderr
    assert b"goroutine 1 " in ended.stderr


@pytest.mark.parametrize("choice", [pytest.param("panic", marks=pytest.mark.slow), "kill"])
def test_it_is_chosen_what_becomes_of_a_stubbed_program(choice: str, tmp_path: Path) -> None:
    program = build("stdin", stub=True)
    with server_in(tmp_path) as (address, server):
        command = ["ptserver", "run", "--server", address, f"--on-lost={choice}", program, "lines"]
        with started(command, program, env=base_environment(), cwd="/") as child:
            child.expect("ready\n")
            server.send_signal(signal.SIGTERM)
            child.child.wait(20)
            ended = child.finish()
        assert server.wait(20) == 0
    assert ended.status == (2 if choice == "panic" else 69)
    assert (b"goroutine 1 " in ended.stderr) == (choice == "panic")
    assert b"lost connection to runtime server" in ended.stderr


def test_a_host_that_is_killed_ends_the_session_on_the_server(tmp_path: Path) -> None:
    """The session's process is gone, and the server serves the next."""
    with server_in(tmp_path) as (address, server):
        before = set(descendants(server.pid))
        with run_at(address, build("sigkill")) as one:
            one.expect("waiting\n")
            sessions = set(descendants(server.pid)) - before
            assert sessions
            one.signal(signal.SIGKILL)
            for pid in sessions:
                await_end(pid)
        with run_at(address, build("hello")) as two:
            assert two.finish().stdout == b"hello, world\n"
