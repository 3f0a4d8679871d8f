"""`ptserver remote` and `ptserver run --on`: programs that are executed by another host and live here."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptserver.conformance import hosts
from ptserver.conformance.checks import Server, run_checks
from ptserver.keys import make_keys
from ptserver.messages import CODECS, Executable, Offer, Refused
from ptserver.net.connection import read_frame
from ptserver.net.wire import MAX_HELLO_BYTES, Codec
from tests.conformance.modes import announced, base_environment, waiting
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver
from tests.process.session_client import TIMEOUT, children
from tests.process.test_run_as_native import job
from tests.running import Running, started
from tests.two_machines import skip_without_machines, two_machines


class Host:
    """A running `ptserver remote`."""

    def __init__(self, address: str, process: "subprocess.Popen[str]", folder: Path) -> None:
        self.address = address
        self.process = process
        self.programs = folder / "programs"
        self._log = folder / "host-log"

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ptserver", "run", "--on", self.address)

    @property
    def zygote(self) -> int:
        (pid,) = children(self.process.pid)
        return pid

    def log(self) -> str:
        return self._log.read_text()

    def run(self, *words: str | Path, **options: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self.prefix, *words],
            env=base_environment() | options,
            capture_output=True,
            text=True,
            check=False,
        )

    @contextlib.contextmanager
    def running(self, *words: str | Path) -> Iterator[Running]:
        with started([*self.prefix, *words], Path(words[0]), env=base_environment(), cwd="/") as child:
            yield child


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with none_left(), waiting("127.0.0.1:0", tmp_path) as (address, process):
        yield Host(address, process, tmp_path)


def test_a_program_is_sent_once(host: Host) -> None:
    program = build("exit3")
    for how in ("sent", "kept"):
        assert host.run(program, "5").returncode == 5
        assert re.findall(r"runs exit3 \(\d+ bytes, (\w+)\)", host.log())[-1] == how
    (kept,) = host.programs.iterdir()
    assert kept.read_bytes() == program.read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o500


def test_a_kept_program_that_was_changed_is_sent_again(host: Host) -> None:
    program = build("exit3")
    host.run(program)
    (kept,) = host.programs.iterdir()
    kept.chmod(0o700)
    with kept.open("r+b") as file:
        file.seek(100_000)
        file.write(b"something else")
    assert host.run(program, "7").returncode == 7
    assert host.log().count(", sent)") == 2
    assert kept.read_bytes() == program.read_bytes()


def test_what_is_inherited_is_the_programs(host: Host, tmp_path: Path) -> None:
    """Descriptors, working folder, umask: those of the process that a shell started."""
    (tmp_path / "input").write_text("a line\n")
    script = f"umask 027; cd {tmp_path}; exec {' '.join(host.prefix)} {build('stdin')} lines < input > output"
    subprocess.run(["bash", "-c", script], env=base_environment(), check=True)
    assert 'line "a line"' in (tmp_path / "output").read_text()
    assert "from here" in host.run(build("environment"), GREETING="from here").stdout


def test_signals_arrive_and_kill_both(host: Host) -> None:
    program = build("sigkill")
    for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with host.running(program) as child:
            child.expect("waiting\n")
            child.signal(signo)
            assert child.finish().status == -signo


def test_a_job_is_stopped_and_resumed(host: Host) -> None:
    with job(host.prefix, build("stdin"), "lines") as under:
        under.child.expect("ready\r\n")
        for word in ("one", "two"):
            under.child.send(f"{word}\n".encode())
            under.child.expect(f'line "{word}"\r\n')
            under.child.send(b"\x1a")
            assert under.report() == ["stopped", str(int(signal.SIGTSTP)), "cooked"]
            under.foreground()
        under.child.send(b"\x04")
        assert under.report() == ["exited", "0", "cooked"]


def test_a_job_that_ctrl_c_kills(host: Host) -> None:
    with job(host.prefix, build("sigkill")) as under:
        under.child.expect("waiting\r\n")
        under.child.send(b"\x03")
        assert under.report() == ["signaled", str(int(signal.SIGINT)), "cooked"]


def test_many_at_once_and_each_ends_alone(host: Host) -> None:
    program = build("stdin")
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(host.running(program, "lines")) for _ in range(5)]
        for child in programs:
            child.expect("ready\n")
        programs[0].signal(signal.SIGKILL)
        programs[0].finish()
        for child in programs[1:]:
            child.send(b"still here\n")
            child.expect('line "still here"\n')
            assert child.finish().status == 0
    assert host.run(build("exit3"), "9").returncode == 9


def test_a_program_ends_with_the_process_that_wants_it(host: Host) -> None:
    with host.running(build("sigkill")) as child:
        child.expect("waiting\n")
        (session,) = children(host.zygote)
        pidfds = [os.pidfd_open(pid) for pid in (session, *children(session))]
        assert len(pidfds) == 2
        child.signal(signal.SIGKILL)
        child.finish()
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], TIMEOUT)[0]
            os.close(pidfd)


def test_a_host_that_stops_or_dies_is_told_of(host: Host) -> None:
    for signo in (signal.SIGTERM, signal.SIGKILL):
        with host.running(build("sigkill")) as child:
            child.expect("waiting\n")
            (session,) = children(host.zygote)
            os.kill(session, signo)
            ended = child.finish()
        if signo == signal.SIGTERM:
            assert ended.status == 77
            assert ended.stderr == b"ptserver: the host ended the session: the host is stopping\n"
        else:
            assert ended.status == 69
            assert ended.stderr.startswith(f"ptserver: lost connection to host {host.address}: ".encode())


def test_limits(tmp_path: Path) -> None:
    with (
        none_left(),
        waiting("127.0.0.1:0", tmp_path, "--max-sessions", "1", "--memory", "256M", "--cache-size", "5M") as (
            address,
            process,
        ),
    ):
        host = Host(address, process, tmp_path)
        with host.running(build("stdin"), "lines") as child:
            child.expect("ready\n")
            refused = host.run(build("exit3"))
            assert (refused.returncode, "as many sessions already" in refused.stderr) == (77, True)
        greedy = host.run(build("memory_hungry"), "400")
        assert (greedy.returncode, "out of memory" in greedy.stderr) == (2, True)
        assert host.run(build("memory_hungry"), "10").returncode == 0
        assert sum(path.stat().st_size for path in host.programs.iterdir()) <= 5 << 20


def test_a_token_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "right").write_text("the secret of this test\n")
    (tmp_path / "wrong").write_text("another secret for it\n")
    with waiting("127.0.0.1:0", tmp_path, "--token-file", str(tmp_path / "right")) as (address, _):
        program = str(build("exit3"))
        for options in ((), ("--token-file", str(tmp_path / "wrong"))):
            status, _, error = ptserver("run", "--on", address, *options, program)
            assert (status, "the token is wrong or missing" in error) == (77, True)
        assert ptserver("run", "--on", address, "--token-file", str(tmp_path / "right"), program, "4")[0] == 4


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"versions": [99]}, "version"),
        ({"purpose": "dance"}, "purpose"),
        ({"executable": {"arch": "arm64"}}, "launch"),
    ],
)
def test_what_a_host_refuses(host: Host, change: dict[str, object], code: str) -> None:
    answer = _answer(host.address, change)
    assert isinstance(answer, Refused)
    assert answer.code == code


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2{}", b"\0\0\1\0"])
def test_nonsense_ends_its_own_session(host: Host, data: bytes) -> None:
    name, _, port = host.address.rpartition(":")
    with socket.create_connection((name, int(port)), 30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    assert host.run(build("exit3"), "6").returncode == 6


def _answer(address: str, change: dict[str, object]) -> object:
    executable = Executable("x", "amd64", 10, "0" * 64)
    fields = json.loads(bytes(Codec("json").encode(Offer((1,), CODECS, "test", executable)))[4:])
    for name, value in change.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    payload = json.dumps(fields).encode()
    name, _, port = address.rpartition(":")
    with socket.create_connection((name, int(port)), 30) as sock:
        sock.sendall(len(payload).to_bytes(4, "big") + payload)
        return Codec("json").decoder(Refused)(read_frame(sock, MAX_HELLO_BYTES, time.monotonic() + 30))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--on", "nonsense", "PROGRAM"), 64, "is no address"),
        (("--on", "localhost:1", "PROGRAM"), 69, "nobody listens at localhost:1"),
        (
            ("--on", "localhost:1", "--server", "localhost:2", "PROGRAM"),
            126,
            "--server names a server of this",
        ),
        (("--on", "localhost:1", "--trace", "PROGRAM"), 64, "--on goes with neither"),
    ],
)
def test_bad_input_of_run(arguments: tuple[str, ...], status: int, message: str) -> None:
    program = str(build("exit3"))
    got, _, error = ptserver("run", *(program if word == "PROGRAM" else word for word in arguments))
    assert (got, message in error, len(error.splitlines())) == (status, True, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--listen", "0.0.0.0:0"), "needs TLS"),
        (("--memory", "much"), "'much' is no size"),
        (("--cache-size", "0"), "'0' is no size"),
        (("--listen", "nowhere"), "is no address"),
    ],
)
def test_bad_input_of_remote(arguments: tuple[str, ...], message: str) -> None:
    status, _, error = ptserver("remote", *arguments)
    assert (status, message in error, len(error.splitlines())) == (64, True, 1)


def test_a_server_of_this_process_decides(host: Host) -> None:
    done = subprocess.run(
        [*host.prefix[:2], "--server", "fake_hosts", *host.prefix[2:], build("example_servers"), "hosts"],
        env=base_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "db.example" in done.stdout


def test_it_passes_the_checks_of_the_protocol(host: Host) -> None:
    command = [sys.executable, "-m", "ptserver.conformance", "--host", host.address]
    done = subprocess.run(command, env=base_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "7 passed, 0 failed, 0 skipped" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_programs_leave_nothing_behind(host: Host, rounds: int) -> None:
    """Each round has ten sessions: programs that end, are killed, are refused, and are left alone."""

    def footprint() -> list[int]:
        pids = (host.process.pid, host.zygote)
        fds = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
        return [*fds, *(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)]

    def run(count: int) -> None:
        for _ in range(count):
            bad = [
                str(each) for each in run_checks(hosts.CHECKS, Server(host.address)) if each.outcome != "ok"
            ]
            assert not bad
        deadline = time.monotonic() + TIMEOUT
        while children(host.zygote):
            assert time.monotonic() < deadline
            os.sched_yield()

    run(2)
    before = footprint()
    run(rounds)
    after = footprint()
    assert after[:2] == before[:2]
    assert all(now <= then * 1.05 for now, then in zip(after[2:], before[2:], strict=True)), (before, after)


@skip_without_machines
def test_between_two_machines(tmp_path: Path) -> None:
    """The program is here, is executed there, and sees the files and the name of here."""
    program = build("environment")
    with none_left(), two_machines(tmp_path) as machines:
        address = f"{machines.there.address}:0"
        with waiting(address, tmp_path, *machines.listening_keys, popen=machines.there.popen) as (address, _):
            output = machines.here.run(
                ["ptserver", "run", *machines.connecting_keys, "--on", address, program],
                env=base_environment(),
            )
    assert "host: here <nil>" in output
    assert "for here" in (tmp_path / "host-log").read_text()


@pytest.mark.parametrize("secret", ["certificate", pytest.param("token", marks=pytest.mark.slow)])
def test_a_host_may_be_the_one_that_connects(secret: str, tmp_path: Path) -> None:
    """First comes one that may not have the program; under TLS, with a proof of either kind."""
    make_keys(tmp_path / "keys", ["127.0.0.1"], days=1, token=secret == "token")
    make_keys(tmp_path / "other", ["127.0.0.1"], days=1, token=secret == "token")
    if secret == "token":  # knows whom it connects to, but not the token
        (tmp_path / "other/client/ca.pem").write_bytes((tmp_path / "keys/client/ca.pem").read_bytes())
    env = base_environment()
    command = ("ptserver", "run", "--on", "listen:127.0.0.1:0", "--keys", tmp_path / "keys/server")
    program = build("environment")
    with none_left(), contextlib.ExitStack() as stack:
        child = stack.enter_context(started([*command, program], program, env=env, cwd=tmp_path))
        start = child.stderr.wait_for(b"waiting for a host on ")
        child.stderr.wait_for(b"\n", start)
        address = child.stderr.so_far()[start:].decode().split("\n")[0]
        for folder in ("other", "keys"):
            words = ["ptserver", "remote", "--json", "--server", address, "--keys", f"{tmp_path}/{folder}/client",
                     "--cache", f"{tmp_path}/programs"]  # fmt: skip
            stack.enter_context(announced(words, "server", cwd="/", env=env, log=tmp_path / f"{folder}-log"))
            if folder == "other":
                child.stderr.wait_for(b"a host did not take the program: ")
        end = child.finish()
    assert (end.status, str(tmp_path).encode() in end.stdout) == (0, True), end


def test_a_host_that_is_to_come_is_not_waited_for_when_lost() -> None:
    words = ("run", "--on", "listen:127.0.0.1:0", "--on-lost=wait", build("hello"))
    status, _, err = ptserver(*words)
    assert (status, "needs a host to connect to" in err) == (64, True)
