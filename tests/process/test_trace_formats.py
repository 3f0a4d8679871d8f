"""The formats for other programs, as a user gives them; what they write is read by the tools it is for."""

import json
import subprocess
from pathlib import Path

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace  # type: ignore[import-untyped]

from tests.gofixtures import build, environment, toolchain
from tests.process.commands import ptserver, refusal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "apple.txt").write_text("red\n")
    return tmp_path


def test_perfetto(folder: Path) -> None:
    path = folder / "trace.pftrace"
    words = ("trace", "--format", "perfetto", "-k", "-q", "-o", path, build("demo"))
    assert ptserver(*words, cwd=folder)[0] == 0
    packets = Trace.FromString(path.read_bytes()).packet
    names = {entry.name for packet in packets for entry in packet.interned_data.event_names}
    assert {"openat", "read", "close", "exited with 0"} <= names
    texts = [entry.str for packet in packets for entry in packet.interned_data.debug_annotation_string_values]
    assert any(text.startswith(b"main.process ") for text in texts)
    tracks = {packet.track_descriptor.name for packet in packets if packet.HasField("track_descriptor")}
    assert "goroutine 1" in tracks


def test_opentelemetry(folder: Path) -> None:
    path = folder / "spans.jsonl"
    words = ("trace", "--format", "otlp", "--errors", "-q", "-o", path, build("ring_calls"))
    assert ptserver(*words, stdin=b"work 10\nquit\n", cwd=folder)[0] == 3
    spans = [
        span
        for line in path.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    failed = [span for span in spans if span["name"] == "openat"]
    assert len(failed) == 10
    assert {span["status"]["message"] for span in failed} == {"ENOENT"}
    (goroutine,) = {span["parentSpanId"] for span in failed}
    assert [span["name"].split()[0] for span in spans if span["spanId"] == goroutine] == ["goroutine"]
    status, message = refusal("trace", "--format", "otlp", build("demo"))
    assert (status, "-o URL" in message) == (64, True)


def test_a_recording_becomes_what_could_have_been_had_at_once(folder: Path) -> None:
    path = folder / "calls"
    words = ("trace", "--format", "recording", "--events=create", "-q", "-o", path, build("demo"))
    assert ptserver(*words, cwd=folder)[0] == 0
    status, text, err = ptserver("trace", "--from", path, "-k", "-e", "openat")
    assert (status, err) == (0, "")
    assert 'openat(AT_FDCWD, "apple.txt"' in text
    assert " > main.process() " in text
    assert "read(" not in text
    assert "created: main." in text
    assert "+++ exited with 0 +++\n" in text
    lines = [json.loads(line) for line in ptserver("trace", "--from", path, "--json")[1].splitlines()]
    assert lines[0]["program"] == [str(build("demo"))]
    assert {"openat", "read", "close"} <= {line.get("name") for line in lines}
    profile = folder / "calls.pb.gz"
    assert ptserver("trace", "--from", path, "--format", "pprof", "-o", profile)[0] == 0
    assert "openat" in functions(go_top(profile, "-sample_index=calls", "-focus=main.process"))
    path.write_bytes(path.read_bytes()[:-30])
    status, text, err = ptserver("trace", "--from", path)
    assert (status, "openat" in text, "exited" in text) == (0, True, False)
    assert "ends in the middle" in err
    assert refusal("trace", "--from", path, build("demo"))[0] == 64


def test_a_recording_of_a_program_that_is_not_gos(folder: Path) -> None:
    path = folder / "calls"
    assert (
        ptserver("trace", "--format", "recording", "-q", "-o", path, "/bin/cat", "apple.txt", cwd=folder)[0]
        == 0
    )
    status, text, _ = ptserver("trace", "--from", path, "-e", "openat,read")
    assert status == 0
    assert 'read(3, "red\\n", ' in text
    assert "close" not in text


@pytest.mark.parametrize("source", ["ring", "stops"])
def test_pprof(folder: Path, source: str) -> None:
    path = folder / "calls.pb.gz"
    words = ("run", f"--trace={path}", "--format", "pprof", "--source", source, "-q", build("demo"))
    status, _, err = ptserver(*words, cwd=folder)
    assert (status, err) == (0, "")
    top = go_top(path, "-sample_index=calls")
    assert "File: demo" in top
    assert {"openat", "read", "close"} <= functions(top)
    assert ("main.process" in functions(top)) == (source == "ring")
    assert "Type: time" in go_top(path)
    if source == "ring":
        assert "openat" in functions(go_top(path, "-sample_index=calls", "-focus=main.process"))


def go_top(path: Path, *options: str) -> str:
    done = subprocess.run(
        [toolchain(), "tool", "pprof", "-top", "-nodefraction=0", *options, path],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def functions(top: str) -> set[str]:
    return {line.split(maxsplit=5)[5] for line in top.partition("cum%\n")[2].splitlines()}


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (("--format", "perfetto"), 64, "--format perfetto is binary: name a file for it with -o FILE"),
        (("--format", "pprof"), 64, "--format pprof is binary: name a file for it with -o FILE"),
        (("--format", "pprof", "-c", "-o", "x"), 64, "-c makes a table, which --format pprof cannot hold"),
        (("--format", "text", "--json"), 64, "--json and --format text exclude each other"),
        (("--format", "perfetto", "-o", "/nowhere/x"), 73, "cannot write the trace to /nowhere/x"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(options: tuple[str, ...], status: int, reason: str) -> None:
    actual, line = refusal("run", "--trace", *options, "/bin/echo", "ran")
    assert actual == status
    assert line.startswith(reason)


def test_format_json_is_json(folder: Path) -> None:
    _, _, err = ptserver("run", "--trace", "--format", "json", "-q", "/bin/true", cwd=folder)
    assert err.startswith('{"type":"start"')
    _, _, err = ptserver("run", "--trace", "--format", "json", "-c", "-q", "/bin/true", cwd=folder)
    assert err.startswith('{"by": "syscall"')
