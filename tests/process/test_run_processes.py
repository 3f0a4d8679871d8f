"""Processes of a program whose resources are a server's: signals from outside, job control, and that none is left.

What they do otherwise is compared with native runs by `tests/conformance`.
"""

import contextlib
import json
import os
import re
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cfixtures import build_c
from tests.conformance.modes import base_environment, serving
from tests.leftovers import descendants, none_left
from tests.running import Ended, Running, started


@pytest.fixture(scope="module")
def program() -> Path:
    return build_c("processes_c", flags=("-static",))


@contextlib.contextmanager
def lingering(program: Path, tmp_path: Path) -> Iterator[tuple[Running, Running, int]]:
    """Run a program with a worker and two others that it executes; give it, its server, and its own id.

    At the end, neither side must have a process of it left.
    """
    env = base_environment()
    serve = [
        "ptserver",
        "serve",
        "passthrough",
        "--listen",
        "127.0.0.1:0",
        "--json",
        "--log",
        tmp_path / "log",
    ]
    with none_left(), started(serve, Path("ptserver"), env=env, cwd=tmp_path) as server:
        server.expect("}\n")
        address = json.loads(server.stdout.so_far())["address"]
        before = set(descendants(server.child.pid))
        with (
            none_left(),
            started(
                ["ptserver", "run", "--server", address, program, "linger"], program, env=env, cwd="/"
            ) as child,
        ):
            child.expect("pid ")
            child.expect("\n")
            found = re.search(rb"pid (\d+)\n", child.stdout.so_far())
            assert found is not None
            yield child, server, int(found[1])
            child.child.wait(30)
            await_only(server.child.pid, before)


def await_only(root: int, before: set[int]) -> None:
    """Wait until all that is below *root* was there *before*."""
    for pid in set(descendants(root)) - before:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                select_readable(pidfd)
            finally:
                os.close(pidfd)
    left = {pid for pid, state in descendants(root).items() if state != "Z"} - before
    assert not left, left


def select_readable(fd: int) -> None:
    assert select.select([fd], [], [], 30)[0], "a process of the session is left"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[str]:
    """The folder of a control group, "/" if there can be none."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
    if root is None or os.geteuid() != 0:
        yield "/"
        return
    folder = root / f"ptserver-test-{os.getpid()}"
    folder.mkdir()
    yield str(folder)
    folder.rmdir()


def natively_and_served(
    tmp_path: Path, program: Path, *words: str, options: tuple[str, ...] = ()
) -> tuple[Ended, Ended]:
    env = base_environment()
    with started([program, *words], program, env=env, cwd="/") as child:
        native = child.finish()
    with (
        none_left(),
        serving("passthrough", f"unix:{tmp_path}/s", cwd="/", env=env, log=tmp_path / "log") as (address, _),
        started(
            ["ptserver", "run", "--server", address, *options, program, *words], program, env=env, cwd="/"
        ) as child,
    ):
        return native, child.finish()


def test_clone3_makes_processes_as_natively(group: str, tmp_path: Path) -> None:
    native, served = natively_and_served(tmp_path, build_c("clone3_c", flags=("-static",)), group)
    assert served == native
    assert b"executes: waited for 0x700" in native.stdout


def test_threads_wait_with_signal_masks_of_their_own_as_natively(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    options = (f"--trace={log}", "-q", "-e", "ppoll")
    native, served = natively_and_served(tmp_path, build_c("masks_c", flags=("-static",)), options=options)
    assert served == native
    ends = [
        line.rpartition(") = ")[2].split()[0] for line in log.read_text().splitlines() if "ppoll(" in line
    ]
    assert ends == ["-1"] * 7 + ["1", "1", "-1"]
    assert native.stdout.count(b"got 10, in the waiting thread 1") == 10


def test_a_signal_to_the_program_s_id_reaches_it(program: Path, tmp_path: Path) -> None:
    with lingering(program, tmp_path) as (child, _, pid):
        os.kill(pid, signal.SIGUSR1)
        child.expect(f"got {signal.SIGUSR1}\n")
        os.kill(pid, signal.SIGTERM)
        assert child.finish().status == -signal.SIGTERM


def test_a_signal_to_the_command_reaches_it_too(program: Path, tmp_path: Path) -> None:
    with lingering(program, tmp_path) as (child, _, _):
        child.signal(signal.SIGUSR1)
        child.expect(f"got {signal.SIGUSR1}\n")
        child.signal(signal.SIGTERM)
        assert child.finish().status == -signal.SIGTERM


def test_a_killed_host_leaves_nothing(program: Path, tmp_path: Path) -> None:
    with lingering(program, tmp_path) as (child, _, _):
        child.signal(signal.SIGKILL)


def test_a_killed_session_leaves_nothing(program: Path, tmp_path: Path) -> None:
    with lingering(program, tmp_path) as (child, _, pid):
        os.kill(pid, signal.SIGKILL)
        assert child.finish().status == 69


def test_a_killed_guard_leaves_nothing(program: Path, tmp_path: Path) -> None:
    with lingering(program, tmp_path) as (child, server, pid):
        guard = parent_of(pid)
        assert guard in descendants(server.child.pid)
        os.kill(guard, signal.SIGKILL)
        assert child.finish().status == 69


def test_a_killed_server_leaves_nothing(program: Path, tmp_path: Path) -> None:
    with lingering(program, tmp_path) as (child, server, _):
        server.signal(signal.SIGKILL)
        assert child.finish().status == 69


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def test_a_shell_at_a_terminal_controls_its_jobs(tmp_path: Path) -> None:
    env = base_environment() | {"PS1": "$ ", "TERM": "dumb"}
    shell = Path("/bin/bash")
    with (
        none_left(),
        serving("passthrough", "127.0.0.1:0", cwd=tmp_path, env=env, log=tmp_path / "log") as (address, _),
    ):
        command = ["ptserver", "run", "--server", address, shell, "--norc", "--noediting", "-i"]
        with started(command, shell, env=base_environment(), cwd="/", terminal=True) as child:
            child.expect("$ ")
            script = (
                'trap "echo RE""SUMED" CONT; echo begun | tr a-z A-Z; sleep 1000 & while :; do wait; done'
            )
            child.send(f"sh -c '{script}'\n".encode())
            child.expect("BEGUN")
            child.send(b"\x1a")
            child.expect("Stopped")
            child.expect("$ ")
            child.send(b"fg\n")
            child.expect("RESUMED")
            child.send(b"\x03")
            child.expect("$ ")
            child.send(b"echo status $?\n")
            child.expect("status 130")
            child.send(b"exit 3\n")
            assert child.finish().status == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs the rights of root")
@pytest.mark.parametrize("how", ["free", "confined"])
def test_a_child_may_have_namespaces_unless_it_is_confined(how: str, tmp_path: Path) -> None:
    """`unshare` is called in the program's first process, and the mount is made by a child of that."""
    env = base_environment()
    options = ("--user", "nobody", "--read-only") if how == "confined" else ()
    with (
        none_left(),
        serving("passthrough", "127.0.0.1:0", cwd="/", env=env, log=tmp_path / "log", options=options) as (
            address,
            _,
        ),
    ):
        script = (
            "mount -t tmpfs none /mnt && echo made > /mnt/here && cat /mnt/here; hostname other; hostname"
        )
        command = ["ptserver", "run", "--server", address, "/usr/bin/unshare", "-m", "-u", "sh", "-c", script]
        with started(command, Path("/usr/bin/unshare"), env=env, cwd="/") as child:
            end = child.finish()
    if how == "confined":
        assert (end.status, b"Operation not permitted" in end.stderr) == (1, True), end
    else:
        assert (end.status, end.stdout) == (0, b"made\nother\n"), end
        assert not Path("/mnt/here").exists()
