"""The options that choose among calls, and events of goroutines, as a user gives them; by the ring and by stops."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gofixtures import build
from tests.process.commands import ptserver, refusal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "apple.txt").write_text("red\n")
    (tmp_path / "pear.txt").write_text("green\n")
    return tmp_path


def traced(folder: Path, *words: str) -> list[dict[str, Any]]:
    log = folder / "log"
    status, _, err = ptserver("trace", "-q", "--json", "-o", log, *words, build("demo"), cwd=folder)
    assert (status, err) == (0, "")
    return [json.loads(line) for line in log.read_text().splitlines()][1:]


def calls(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == "syscall"]


@pytest.mark.parametrize("source", ["ring", "stops"])
def test_by_path_duration_and_error(folder: Path, source: str) -> None:
    everything = calls(traced(folder, "--source", source))
    on_apple = calls(traced(folder, "--source", source, "--path", "*apple.txt"))
    assert [call["name"] for call in on_apple if "path" in call["args"]] == ["openat"]
    (descriptor,) = {call["value"] for call in on_apple if call["name"] == "openat"}
    assert {call["args"].get("fd") for call in on_apple} <= {descriptor, None}
    assert "read" in {call["name"] for call in on_apple}
    assert 0 < len(on_apple) < len(everything)
    failed = calls(traced(folder, "--source", source, "--errors", "-e", "%resource"))
    assert all(call["errno"] for call in failed)
    assert calls(traced(folder, "--source", source, "--duration", ">1000s")) == []


def test_by_goroutine_and_function(folder: Path) -> None:
    chosen = calls(traced(folder, "--goid", "1"))
    assert {call["goid"] for call in chosen} == {1}
    by_function = calls(traced(folder, "-k", "--func", r"^main\."))
    assert by_function
    for call in by_function:
        assert any(frame["function"].startswith("main.") for frame in call["stack"])


def test_goroutines_and_the_runtime(folder: Path) -> None:
    events = traced(folder, "-e", "runtime", "--events=create,exit")
    assert {event["event"] for event in events if event["type"] == "goroutine"} == {"create", "exit"}
    created = {event["function"] for event in events if event.get("event") == "create"}
    assert "runtime.main" in created
    assert "mmap" in {call["name"] for call in calls(events)}
    only = traced(folder, "-e", "none", "--events=start")
    assert {event["type"] for event in only} == {"goroutine", "exit"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--events=bloc",), "no event 'bloc'"),
        (("--events=all", "--source", "stops"), "--events needs the ring"),
        (("--goid", "1", "--source", "stops"), "need goroutines"),
        (("--duration", "soon"), "--duration soon"),
        (("--func", "("), "no regular expression"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], said: str) -> None:
    status, message = refusal("trace", *words, "1")
    assert status == 64
    assert said in message


def test_the_runtime_s_own_calls_of_a_served_program(folder: Path) -> None:
    log = folder / "log"
    words = ("run", f"--trace={log}", "--json", "-k", "-e", "runtime,openat", "--server", "tracelogger")
    assert ptserver(*words, build("demo"), cwd=folder)[0] == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    of = {name: [event for event in events if event.get("name") == name] for name in ("futex", "openat")}
    assert of["futex"]
    assert of["futex"][0]["stack"][0]["function"] == "runtime.futex"
    # What the host answers comes once, whoever calls.
    starts = [event["start_ns"] for event in of["openat"]]
    assert len(starts) == len(set(starts)) > 0


def test_events_of_a_program_without_a_ring_are_refused() -> None:
    status, message = refusal("trace", "--events=all", "/bin/true")
    assert status == 69
    assert "not a Go program" in message
