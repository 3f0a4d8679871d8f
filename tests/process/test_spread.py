"""Programs that are spread over several hosts: what they see is one process, and nothing is left of it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.modes import base_environment, waiting
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver, refusal
from tests.process.session_client import children

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")


def _spread(
    hosts: str, *words: str | Path, place: str = "stay", cwd: str | Path = "/tmp", **env: str
) -> tuple[int, str, str]:
    return ptserver(
        "run",
        "--spread",
        hosts,
        "--straight",
        "all",
        "--place",
        place,
        *words,
        env={"GOMAXPROCS": "3", **env},
        cwd=cwd,
    )


_TASKS = {
    "where": "hosts 2 here 0\nasked for 1 at 1 <nil>\nasked for 0 at 0 <nil>\n"
    "asked for 1 at 1 <nil>\nasked for 0 at 0 <nil>\n",
    "channels": "101\n201\n301\n401\n501\n",
    "shared": "400 21 20\n",
    "counter": "2000 4000\n",
    "allocate": "3066\n3066\n",
    "recover": "recovered: runtime error: invalid memory address or nil pointer dereference at true\n",
    "guard": "recovered: true\n",
    "efault": "4100 <nil> 0\n" * 2,
    "recursion": "5000 5000\n",
    "selects": "4950\n",
    "timers": "in time\n",
    "child": '"got\\n" true\n',
    "mapped": "ELF\n<nil>\n",
    "nohost": "invalid argument 0\n",
}


#: Those whose output says how many hosts there are.
_BY_HOSTS = ("where", "channels", "shared", "counter", "allocate", "efault")


@pytest.mark.parametrize("task", _TASKS)
def test_two_hosts_are_one_process(task: str) -> None:
    status, out, err = _spread("local", build("spread_tasks", stub=True), task)
    assert (status, out, err) == (0, _TASKS[task], "")


def test_children_outlive_the_program() -> None:
    """They read what comes after its end, and who waits for the end of their output waits for nobody else."""
    with (
        none_left(10),
        subprocess.Popen(
            ["ptserver", "run", "--spread", "local", build("spread_tasks", stub=True), "outlived"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=base_environment(),
            text=True,
        ) as child,
    ):
        assert child.wait(30) == 0
        out, _ = child.communicate("one\ntwo\n", timeout=30)
    assert sorted(out.splitlines()) == ["got one", "got two"]


@pytest.mark.parametrize(
    ("task", "output"),
    [
        ("channels", "1012\n2012\n3012\n4012\n5012\n"),
        ("shared", "600 31 20\n"),
        ("counter", "2000 4000\n"),
        ("allocate", "3066\n" * 3),
        ("selects", "4950\n"),
    ],
)
def test_three_hosts_are_one_process_whoever_keeps_them(task: str, output: str) -> None:
    status, out, err = _spread("local,agent", build("spread_tasks", stub=True), task)
    assert (status, out, err) == (0, output, "")


@pytest.mark.parametrize(
    ("hosts", "task", "seed"),
    [
        ("local,local", "timers", 1),
        pytest.param("local,local", "shared", 1, marks=pytest.mark.slow),
        *(
            pytest.param(hosts, task, seed, marks=pytest.mark.slow)
            for hosts in ("local", "agent,agent")
            for task in _TASKS
            if task not in _BY_HOSTS
            for seed in range(2, 6)
        ),
        *(
            pytest.param(hosts, task, seed, marks=pytest.mark.slow)
            for hosts in ("local", "agent")
            for task in _BY_HOSTS
            for seed in range(2, 12)
        ),
    ],
)
def test_threads_that_move_anywhere_change_nothing(hosts: str, task: str, seed: int) -> None:
    """All the while the hosts' memory is compared."""
    words = ("--check-memory", "0.2", build("spread_tasks", stub=True), task)
    status, out, err = _spread(hosts, *words, place=f"random:{seed}")
    output = "600 31 20\n" if hosts == "local,local" and task == "shared" else _TASKS[task]
    assert (status, err) == (0, "")
    if task == "shared":  # Here() is wherever the thread is just then, so the keys differ
        assert out.split()[0] == output.split()[0]
    elif task in ("where", "nohost"):  # as in `shared`, what went to a host may be elsewhere when it looks
        assert re.sub(r"\b[0-2]\b", "H", out) == re.sub(r"\b[0-2]\b", "H", output)
    elif task != "channels":
        assert out == output


def test_faults_are_logged_with_when_they_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    status, _, err = _spread("local", "--fault-log", log, build("spread_tasks", stub=True), "where")
    assert (status, err) == (0, "")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    granted = {(entry["host"], page) for entry in entries if "count" in entry for page in _pages(entry)}
    asked = {(entry["host"], entry["page"]) for entry in entries if "tid" in entry}
    assert {host for host, _ in asked} == {0, 1}
    assert len(asked - granted) <= 1  # what a thread waits for as the program ends
    assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries)


def _pages(entry: dict[str, int]) -> range:
    return range(entry["page"], entry["page"] + entry["count"])


def test_files_are_those_of_the_first_host(tmp_path: Path) -> None:
    name = tmp_path / "written"
    status, out, _ = _spread("local", build("spread_tasks", stub=True), "files", name)
    assert (status, out) == (0, "at 0\nat 1\n<nil>\n")
    assert name.read_text() == "at 0\nat 1\n"


def test_an_exit_at_another_host_ends_the_program() -> None:
    assert _spread("local", build("spread_tasks", stub=True), "die")[0] == 7


def test_a_panic_at_another_host_is_printed_with_its_stack() -> None:
    status, _, err = _spread("local", build("spread_tasks", stub=True), "crash")
    assert status == 2
    assert err.startswith(
        "panic: the end at another host\n\ngoroutine 1 [running, locked to thread]:\nmain.crash()\n"
    )


@pytest.mark.parametrize("go", ["1.21", "1.24"])
def test_programs_of_older_go_are_spread(go: str) -> None:
    status, out, err = _spread("local", build("spread_tasks", stub=True, go=go), "shared")
    assert (status, out, err) == (0, _TASKS["shared"], "")


@pytest.mark.parametrize(
    ("fixture", "words"),
    [("hello", ()), ("goroutines", ()), ("timers", ()), ("pipes", ()), ("exit3", ("5",)), ("preempt", ())],
)
def test_unmodified_programs_behave_as_natively(fixture: str, words: tuple[str, ...], tmp_path: Path) -> None:
    program = build(fixture)
    native = subprocess.run(
        [program, *words], capture_output=True, env=base_environment(), cwd=tmp_path, text=True, check=False
    )
    status, out, err = _spread("local", program, *words, place="idle", cwd=tmp_path)
    assert (status, out, err) == (native.returncode, native.stdout, native.stderr)


def test_a_host_elsewhere_gets_the_program_and_executes_it(tmp_path: Path) -> None:
    with none_left(), waiting("127.0.0.1:0", tmp_path) as (address, _):
        for _ in range(2):
            status, out, err = _spread(address, build("spread_tasks", stub=True), "channels")
            assert (status, out, err) == (0, _TASKS["channels"], "")
        assert len(list((tmp_path / "programs").iterdir())) == 1


@pytest.mark.parametrize("ahead_seconds", [5000, pytest.param(-5, marks=pytest.mark.slow)])
def test_the_clock_of_a_host_elsewhere_is_that_of_the_first(tmp_path: Path, ahead_seconds: int) -> None:
    def popen(command: list[str], **options: Any) -> "subprocess.Popen[str]":
        # As if its machine had begun so much earlier.
        clocks = [f"--monotonic={ahead_seconds}", f"--boottime={ahead_seconds}"]
        return subprocess.Popen(["unshare", "--time", *clocks, *command], **options)

    with none_left(), waiting("127.0.0.1:0", tmp_path, popen=popen) as (address, _):
        assert _spread(address, build("spread_tasks", stub=True), "clock") == (0, "in order\n", "")


@pytest.mark.parametrize(
    ("host", "reason"), [("local", "its process has ended)"), ("agent", "the connection ")]
)
def test_a_lost_host_ends_the_program_with_the_reason(host: str, reason: str) -> None:
    with (
        none_left(),
        subprocess.Popen(
            ["ptserver", "run", "--spread", host, str(build("spread_workers")), "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            env=base_environment(),
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdout.readline()
        while not json.loads(ptserver("ps", "--json", str(child.pid))[1].splitlines()[0])["moves"]:
            pass  # until something runs there
        agents = {pid for pid in children(child.pid) if children(pid)}
        # Without one it is the instance itself, which is made after that of host 0.
        os.kill(min(agents) if agents else max(children(child.pid)), signal.SIGKILL)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 69
    line = err.decode().splitlines()[-1]
    assert line.startswith(f"ptserver: host 1 of the program is lost ({reason}")
    assert line.endswith("; the program has been killed")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("--spread", "localhost:1", "PROGRAM"), 69, "nobody listens at localhost:1"),
        (("--spread", "local", sys.executable), 126, "not a Go program"),
        (("--spread", "local", "--on", "localhost:1", "PROGRAM"), 64, "--spread goes with none of"),
        (("--spread", "nowhere", "PROGRAM"), 64, "nowhere"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_one_line(words: tuple[str, ...], status: int, text: str) -> None:
    program = str(build("hello"))
    got, line = refusal("run", *(program if word == "PROGRAM" else word for word in words))
    assert got == status
    assert text in line
