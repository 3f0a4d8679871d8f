"""Tracing a program from its start or while it runs, by ring and by stops, as the commands do it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.gofixtures import ROOT, build
from tests.process.tracees import THREADS, python

RUN = """
import os, sys
from ptserver.tracelog.events import TraceStart
from ptserver.tracelog.jsonl import JsonLinesSink
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.tracing import run_traced, trace_process
log, mode, source, names, *argv = sys.argv[1:]
sink = JsonLinesSink(LineWriter.open(log), TraceStart.now(argv))
wanted = set(names.split(",")) if names else None
def note(text): open(log + ".note", "a").write(text + "\\n")
status = 0
if mode == "attach":
    trace_process(int(argv[0]), sink, wanted, source=source, stacks=True, note=note)
else:
    env = [name + b"=" + value for name, value in os.environb.items()]
    status = run_traced(
        argv[0], [os.fsencode(word) for word in argv], env, sink, wanted, source=source, stacks=True, note=note
    )
sink.close()
print("status", status, flush=True)
"""
NAMES = "openat,pwrite64,pread64,write,read,exit_group"


class Tracer:
    """A process that traces, and what it wrote."""

    def __init__(self, folder: Path, mode: str, source: str, names: str, argv: Sequence[str]) -> None:
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, self.log, mode, source, names, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def note(self) -> str:
        return Path(f"{self.log}.note").read_text()


@contextlib.contextmanager
def traced(
    folder: Path, argv: Sequence[str], *, mode: str = "run", source: str = "auto", names: str = NAMES
) -> Iterator[Tracer]:
    tracer = Tracer(folder, mode, source, names, argv)
    try:
        yield tracer
    finally:
        tracer.process.kill()
        tracer.process.communicate()


@pytest.mark.parametrize("source", ["ring", "stops", "auto"])
def test_a_go_program_from_its_start(tmp_path: Path, source: str) -> None:
    with traced(tmp_path, [str(build("ring_calls")), "4"], source=source) as tracer:
        assert tracer.line().startswith("ready ")
        tracer.send("work 50")
        assert tracer.line().startswith("done ")
        tracer.send("quit")
        assert tracer.line() == "bye"
        assert tracer.line() == f"status {3 << 8}"
    events = tracer.events()
    calls = [event for event in events if event["type"] == "syscall"]
    count = Counter(call["name"] for call in calls)
    assert count["pwrite64"] == 200
    assert len([call for call in calls if call["name"] == "pread64" and call["value"] == 8]) == 200
    assert sorted(call["args"]["buf"] for call in calls if call["name"] == "pwrite64") == sorted(
        f"{worker:03}:{i:04}" for worker in range(4) for i in range(50)
    )
    missing = [call for call in calls if call.get("errno") == "ENOENT" and "worker" in call["args"]["path"]]
    assert len(missing) == 200
    assert events[-1]["type"] == "exit"
    assert events[-1]["status"] == 3
    if source == "stops":
        assert calls[-1]["name"] == "exit_group"
    else:
        assert "by the ring (go1.27" in tracer.note()
        stack = [frame["function"] for frame in missing[0]["stack"]]
        assert "main.worker" in stack
        assert len({call["goid"] for call in missing}) == 4


def test_another_program_is_traced_by_stops(tmp_path: Path) -> None:
    cat = shutil.which("cat")
    assert cat is not None
    with traced(tmp_path, [cat]) as tracer:
        tracer.send("over and out")
        assert tracer.line() == "over and out"
        assert tracer.process.stdin is not None
        tracer.process.stdin.close()
        assert tracer.line() == "status 0"
        tracer.process.stdin = None
    assert "tracing by stops: " in tracer.note()
    assert "not a Go program" in tracer.note()
    assert [event["args"]["buf"] for event in tracer.events() if event.get("name") == "write"] == [
        "over and out\n"
    ]


def test_a_program_with_c_code_is_traced_by_stops(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("cgo needs gcc, which is not installed")
    with traced(tmp_path, [str(build("ring_cgo", cgo=True))]) as tracer:
        assert [tracer.line() for _ in range(3)] == ["from C", "from Go", "status 0"]
    assert "it uses cgo" in tracer.note()
    written = [event["args"]["buf"] for event in tracer.events() if event.get("name") == "write"]
    assert [text for text in written if text.startswith("from")] == ["from C\n", "from Go\n"]


def test_both_sources_see_the_same_calls(tmp_path: Path) -> None:
    seen = []
    names = "openat,unlinkat,pwrite64,pread64,write,fcntl,epoll_ctl,close"
    for source in ("ring", "stops"):
        folder = tmp_path / source
        folder.mkdir()
        with traced(folder, [str(build("ring_calls")), "3"], source=source, names=names) as tracer:
            pid = tracer.line().split()[1]
            tracer.send("work 40")
            assert tracer.line().startswith("done ")
            tracer.send("quit")
            assert tracer.line() == "bye"
            assert tracer.line() == f"status {3 << 8}"
        calls: Counter[str] = Counter()
        for event in tracer.events():
            # By stops, a call that a signal interrupts is seen each time that it is begun anew.
            if event["type"] == "syscall" and not str(event.get("errno")).startswith("ERESTART"):
                event["args"].pop("event", None)  # the ring does not follow epoll_ctl's pointer
                text = json.dumps([event["name"], event["args"], event["value"], event.get("errno")])
                # What differs from run to run: process id, names of temporary files, addresses.
                text = text.replace(pid, "PID")
                text = re.sub(r"/tmp/ring\d+", "/tmp/ring", text)
                calls[re.sub(r"0x[0-9a-f]+|\b\d{9,}\b", "N", text)] += 1
        seen.append(calls)
    by_ring, by_stops = seen
    assert by_ring - by_stops == Counter(), by_stops - by_ring
    # The runtime looks up the size of huge pages with SYSCALL instructions of its own.
    own = sorted((by_stops - by_ring).elements())
    assert [json.loads(text)[0] for text in own] == ["close", "openat"], own
    assert "/sys/kernel/mm/transparent_hugepage/" in own[1]


def test_a_source_that_cannot_be_had(tmp_path: Path) -> None:
    with traced(tmp_path, ["/bin/cat"], source="ring") as tracer:
        assert tracer.line() == ""
        assert tracer.process.wait() == 1


@pytest.mark.parametrize("source", ["ring", "stops"])
def test_signals_to_the_tracer_reach_the_program(tmp_path: Path, source: str) -> None:
    with traced(tmp_path, [str(build("ring_calls")), "1"], source=source) as tracer:
        assert tracer.line().startswith("ready ")
        tracer.process.send_signal(signal.SIGTERM)
        assert tracer.line() == f"status {int(signal.SIGTERM)}"
    assert tracer.events()[-1]["signal"] == "SIGTERM"


@pytest.mark.parametrize("source", ["ring", "stops"])
def test_a_stopped_job_is_seen_and_continued(tmp_path: Path, source: str) -> None:
    with traced(tmp_path, [str(build("ring_calls")), "1"], source=source) as tracer:
        pid = int(tracer.line().split()[1])
        os.kill(pid, signal.SIGSTOP)  # SIGTSTP stops nobody in an orphaned process group
        _, status = os.waitpid(tracer.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        tracer.process.send_signal(signal.SIGCONT)
        tracer.send("work 1")
        assert tracer.line().startswith("done ")
        tracer.send("quit")
        assert tracer.line() == "bye"
        assert tracer.line() == f"status {3 << 8}"


@pytest.mark.parametrize("source", ["ring", "stops"])
@pytest.mark.parametrize("ending", [signal.SIGINT, None])
def test_attach_and_let_go(tmp_path: Path, source: str, ending: signal.Signals | None) -> None:
    program = subprocess.Popen(
        [build("ring_calls"), "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        program.stdout.readline()
        with traced(tmp_path, [str(program.pid)], mode="attach", source=source) as tracer:
            seen = 0
            while seen < 4:  # until the tracer is there
                program.stdin.write("work 2\n")
                program.stdin.flush()
                assert program.stdout.readline().startswith("done ")
                text = tracer.log.read_text() if tracer.log.exists() else ""
                seen = text.count('"pwrite64"')
            if ending is not None:
                tracer.process.send_signal(ending)
                assert tracer.line() == "status 0"
                assert "TracerPid:\t0\n" in Path(f"/proc/{program.pid}/status").read_text()
                assert "ptserver" not in Path(f"/proc/{program.pid}/maps").read_text()
                program.stdin.write("work 5\nquit\n")
            else:
                program.stdin.write("work 5\nquit\n")
            program.stdin.flush()
            assert program.stdout.readline().startswith("done ")
            assert program.stdout.readline() == "bye\n"
            if ending is None:
                # Nobody has waited for the program yet: the tracer must see its end all the same.
                assert tracer.line() == "status 0"
    finally:
        program.kill()
        assert program.wait() == 3
        program.stdin.close()
        program.stdout.close()


def test_a_flood_of_calls_is_counted_and_can_be_left(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [build("ring_speed")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        program.stdout.readline()
        program.stdin.write("100000000 2\n")
        program.stdin.flush()
        with traced(tmp_path, [str(program.pid)], mode="attach", source="ring") as tracer:
            while not tracer.log.exists() or tracer.log.stat().st_size < 5_000_000:
                assert tracer.process.poll() is None
                time.sleep(0.01)
            tracer.process.send_signal(signal.SIGINT)
            assert tracer.line() == "status 0"
            assert "ptserver" not in Path(f"/proc/{program.pid}/maps").read_text()
        lines = tracer.log.read_text().splitlines()
        assert any(json.loads(line)["type"] == "loss" for line in lines if '"loss"' in line)
    finally:
        program.kill()
        program.communicate()


def test_everything_that_touches_a_resource_by_default(tmp_path: Path) -> None:
    source = "import os, mmap; mmap.mmap(-1, 4096); os.stat('/etc/passwd'); f = open('/etc/passwd', 'rb'); "
    source += "mmap.mmap(f.fileno(), 10, prot=mmap.PROT_READ)"
    with traced(tmp_path, [sys.executable, "-S", "-c", source], names="") as tracer:
        assert tracer.line() == "status 0"
    calls = [event for event in tracer.events() if event["type"] == "syscall"]
    names = {call["name"] for call in calls}
    assert {"execve", "openat", "newfstatat", "close"} <= names
    assert not {"brk", "rt_sigaction", "munmap", "exit_group"} & names
    mapped = [call for call in calls if call["name"] == "mmap"]
    assert mapped
    assert all("MAP_ANONYMOUS" not in call["args"]["flags"] for call in mapped)


def test_a_process_that_cannot_be_traced(tmp_path: Path) -> None:
    with python(THREADS.format(count=0)) as child:
        child.kill()
        child.wait()
        with traced(tmp_path, [str(child.pid)], mode="attach") as tracer:
            assert tracer.line() == ""
            assert tracer.process.wait() == 1
