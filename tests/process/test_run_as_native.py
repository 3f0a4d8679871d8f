"""That a user cannot tell a program under `ptserver run` from the program: signals, terminal, job control."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.leftovers import descendants, none_left
from tests.process.commands import ptserver
from tests.running import Running, started

NATIVE: tuple[str, ...] = ()
PASS_THROUGH = ("ptserver", "run")
IN_PROCESS = ("ptserver", "run", "--server", "tests.conformance.servers:Proceeding")
every_way = pytest.mark.parametrize(
    "prefix", [NATIVE, PASS_THROUGH, IN_PROCESS], ids=["native", "pass-through", "in-process"]
)


@contextlib.contextmanager
def running(
    prefix: tuple[str, ...], *words: str | Path, terminal: bool = False, cwd: Path | str = "/"
) -> Iterator[Running]:
    command = [*prefix, *words]
    with (
        none_left(),
        started(command, Path(words[0]), env=base_environment(), cwd=cwd, terminal=terminal) as child,
    ):
        yield child


def status_fields(text: str) -> dict[str, str]:
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in text.splitlines()}


FIELDS = (
    "Uid Gid Groups Umask SigPnd ShdPnd SigBlk SigIgn CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs".split()
)


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(
            PASS_THROUGH,
            id="pass-through",
        ),
        pytest.param(IN_PROCESS, id="in-process"),
    ],
)
def test_what_the_kernel_says_of_the_process(prefix: tuple[str, ...]) -> None:
    """Identity, signal mask and dispositions, capabilities: as if started directly."""

    def status(*words: str) -> dict[str, str]:
        done = subprocess.run(
            [*words, "/bin/cat", "/proc/self/status"],
            env=base_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return status_fields(done.stdout)

    alone, under = status(), status(*prefix)
    assert {name: under[name] for name in FIELDS} == {name: alone[name] for name in FIELDS}


@pytest.mark.parametrize("prefix", [PASS_THROUGH, IN_PROCESS], ids=["pass-through", "in-process"])
@pytest.mark.parametrize("file", ["limits", "oom_score_adj", "comm", "cgroup", "mounts", "environ"])
def test_other_facts_of_the_process(prefix: tuple[str, ...], file: str) -> None:
    command = ["/bin/cat", f"/proc/self/{file}"]
    env = base_environment()
    alone = subprocess.run(command, env=env, capture_output=True, check=True).stdout
    under = subprocess.run([*prefix, *command], env=env, capture_output=True, check=True).stdout
    assert under == alone


def test_passed_through_it_is_the_very_process() -> None:
    program = build("sigkill")
    with running(PASS_THROUGH, program) as child:
        child.expect("waiting\n")
        assert child.pid_of_program() == child.child.pid
        assert set(descendants(child.child.pid)) == set()
        status = status_fields(Path(f"/proc/{child.child.pid}/status").read_text())
        assert (status["Seccomp"], status["TracerPid"]) == ("0", "0")
        child.signal(signal.SIGTERM)
        assert child.finish().status == -signal.SIGTERM


def test_a_served_program_is_the_child_of_its_host_in_the_same_group() -> None:
    program = build("sigkill")
    with running(IN_PROCESS, program) as child:
        child.expect("waiting\n")
        pid = child.pid_of_program()
        assert set(descendants(child.child.pid)) == {pid}
        assert (os.getpgid(pid), os.getsid(pid)) == (os.getpgid(child.child.pid), os.getsid(child.child.pid))


def test_descriptors_left_open_arrive(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        for prefix in (NATIVE, PASS_THROUGH, IN_PROCESS):
            command = [*prefix, "/bin/bash", "-c", f"echo through >&{writer}"]
            subprocess.run(command, env=base_environment(), check=True, pass_fds=[writer])
            assert os.read(reader, 100) == b"through\n"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(NATIVE, id="native"),
        pytest.param(PASS_THROUGH, id="pass-through"),
        pytest.param(
            IN_PROCESS,
            id="in-process",
        ),
    ],
)
def test_closed_streams_stay_closed(prefix: tuple[str, ...]) -> None:
    """Descriptor 3 reports; ls itself opens the folder, at 0."""
    close_all = 'exec "$@" 3>&1 0<&- 1>&- 2>&-'
    listing = "ls /proc/self/fd >&3"
    done = subprocess.run(
        ["/bin/bash", "-c", close_all, "bash", *prefix, "/bin/bash", "-c", listing],
        env=base_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "1", "3"]


@every_way
def test_an_ignored_hangup_stays_ignored(prefix: tuple[str, ...]) -> None:
    """As nohup(1) does."""
    command = [
        "/bin/sh",
        "-c",
        'trap "" HUP; exec "$@"',
        "sh",
        *prefix,
        "/bin/grep",
        "SigIgn",
        "/proc/self/status",
    ]
    done = subprocess.run(command, env=base_environment(), capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[1], 16) & 1


@pytest.mark.parametrize(
    "signo", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1]
)
@every_way
def test_a_signal_sent_to_it_kills_the_program_and_it_dies_the_same_way(
    prefix: tuple[str, ...], signo: signal.Signals
) -> None:
    with running(prefix, "/bin/sh", "-c", "echo ready; exec sleep 60") as child:
        child.expect("ready\n")
        child.signal(signo)
        assert child.finish().status == -signo


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(NATIVE, id="native"),
        pytest.param(
            PASS_THROUGH,
            id="pass-through",
        ),
        pytest.param(IN_PROCESS, id="in-process"),
    ],
)
def test_a_reader_that_goes_away(prefix: tuple[str, ...]) -> None:
    """`program | head -1`: the program is told as ever."""
    script = '"$@" | head -1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["/bin/bash", "-c", script, "bash", *prefix, "/usr/bin/yes"],
        env=base_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"y\n{128 + signal.SIGPIPE}\n"
    assert done.stderr == ""


@every_way
def test_ctrl_c_at_the_terminal_is_delivered_once(prefix: tuple[str, ...]) -> None:
    script = "trap 'n=$((n+1)); echo caught $n' INT; n=0; echo ready; while [ $n -lt 2 ]; do read line; done; echo $n"
    with running(prefix, "/bin/sh", "-c", script, terminal=True) as child:
        child.expect("ready\r\n")
        child.send(b"\x03")
        child.expect("caught 1\r\n")
        child.send(b"\x03")
        child.expect("caught 2\r\n")
        child.send(b"\n")
        ended = child.finish()
    assert ended.status == 0
    assert b"caught 3" not in ended.stdout


class Job:
    """A command under `job_shell`, at a terminal."""

    def __init__(self, child: Running, reports: int, orders: int) -> None:
        self.child = child
        self._reports = os.fdopen(reports)
        self._orders = os.fdopen(orders, "w")

    def report(self) -> list[str]:
        return self._reports.readline().split()

    def foreground(self) -> None:
        print("fg", file=self._orders, flush=True)

    def close(self) -> None:
        self._reports.close()
        self._orders.close()


@contextlib.contextmanager
def job(prefix: tuple[str, ...], *words: str | Path) -> Iterator[Job]:
    reports, reports_to = os.pipe()
    orders_from, orders = os.pipe()
    for fd in (reports_to, orders_from):
        os.set_inheritable(fd, True)
    shell = (
        sys.executable,
        "-S",
        str(Path(__file__).with_name("job_shell.py")),
        str(reports_to),
        str(orders_from),
    )
    with (
        none_left(),
        started(
            [*shell, *prefix, *words],
            Path(words[0]),
            env=base_environment(),
            cwd="/",
            terminal=True,
            pass_fds=(reports_to, orders_from),
        ) as child,
    ):
        os.close(reports_to)
        os.close(orders_from)
        under = Job(child, reports, orders)
        try:
            yield under
        finally:
            under.close()


@every_way
def test_ctrl_z_stops_the_job_and_fg_resumes_it(prefix: tuple[str, ...]) -> None:
    with job(prefix, build("stdin"), "lines") as under:
        child = under.child
        child.expect("ready\r\n")
        for word in ("one", "two", "three"):
            child.send(f"{word}\n".encode())
            child.expect(f'line "{word}"\r\n')
            child.send(b"\x1a")
            stop, signo, settings = under.report()
            assert (stop, settings) == ("stopped", "cooked")
            # A stub host stops after its program has stopped, for which there is SIGSTOP alone.
            assert int(signo) == (signal.SIGSTOP if prefix == IN_PROCESS else signal.SIGTSTP)
            under.foreground()
        child.send(b"\x04")
        assert under.report() == ["exited", "0", "cooked"]


@every_way
def test_a_job_that_stops_itself(prefix: tuple[str, ...]) -> None:
    with job(prefix, "/bin/sh", "-c", "echo before; kill -STOP $$; echo after; exit 4") as under:
        under.child.expect("before\r\n")
        assert under.report()[0] == "stopped"
        under.foreground()
        under.child.expect("after\r\n")
        assert under.report() == ["exited", "4", "cooked"]


@every_way
def test_a_job_that_ctrl_c_kills(prefix: tuple[str, ...]) -> None:
    with job(prefix, "/bin/sh", "-c", "echo ready; exec sleep 60") as under:
        under.child.expect("ready\r\n")
        under.child.send(b"\x03")
        assert under.report() == ["signaled", str(int(signal.SIGINT)), "cooked"]


def test_options_of_the_program_are_its_own() -> None:
    status, out, _ = ptserver("run", "/bin/echo", "--server", "x", "-h", "--", "--help")
    assert (status, out) == (0, "--server x -h -- --help\n")


def test_argv0_can_be_chosen() -> None:
    status, out, _ = ptserver("run", "--argv0", "other", "/bin/sh", "-c", "echo $0")
    assert (status, out) == (0, "other\n")
