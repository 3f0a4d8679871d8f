"""The ways to run a program: one row each. A new way is a new row, and every case runs under it.

`native` is the yardstick. A program's folder and environment are those of the case, wherever it finds them: where
resources are a server's, the server is started in that folder with that environment, and the stub host elsewhere
with another one, so that a mix-up shows.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gofixtures import ROOT
from tests.running import Popen
from tests.two_machines import two_machines, why_no_machines


@dataclass(frozen=True)
class Place:
    """How to start a program so that it finds itself in its case's folder. hostname: what it must see as such."""

    prefix: Sequence[str]
    cwd: Path | str
    env: Mapping[str, str]
    popen: Popen = subprocess.Popen
    hostname: str = os.uname().nodename


#: Of (the program's folder, its variables, a folder for the way's own files).
Start = Callable[[Path, Mapping[str, str], Path], "contextlib.AbstractContextManager[Place]"]


@dataclass(frozen=True)
class Mode:
    """One way.

    local: the program's resources are this machine's own, so that whatever runs natively must run; stub: the program
    is built with the stub, which finds its server by itself; cases: the only cases that are worth the time; without:
    those that make no sense; everyday: those that are not slow, if only some are to be run every day; seconds: how
    long a case may take, if more than others.
    """

    name: str
    local: bool
    start: Start
    stub: bool = False
    cases: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    everyday: frozenset[str] | None = None
    seconds: float | None = None


def base_environment() -> dict[str, str]:
    """Return the variables that every program gets: as few as possible."""
    kept = ("HOME", "LANG", "PTSERVER_TEST_RUN")
    fixed = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    return {name: os.environ[name] for name in kept if name in os.environ} | fixed


def _local(*words: str) -> Start:
    @contextlib.contextmanager
    def start(work: Path, env: Mapping[str, str], scratch: Path) -> Iterator[Place]:
        yield Place(words, work, env)

    return start


@contextlib.contextmanager
def serving(
    server: str,
    address: str,
    *,
    cwd: Path | str,
    env: Mapping[str, str],
    log: Path,
    options: Sequence[str] = (),
    popen: Popen = subprocess.Popen,
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `ptserver serve`; give its address and its process; end it, and check that it ends well."""
    command = ["ptserver", "serve", server, "--listen", address, "--json", *options]
    with announced(command, "address", cwd=cwd, env=env, log=log, popen=popen) as running:
        yield running


@contextlib.contextmanager
def announced(
    command: Sequence[str],
    member: str,
    *,
    cwd: Path | str,
    env: Mapping[str, str],
    log: Path,
    popen: Popen = subprocess.Popen,
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run what announces itself by a line of JSON whose *member* is its address, until SIGTERM ends it well."""
    with log.open("w") as stderr:
        process = popen(
            command,
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            text=True,
        )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0], "the server says nothing"
        line = process.stdout.readline()
        assert line, log.read_text()
        yield json.loads(line)[member], process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _served(
    address_in: Callable[[Path], str], server: str = "passthrough", options: Sequence[str] = ()
) -> Start:
    @contextlib.contextmanager
    def start(work: Path, env: Mapping[str, str], scratch: Path) -> Iterator[Place]:
        elsewhere = base_environment() | {"GREETING": "the stub host's", "ONLY_HERE": "yes"}
        with serving(server, address_in(scratch), cwd=work, env=env, log=scratch / "server-log") as (
            address,
            _,
        ):
            yield Place(("ptserver", "run", *options, "--server", address), "/", elsewhere)

    return start


@contextlib.contextmanager
def _by_stub(work: Path, env: Mapping[str, str], scratch: Path) -> Iterator[Place]:
    with serving("passthrough", "127.0.0.1:0", cwd=work, env=env, log=scratch / "server-log") as (address, _):
        yield Place((), "/", base_environment() | {"GO_REMOTE": address, "GREETING": "the stub host's"})


@contextlib.contextmanager
def waiting(
    address: str, folder: Path, *options: str, popen: Popen = subprocess.Popen
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `ptserver remote`, which keeps programs and its log in *folder*; give its address and its process."""
    command = [
        "ptserver",
        "remote",
        "--listen",
        address,
        "--json",
        "--cache",
        str(folder / "programs"),
        *options,
    ]
    elsewhere = base_environment() | {"GREETING": "the stub host's", "ONLY_HERE": "yes"}
    with announced(
        command, "waiting", cwd="/", env=elsewhere, log=folder / "host-log", popen=popen
    ) as running:
        yield running


@contextlib.contextmanager
def _on_host(work: Path, env: Mapping[str, str], scratch: Path) -> Iterator[Place]:
    with waiting("127.0.0.1:0", scratch) as (address, _):
        yield Place(("ptserver", "run", "--on", address), work, env)


def _between_machines(delay_ms: float) -> Start:
    @contextlib.contextmanager
    def start(work: Path, env: Mapping[str, str], scratch: Path) -> Iterator[Place]:
        if reason := why_no_machines():
            pytest.skip(reason)
        elsewhere = base_environment() | {"GREETING": "the stub host's", "ONLY_HERE": "yes"}
        with two_machines(scratch, delay_ms=delay_ms) as machines:
            here, there = machines.here, machines.there
            log = scratch / "server-log"
            with serving(
                "passthrough",
                f"{there.address}:0",
                cwd=work,
                env=env,
                log=log,
                options=machines.listening_keys,
                popen=there.popen,
            ) as (address, _):
                prefix = ("ptserver", "run", "--server", address, *machines.connecting_keys)
                yield Place(prefix, "/", elsewhere, here.popen, there.name)

    return start


def _tcp(_scratch: Path) -> str:
    return "127.0.0.1:0"


def _unix(scratch: Path) -> str:
    return f"unix:{scratch / 'server.sock'}"


_IN_PROCESS = ("ptserver", "run", "--server")

_WITH_STUB = frozenset(
    "hello environment tree pipes notify panics-value panics-deadlock exit3 kills-itself-SIGKILL killed terminated "
    "stdin-lines terminal".split()
)
_ON_HOST = frozenset(
    "environment notify panics-value kills-itself-SIGTERM terminated stdin-lines fileops terminal bigargs "
    "c-static".split()
)
_IN_SYNC = frozenset("tree fileops ahead-1 behind stdin".split())
_FOR_MACHINES = frozenset("environment tree fileops notify ahead-2".split())

NATIVE = Mode("native", True, _local())

MODES = (
    Mode("pass-through", True, _local("ptserver", "run")),
    Mode("observed", True, _local(*_IN_PROCESS, "tests.conformance.servers:Observing")),
    Mode("proceeding", True, _local(*_IN_PROCESS, "tests.conformance.servers:Proceeding")),
    # Its descriptors of signals would be this process's.
    Mode(
        "executing",
        True,
        _local(*_IN_PROCESS, "tests.conformance.servers:Executing"),
        without=frozenset({"processes-c-static", "processes-c-dynamic"}),
    ),
    Mode("answering", True, _local(*_IN_PROCESS, "tests.conformance.servers:Answering")),
    Mode("tcp", False, _served(_tcp)),
    Mode("tcp-sync", False, _served(_tcp, options=("--sync",)), everyday=_IN_SYNC),
    Mode("unix", False, _served(_unix)),
    # `killed` looks for the program's own process, which an emulated one has not; nor has that priorities.
    Mode(
        "emulated-tcp",
        False,
        _served(_tcp, options=("--engine=emulate",)),
        without=frozenset({"killed", "numbers-c"}),
        everyday=frozenset({"environment", "stdin-lines"}),
        seconds=900,
    ),
    Mode("on-host", False, _on_host, without=frozenset({"killed"}), everyday=_ON_HOST),
    Mode("machines", False, _between_machines(0), cases=_FOR_MACHINES),
    Mode("machines-1ms", False, _between_machines(1), cases=_FOR_MACHINES, everyday=frozenset()),
    Mode("machines-20ms", False, _between_machines(20), cases=frozenset({"stdin-lines"})),
    Mode("stub", False, _by_stub, stub=True, cases=_WITH_STUB),
)
