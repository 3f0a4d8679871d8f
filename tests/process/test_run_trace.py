"""`--trace` as a user gives it: what is logged, where it goes, which goroutine is named, what is refused."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.process.commands import ptserver


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "apple.txt").write_text("red\n")
    return tmp_path


def events(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0]["type"] == "start"
    assert lines[-1]["type"] == "exit"
    return lines


@pytest.mark.parametrize("source", ["ring", "stops"])
def test_calls_are_logged_with_arguments_results_and_durations(source: str, folder: Path) -> None:
    log = folder / "log.jsonl"
    options = ("--source", source, "-e", "trace=openat,read", "--json")
    status, out, err = ptserver("run", f"--trace={log}", *options, "-q", build("demo"), cwd=folder)
    assert (status, err) == (0, "")
    assert "apple.txt has 4 bytes" in out
    calls = [event for event in events(log.read_text()) if event["type"] == "syscall"]
    assert {call["name"] for call in calls} == {"openat", "read"}
    [opened] = [call for call in calls if call["args"].get("path") == "apple.txt"]
    assert opened["args"]["flags"] == ["O_RDONLY", "O_CLOEXEC"]
    [read] = [call for call in calls if call["args"].get("buf") == "red\n"]
    assert (read["args"]["fd"], read["value"]) == (opened["value"], 4)
    assert read["duration_ns"] > 0
    assert opened["tid"] >= opened["pid"]
    if source == "ring":
        assert opened["goid"] == read["goid"] > 1


def test_text_goes_to_standard_error(folder: Path) -> None:
    _, out, err = ptserver("run", "--trace", "-q", "-e", "openat", build("demo"), cwd=folder)
    assert 'openat(AT_FDCWD, "apple.txt", O_RDONLY|O_CLOEXEC) = ' in err
    assert "openat" not in out


def test_a_summary_counts(folder: Path) -> None:
    _, _, err = ptserver("run", "--trace", "-q", "-c", "--json", "-e", "read", build("demo"), cwd=folder)
    [row] = json.loads(err)["rows"]
    assert row["syscall"] == "read"
    assert row["calls"] >= 2


def test_a_program_that_is_not_go_is_traced_by_stops() -> None:
    status, out, err = ptserver("run", "--trace", "-e", "write", "/bin/echo", "hi")
    assert (status, out) == (0, "hi\n")
    assert "tracing by stops" in err
    assert 'write(1, "hi\\n", 3)' in err


@pytest.mark.parametrize("stub", [False, True])
def test_the_calls_of_a_remote_program_are_logged_here_and_there_with_goroutines(
    stub: bool, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = tmp_path_factory.mktemp("server")
    (work / "banana.txt").write_text("yellow\n")
    log, here = folder / "server-log", folder / "host.jsonl"
    env = base_environment() | {"GREETING": "there"}
    with serving("tracelogger", "127.0.0.1:0", cwd=work, env=env, log=log) as (address, _):
        options = ("--server", address, f"--trace={here}", "--json", "-k", "-q", "--events=create")
        status, out, _ = ptserver("run", *options, build("demo", stub=stub), cwd=folder)
    assert (status, "banana.txt has 7 bytes" in out) == (0, True)
    [opened] = [
        event
        for event in events(here.read_text())
        if event["type"] == "syscall" and event["args"].get("path") == "banana.txt"
    ]
    assert opened["goid"] > 1
    created = [event for event in events(here.read_text()) if event["type"] == "goroutine"]
    assert any(event["function"].startswith("main.") for event in created)
    assert any(frame["function"].startswith("main.") for frame in opened["stack"])
    there = [json.loads(line)["text"] for line in log.read_text().splitlines()]
    [line] = [line for line in there if 'openat(AT_FDCWD, "banana.txt"' in line]
    assert line.startswith(f"[{opened['tid']} g{opened['goid']}] openat(")


def test_a_running_process_is_traced_and_left_as_it_was(folder: Path) -> None:
    program = subprocess.Popen(
        [build("ring_calls"), "1"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        env=base_environment(),
    )
    assert program.stdout is not None
    try:
        assert program.stdout.readline()
        program.stdin.write(b"work 1000000\n")
        program.stdin.flush()
        tracer = subprocess.Popen(
            ["ptserver", "trace", "--json", "-q", "-o", "-", str(program.pid)],
            stdout=subprocess.PIPE,
            env=base_environment(),
        )
        assert tracer.stdout is not None
        assert json.loads(tracer.stdout.readline())["pid"] == program.pid
        assert json.loads(tracer.stdout.readline())["type"] == "syscall"
        tracer.send_signal(signal.SIGINT)
        tracer.stdout.read()
        assert tracer.wait(30) == 0
        tracer.stdout.close()
        assert program.poll() is None
        with open(f"/proc/{program.pid}/status", encoding="ascii") as file:
            assert "TracerPid:\t0\n" in file.read()
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("run", "--trace", "-e", "opnat", "/bin/true"), 64, "did you mean openat"),
        (("run", "-c", "/bin/true"), 64, "belong to --trace"),
        (("run", "--trace", "-o", "/nowhere/log", "/bin/true"), 73, "/nowhere/log"),
        (("run", "--trace", "--source", "ring", "/bin/true"), 69, "the ring cannot trace this program"),
        (("trace", str(2**22 + 1)), 66, "there is no process"),
        (("trace", "2"), 66, "is a kernel thread"),
        (("trace", "1", "argument"), 64, "takes no arguments"),
    ],
)
def test_what_cannot_be_traced_is_told_in_a_line(words: tuple[str, ...], status: int, line: str) -> None:
    actual, out, err = ptserver(*words)
    assert (actual, out) == (status, "")
    assert err.startswith("ptserver: ")
    assert line in err
    assert err.count("\n") == 1


def test_a_word_after_the_program_is_the_program_s(folder: Path) -> None:
    _, out, err = ptserver("run", "/bin/echo", "--trace=x", "-c")
    assert (out, err) == ("--trace=x -c\n", "")
    assert os.listdir(folder) == ["apple.txt"]
