"""`--trace` of emulated programs: the calls that are logged natively, with goroutines and stacks; repeatable logs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.process.commands import ptserver
from tests.process.test_emulate import every_arch, run

CALLS = "openat,write,pwrite64,unlinkat,renameat,mkdirat,fchmodat,ftruncate"


def events(log: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in map(json.loads, log.read_text().splitlines()) if event["type"] == kind]


def calls(log: Path) -> list[tuple[object, ...]]:
    """What a log says of the calls on the program's own files: the same wherever it runs."""
    found = []
    for event in events(log, "syscall"):
        path = event["args"].get("path", "")
        if not str(path).startswith(("/sys", "/proc")):
            args = re.sub(r"t\d{5,}", "temporary", json.dumps(event["args"], sort_keys=True))
            found.append((event["name"], args, event.get("value"), event.get("error")))
    return found


@every_arch
def test_the_same_calls_are_logged_as_natively(arch: str, tmp_path: Path) -> None:
    logs = [tmp_path / "native.log", tmp_path / "emulated.log"]
    ways = (["--source=stops"], ["--engine=emulate"] if arch == "amd64" else [])
    programs = (build("fileops"), build("fileops", arch=arch))
    outputs = []
    for log, way, program in zip(logs, ways, programs, strict=True):
        work = tmp_path / log.stem
        work.mkdir()
        command = ("ptserver", "run", f"--trace={log}", "--json", "-s", "4096", "-e", CALLS, *way, program)
        done = run(*command, cwd=work)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert calls(logs[1]) == calls(logs[0])
    assert len(calls(logs[1])) > 50
    assert events(logs[1], "start")[0].get("arch", "amd64") == arch
    assert {event["goid"] for event in events(logs[1], "syscall") if event["name"] == "write"} == {1}
    assert [event["status"] for event in events(logs[1], "exit")] == [0]


@every_arch
def test_stacks_lead_to_main(arch: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = build("hello", arch=arch)
    assert (
        ptserver("run", "--engine=emulate", f"--trace={log}", "--json", "-k", "-e", "write", program)[0] == 0
    )
    (write,) = events(log, "syscall")
    names = [frame["function"] for frame in write["stack"]]
    assert names[0].startswith(("syscall.", "internal/runtime/syscall"))
    assert names[-4:] == ["fmt.Println", "main.main", "runtime.main", "runtime.goexit"]


@every_arch
def test_what_becomes_of_goroutines_is_logged(arch: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = build("go_events", arch=arch)
    words = ("--engine=emulate", f"--trace={log}", "--json", "-e", "none", "--events=all", "-q")
    done = run("ptserver", "run", *words, program, lines="work 2\n")
    assert done.returncode == 0, done.stderr
    facts = [line.split() for line in done.stdout.splitlines()]
    (main,) = (int(fact[1]) for fact in facts if fact[0] == "main")
    of = {(event["goid"], event["event"]): event for event in events(log, "goroutine")}
    for _, goid, channel in (fact for fact in facts if fact[0] == "worker"):
        assert of[int(goid), "create"]["by"] == main
        assert of[int(goid), "create"]["function"].startswith("main.work")
        blocked = of[int(goid), "block"]
        assert (blocked["reason"], blocked["channel"]) == ("chan receive", channel)
        assert "main.worker" in [frame["function"] for frame in blocked["stack"]]
        assert of[int(goid), "unblock"]["by"] == main
        assert (int(goid), "start") in of
        assert (int(goid), "exit") in of
    (selector,) = (fact for fact in facts if fact[0] == "selector")
    assert set(of[int(selector[1]), "block"]["channels"]) == set(selector[2:])
    phases = [event["phase"] for event in events(log, "gc")]
    (collections,) = (int(fact[1]) for fact in facts if fact[0] == "collections")
    assert phases.count("start") == phases.count("sweep") == collections


def test_a_call_that_waits_is_logged_with_its_result(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ("ptserver", "run", "--engine=emulate", f"--trace={log}", "--json", "-e", "wait4,write", "--")
    assert run(*command, "/bin/sh", "-c", "(exit 3); echo $?").stdout == "3\n"
    made = [(event["name"], event["value"]) for event in events(log, "syscall")]
    assert ("write", 2) in made  # the shell may look for children once more after it
    assert made[0][0] == "wait4"
    assert made[0][1] > 0


@pytest.mark.parametrize("options", [("--json", "-k"), ("-c",)])
def test_the_same_seed_logs_the_same(options: tuple[str, ...], tmp_path: Path) -> None:
    program = build("hello", arch="arm64")
    for name in ("first", "second"):
        log = f"--trace={tmp_path / name}"
        command = ("ptserver", "run", "--engine=emulate", "--seed", "5", log, *options, program)
        assert run(*command).returncode == 0
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() != b""


def test_what_a_server_at_an_address_answers_is_logged_here(tmp_path: Path) -> None:
    log, program = tmp_path / "log", build("hello", arch="arm64")
    env = base_environment()
    with serving("passthrough", "127.0.0.1:0", cwd="/", env=env, log=tmp_path / "server") as (address, _):
        traced = ("ptserver", "run", "--server", address, "-e", "write")
        in_file = run(*traced, f"--trace={log}", "--json", "-k", program)
        shown = run(*traced, "--trace=-", program)
    assert (in_file.returncode, in_file.stdout) == (0, "hello, world\n")
    assert [event["arch"] for event in events(log, "start")] == ["arm64"]
    (write,) = events(log, "syscall")
    assert (write["args"]["buf"], write["value"], write["goid"]) == ("hello, world\n", 13, 1)
    assert write["stack"][-1]["function"] == "runtime.goexit"
    assert [event["status"] for event in events(log, "exit")] == [0]
    assert '] write(1, "hello, world\\n", 13)' in shown.stdout


def test_the_log_takes_no_descriptor_of_the_programs(tmp_path: Path) -> None:
    program, log = build("sockets"), tmp_path / "log"
    done = run("ptserver", "run", "--engine=emulate", f"--trace={log}", "-k", program, cwd=tmp_path)
    assert "lowest free descriptors are used: true" in done.stdout


def test_what_only_native_traces_have_is_refused() -> None:
    program = build("hello", arch="arm64")
    assert run("ptserver", "trace", "--source=ring", program).returncode == 69


def test_the_runtimes_own_calls_are_calls_as_others_are() -> None:
    done = run("ptserver", "run", "--trace", "-e", "runtime", build("hello", arch="arm64"))
    assert "mmap(" in done.stderr
    assert "rt_sigaction(" in done.stderr


def test_waits_are_measured_by_events() -> None:
    words = ("--trace", "-c", "--json", "--by", "goroutine", "--events=block")
    done = run("ptserver", "run", "--engine=emulate", "--seed", "5", *words, build("hello"))
    blocked = [row["blocked_ns"] for row in json.loads(done.stderr)["rows"]]
    assert max(blocked) > 0  # the runtime's own goroutines wait from the beginning
