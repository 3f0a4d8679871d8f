"""Peers that vanish, stall or are stopped: the other side learns in the stated time, and nothing is left."""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment, serving, waiting
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.session_client import TIMEOUT, children
from tests.process.test_run_as_native import job
from tests.running import Running, started
from tests.two_machines import TwoMachines, skip_without_machines, two_machines

SOON = ("--keepalive", "1")
SAID_NOTHING = b"the other side said nothing for 1 s"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[TwoMachines]:
    with none_left(), two_machines(tmp_path, controlled=True) as made:
        yield made


@contextlib.contextmanager
def served(
    machines: TwoMachines, folder: Path, program: Path, *words: str, run: Sequence[str] = ()
) -> Iterator[tuple[Running, int]]:
    """A program here, and the pid of its session's process there; *run*: options of the command that runs it."""
    options = (*machines.listening_keys, *SOON)
    address = f"{machines.there.address}:0"
    env = base_environment()
    with serving(
        "passthrough",
        address,
        cwd="/",
        env=env,
        log=folder / "log",
        options=options,
        popen=machines.there.popen,
    ) as (address, server):
        command = [
            "ptserver",
            "run",
            "--server",
            address,
            *machines.connecting_keys,
            *SOON,
            *run,
            program,
            *words,
        ]
        with started(command, program, env=env, cwd="/", popen=machines.here.popen) as child:
            child.expect("ready\n")
            (zygote,) = children(server.pid)
            (guard,) = children(zygote)
            (session,) = children(guard)
            yield child, session


@contextlib.contextmanager
def elsewhere(
    machines: TwoMachines, folder: Path, program: Path, *words: str, run: Sequence[str] = ()
) -> Iterator[tuple[Running, int]]:
    """A program there that belongs here, and the pid of the process that hosts it; *run* as for `served`."""
    options = (*machines.listening_keys, *SOON)
    with waiting(f"{machines.there.address}:0", folder, *options, popen=machines.there.popen) as (
        address,
        host,
    ):
        command = [
            "ptserver",
            "run",
            "--on",
            address,
            *machines.connecting_keys,
            *SOON,
            *run,
            program,
            *words,
        ]
        with started(command, program, env=base_environment(), cwd="/", popen=machines.here.popen) as child:
            child.expect("ready\n")
            (zygote,) = children(host.pid)
            (session,) = children(zygote)
            yield child, session


def ended(pid: int) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], TIMEOUT)[0])
    finally:
        os.close(pidfd)


@skip_without_machines
@pytest.mark.parametrize("way", [served, elsewhere])
@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_link_that_fails_ends_both_sides(way, how: str, machines: TwoMachines, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with way(machines, tmp_path, build("stdin"), "lines") as (child, session):
        there = [session, *children(session)]
        getattr(machines.link, how)()
        end = child.finish()
        assert (end.status, SAID_NOTHING in end.stderr) == (69, True), end
        assert all(map(ended, there))
        machines.link.join()


@skip_without_machines
@pytest.mark.parametrize("way", [served, elsewhere])
def test_a_stopped_peer_is_given_up(way, machines: TwoMachines, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Its kernel still acknowledges what it is sent."""
    with way(machines, tmp_path, build("stdin"), "lines") as (child, session):
        os.kill(session, signal.SIGSTOP)
        end = child.finish()
        assert (end.status, SAID_NOTHING in end.stderr) == (69, True), end
        os.kill(session, signal.SIGCONT)
        assert ended(session)


@skip_without_machines
def test_a_slow_link_is_no_loss(machines: TwoMachines, tmp_path: Path) -> None:
    """What is under way takes longer than the time in which the peer must say something."""
    with served(machines, tmp_path, build("stdin"), "lines") as (child, _):
        machines.link.slow(600_000)
        child.send((b"x" * 50_000 + b"\n") * 12)
        for _ in range(12):
            child.expect('x"\n')
        machines.link.join()
        assert child.finish().status == 0


@pytest.mark.parametrize("way", ["served", "elsewhere"])
def test_a_job_may_be_stopped_for_longer(way: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(none_left())
        env = base_environment()
        if way == "served":
            address, _ = stack.enter_context(
                serving("passthrough", "127.0.0.1:0", cwd="/", env=env, log=tmp_path / "log", options=SOON)
            )
        else:
            address, _ = stack.enter_context(waiting("127.0.0.1:0", tmp_path, *SOON))
        where = "--server" if way == "served" else "--on"
        under = stack.enter_context(job(("ptserver", "run", *SOON, where, address), build("stdin"), "lines"))
        under.child.expect("ready\r\n")
        if way == "elsewhere":
            under.child.send(b"\x1a")
        else:
            os.kill(under.child.pid_of_program(), signal.SIGSTOP)
        assert under.report()[0] == "stopped"
        with contextlib.suppress(subprocess.TimeoutExpired):
            under.child.child.wait(2.5)  # nothing happens for more than twice the time
        under.foreground()
        under.child.send(b"still here\n")
        under.child.expect('line "still here"\r\n')
        under.child.send(b"\x04")
        assert under.report() == ["exited", "0", "cooked"]
