"""Two machines for tests, made of namespaces: addresses, host name, processes and files of their own each.

    with two_machines(tmp_path, delay_ms=1) as machines:
        server = machines.there.popen(["ptserver", "serve", ..., *machines.listening_keys])
        where = f"{machines.there.address}:11235"
        machines.here.run(["ptserver", "run", "--server", where, *machines.connecting_keys, program])

What differs, besides addresses and processes: `uname -n`, /etc/hosts (which names both), /etc/hostname,
and the folder /mnt, which from outside is `Machine.files`. All other files are this machine's. Each has a loopback of
its own. Processes are numbered anew in each; they are killed, and all else is gone, at the end of the block.

They are joined by veth if there is no delay, else (or if `controlled`) by `tests.wire`, a process that carries
packets, so that a link can be cut, stalled and slowed in the middle of a test. It needs no netem of the kernel's.

Needs the rights of root, and /dev/net/tun for the wire; `skip_without_machines` is the mark for a test.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ptserver.keys import make_keys
from tests.gofixtures import ROOT
from tests.wire import DEVICE, MTU_BYTES

#: Where a machine finds its own `Machine.files`.
FILES = "/mnt"

_CLONE_NEWPID = 0x20000000
_NAMESPACES = (("net", "net"), ("uts", "uts"), ("mount", "mnt"))
_PATIENCE_SECONDS = 30

#: Adopts orphans; its standard input's end is the machine's.
_INIT = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
while os.read(0, 100):
    pass
"""

Words = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Machine:
    """One of the two. name: its host name; address: IPv4; files: what it has in `FILES`; init: its process 1."""

    name: str
    address: str
    files: Path
    init: int
    _started: "list[subprocess.Popen[Any]]" = field(default_factory=list)

    def wait_for_all(self) -> None:
        """Wait for all that was started there: a namespace lasts until then."""
        for process in self._started:
            process.wait(_PATIENCE_SECONDS)

    def popen(self, words: Words, *, cwd: Path | str = FILES, **options: Any) -> "subprocess.Popen[Any]":
        """Start a command there; *cwd* is a folder of the machine, *options* are those of subprocess.Popen.

        The result's `pid` and `send_signal` are about the command itself, nothing lies between.
        """
        process = f"/proc/{self.init}"
        enter = ["nsenter", *(f"--{what}={process}/ns/{name}" for what, name in _NAMESPACES)]
        with open(f"{process}/ns/pid") as theirs, open("/proc/self/ns/pid") as ours:
            _number_children_by(theirs.fileno())
            try:
                self._started.append(
                    subprocess.Popen([*enter, f"--wd={process}/root{cwd}", *words], **options)
                )
            finally:
                _number_children_by(ours.fileno())
        return self._started[-1]

    def run(self, words: Words, **options: Any) -> str:
        """Run a command there, as `popen` does; return what it wrote to standard output. It must succeed."""
        process = self.popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        with process:
            output, error = process.communicate(timeout=_PATIENCE_SECONDS)
        assert process.returncode == 0, f"{words} ended with {process.returncode}: {error}"
        return str(output)


class Link:
    """The wire between two machines; each method returns when it is so."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        _await_line(process)

    def delay(self, milliseconds: float) -> None:
        """Delay packets each way from now on."""
        self._command(f"delay {milliseconds / 1000}")

    def be_urgent(self) -> None:
        """Have the wire carry packets before processes of a real-time priority that wait for them awake."""
        os.sched_setscheduler(self._process.pid, os.SCHED_RR, os.sched_param(2))

    def cut(self) -> None:
        """Lose all packets from now on, without a word to either side."""
        self._command("cut")

    def stall(self) -> None:
        """Keep all packets until `join`."""
        self._command("stall")

    def slow(self, bytes_per_second: float) -> None:
        """Carry that much each way at most."""
        self._command(f"slow {bytes_per_second}")

    def join(self) -> None:
        """End what `cut`, `stall` and `slow` began."""
        self._command("join")

    def _command(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        _await_line(self._process)


@dataclass(frozen=True)
class TwoMachines:
    """here, there: of equal rights. The link can be controlled if the machines were made so. keys: a folder."""

    here: Machine
    there: Machine
    wire: Link | None
    keys: Path

    @property
    def listening_keys(self) -> tuple[str, str]:
        """Options of a command that listens at either machine's address, by TLS."""
        return ("--keys", str(self.keys / "server"))

    @property
    def connecting_keys(self) -> tuple[str, str]:
        """Options of a command that connects to one that has `listening_keys`."""
        return ("--keys", str(self.keys / "client"))

    @property
    def link(self) -> Link:
        """The controlled link."""
        assert self.wire is not None, "ask for two_machines(..., controlled=True)"
        return self.wire


@contextlib.contextmanager
def two_machines(folder: Path, *, delay_ms: float = 0, controlled: bool = False) -> Iterator[TwoMachines]:
    """Make two machines, whose files lie in *folder*; *delay_ms* is each way: a round trip takes twice as long."""
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(_machine("here", "10.77.0.1", folder))
        there = stack.enter_context(_machine("there", "10.77.0.2", folder))
        wire: Link | None = None
        if delay_ms or controlled:
            wire = stack.enter_context(_wire(here, there))
            wire.delay(delay_ms)
        else:
            _tool("ip", "link", "add", "name", DEVICE, "netns", str(here.init), "type", "veth",
                  "peer", "name", DEVICE, "netns", str(there.init))  # fmt: skip
        for machine in (here, there):
            if wire is not None:
                machine.run(["ip", "link", "set", DEVICE, "mtu", str(MTU_BYTES), "txqueuelen", "5000"])
            machine.run(["ip", "address", "add", f"{machine.address}/24", "dev", DEVICE])
            machine.run(["ip", "link", "set", DEVICE, "up"])
        keys = folder / "keys"
        make_keys(keys, [here.address, there.address, here.name, there.name], days=1, token=False)
        yield TwoMachines(here, there, wire, keys)


def why_no_machines() -> str:
    """Return what is missing for `two_machines`, "" if nothing is."""
    if os.geteuid() != 0:
        return "two machines need the rights of root"
    if not os.path.exists("/dev/net/tun"):
        return "two machines need /dev/net/tun"
    probe = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True
    )
    return f"no namespaces: {probe.stderr.decode().strip()}" if probe.returncode else ""


#: The mark of a test, or of a module's tests, that needs them.
skip_without_machines = pytest.mark.skipif(bool(why_no_machines()), reason=why_no_machines())


@contextlib.contextmanager
def _machine(name: str, address: str, folder: Path) -> Iterator[Machine]:
    files, etc = folder / f"{name}-files", folder / f"{name}-etc"
    files.mkdir()
    etc.mkdir()
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n10.77.0.1 here\n10.77.0.2 there\n{address} itself\n")
    (etc / "hostname").write_text(f"{name}\n")
    outer = subprocess.Popen(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
         sys.executable, "-c", _INIT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    machine: Machine | None = None
    try:
        _await_line(outer, "up")
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
        machine = Machine(name, address, files, int(children))
        for source, target in (
            (etc / "hosts", "/etc/hosts"),
            (etc / "hostname", "/etc/hostname"),
            (files, FILES),
        ):
            machine.run(["mount", "--bind", source, target], cwd="/")
        machine.run(["hostname", name])
        machine.run(["ip", "link", "set", "lo", "up"])
        yield machine
    finally:
        outer.kill()
        if machine is not None:
            machine.wait_for_all()
        with outer:
            pass


@contextlib.contextmanager
def _wire(here: Machine, there: Machine) -> Iterator[Link]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.wire", str(here.init), str(there.init)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Link(process)
    finally:
        process.send_signal(signal.SIGTERM)
        with process:
            pass


def _await_line(process: "subprocess.Popen[str]", wanted: str = "ok") -> None:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], _PATIENCE_SECONDS)[0], f"{process.args!r} says nothing"
    line = process.stdout.readline().strip()
    assert line == wanted, f"{process.args!r} ended, or said {line!r}"


def _number_children_by(fd: int) -> None:
    """Have the processes that this thread starts belong to a namespace; it can start no thread meanwhile."""
    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "setns")


def _tool(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
