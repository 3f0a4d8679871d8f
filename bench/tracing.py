"""`python -m bench.tracing [--json] [--quick] [--repeat N]`: what tracing costs, and how fast a ring is read.

A call's cost is the wall time of a 16-byte pread from /dev/zero in a program that does nothing else, with the tracer
attached, against the same program alone in the same round; and, as the reader may take a processor from the program,
what it costs in the program's processor time. The reader is timed with a recorded ring and no program, in processor
time, and with a program that makes calls as fast as it can.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from bench.figures import Figure, Target, measure, options, show
from bench.measure import PTSERVER, BenchError, processor_seconds, program
from bench.recorded_ring import recorded_ring, rewind
from goabi.binary import GoBinary
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import TraceStart
from ptserver.tracelog.frame_names import FrameNames
from ptserver.tracelog.go_events import RuntimeWanted
from ptserver.tracelog.sinks import Form, open_sink
from ptserver.tracelog.text import TextOptions
from stepping.ring import Ring
from stepping.ring_inject import find_pages
from stepping.syscalls.table import SYSCALLS
from tests.gofixtures import build

_RECORDS = 1 << 15
_CALLS = {"native": 100_000, "ring": 100_000, "strace": 400, "delve": 80}
_DELVE_PATIENCE_SECONDS = 30.0


class Answering:
    """A program that answers lines with numbers."""

    def __init__(self, path: str) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([path], stdin=pipe, stdout=pipe, text=True)
        self.pid = self._process.pid
        self._answer()

    def ask(self, line: str) -> float:
        """Return the answer to *line*."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the program ended")
        return line.removeprefix("ready ")


@contextlib.contextmanager
def answering(path: str) -> Iterator[Answering]:
    """Run a program meanwhile."""
    running = Answering(path)
    try:
        yield running
    finally:
        running.close()


@contextlib.contextmanager
def attached(command: Sequence[str], pid: int) -> Iterator[None]:
    """Run a tracer of process *pid* meanwhile: ptserver, or strace, which says when it has attached."""
    tracer = subprocess.Popen([*command, str(pid)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert tracer.stderr is not None
        if command[0] == PTSERVER:
            status = Path(f"/proc/{pid}/status")
            while not find_pages(pid) or "TracerPid:\t0\n" not in status.read_text():
                if tracer.poll() is not None:
                    raise BenchError(tracer.stderr.read().decode())
        elif b"attached" not in tracer.stderr.readline():
            raise BenchError("strace does not attach")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()


def seconds_per_call(tracer: Sequence[str] | None, goroutines: int, calls: int) -> float:
    """Return the wall time per pread of so many goroutines, with a tracer attached."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(answering(str(build("ring_speed"))))
        if tracer is not None:
            stack.enter_context(attached(tracer, running.pid))
        start = time.perf_counter()
        running.ask(f"{max(calls // goroutines, 1)} {goroutines}")
        return (time.perf_counter() - start) / calls


def seconds_more_per_call(tracer: Sequence[str], goroutines: int, calls: int) -> float:
    """Return the processor time that a traced pread costs the program beyond an untraced one."""
    with answering(str(build("ring_speed"))) as running:

        def seconds() -> float:
            before = processor_seconds(running.pid)
            running.ask(f"{max(calls // goroutines, 1)} {goroutines}")
            return (processor_seconds(running.pid) - before) / calls

        untraced = seconds()
        with attached(tracer, running.pid):
            traced = seconds()
        return traced - min(untraced, seconds())


def seconds_per_call_by_delve(goroutines: int, calls: int) -> float:
    """Return the same with `dlv trace`, of a program of Go 1.21, the newest that Debian's delve reads.

    It shows the function that makes the call. Its end is the program's, too: delve leaves a breakpoint in it.
    """
    command = ["dlv", "trace", "--check-go-version=false", "-p"]
    with answering(str(build("ring_speed", go="1.21"))) as running:
        tracer = subprocess.Popen(
            [*command, str(running.pid), "syscall.Pread"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            assert tracer.stdout is not None
            os.set_blocking(tracer.stdout.fileno(), False)
            until = time.monotonic() + _DELVE_PATIENCE_SECONDS
            while b"> goroutine" not in (tracer.stdout.read() or b""):
                if tracer.poll() is not None or time.monotonic() > until:
                    raise BenchError("dlv trace shows nothing")
                running.ask("1 1")
            start = time.perf_counter()
            running.ask(f"{max(calls // goroutines, 1)} {goroutines}")
            return (time.perf_counter() - start) / calls
        finally:
            tracer.kill()
            tracer.communicate()


def seconds_to_first_event() -> float:
    """Return how long after its start ptserver writes the first call of a busy program."""
    with (
        answering(str(build("ring_speed"))) as running,
        subprocess.Popen(
            [PTSERVER, "trace", "-q", "--json", "-o", "-", str(running.pid)], stdout=subprocess.PIPE
        ) as tracer,
    ):
        start = time.perf_counter()
        assert tracer.stdout is not None
        while True:
            running.ask("1 1")
            if select.select([tracer.stdout], [], [], 0)[0] and b'"syscall"' in tracer.stdout.readline():
                took = time.perf_counter() - start
                break
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()
        return took


def seconds_stopped(*, detach: bool) -> float:
    """Return how long a program stands still when a ring is put into it, or at most when it is taken out."""
    with answering(str(build("ring_speed"))) as running:
        ring = Ring.attach(running.pid, SYSCALLS.values())
        took = ring.stopped_s
        if detach:
            start = time.perf_counter()
            ring.detach()
            took = time.perf_counter() - start
        ring.close()
        return took


@cache
def _frames() -> tuple[FrameNames, list[int]]:
    path = str(build("ring_calls"))
    with GoBinary.open(path) as binary:
        pcs = [function.entry + 9 for function in binary.functions.iter_functions()]
    return FrameNames(path), pcs[:: len(pcs) // 1000]


@cache
def _recorded() -> Ring:
    return recorded_ring(_RECORDS, _frames()[1])


def events_per_second(form: Form, *, stacks: bool) -> float:
    """Return how many recorded calls are written as *form* per second of processor time, the file included."""
    ring = _recorded()
    rewind(ring)
    names = _frames()[0] if stacks else None
    with tempfile.TemporaryDirectory() as folder:
        sink = open_sink(
            form, f"{folder}/trace", TraceStart.now(["bench"]), TextOptions(durations=True, stacks=stacks)
        )
        start = time.process_time()
        while (batch := ring.read_batch()) is not None:
            sink.calls(CallBatch(batch, names))
        sink.close()
        return _RECORDS / (time.process_time() - start)


def live_events_per_second(form: Form) -> float:
    """Return how many calls of a program that makes them as fast as it can are written per second."""
    with answering(str(build("ring_speed"))) as running, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace")
        command = [PTSERVER, "trace", "-q", "-e", "pread64", "--format", form, "-o", str(path)]
        with attached(command, running.pid):
            start = time.perf_counter()
            running.ask("400000 1")
            took = time.perf_counter() - start
        if form != "json":
            return 400_000 / took
        lost = sum(json.loads(line)["lost"] for line in path.read_bytes().splitlines() if b'"loss"' in line)
        return (400_000 - lost) / took


def seconds_per_event(round_kind: str, kinds: Sequence[str], events: int) -> float:
    """Return the processor time that one event costs a program. events: how many there are in a round."""
    path = program("goevents")
    rounds = 5000
    with answering(path) as running:
        before = running.ask(f"{round_kind} {rounds}")
        ring = Ring.attach(running.pid, [], probes=RuntimeWanted(events=frozenset(kinds)).find_probes(path))
        during = running.ask(f"{round_kind} {rounds}")
        ring.detach()
        ring.close()
        after = running.ask(f"{round_kind} {rounds}")
    return (during - min(before, after)) / events / 1e9


def figures(*, scale: float = 1.0) -> list[Figure]:
    """Return all figures. scale: 1 for full counts of calls."""
    ring = [PTSERVER, "trace", "-q", "-k", "--json", "-o", os.devnull]
    strace = shutil.which("strace")
    plain = [strace, "-f", "-o", os.devnull, "-p"] if strace else None
    stacks = [strace, "-f", "-k", "-o", os.devnull, "-p"] if strace else None

    def calls(tracer: Sequence[str] | None, goroutines: int, kind: str) -> Callable[[], float] | None:
        if kind == "strace" and tracer is None:
            return None
        number = round(_CALLS[kind] * scale)
        return lambda: seconds_per_call(tracer, goroutines, max(number, 8))

    def more(goroutines: int) -> Callable[[], float]:
        return lambda: seconds_more_per_call(ring, goroutines, round(2 * _CALLS["ring"] * scale))

    def by_delve(goroutines: int) -> Callable[[], float]:
        return lambda: seconds_per_call_by_delve(goroutines, max(round(_CALLS["delve"] * scale), 8))

    wanted = []
    for goroutines in (1, 8):
        group = f"pread by {goroutines} goroutine{'s' if goroutines > 1 else ''}"
        wanted += [
            Figure(group, "native", "µs", calls(None, goroutines, "native")),
            Figure(group, "ptserver trace -k", "µs", calls(ring, goroutines, "ring")),
            Figure(group, "its processor time, beyond native", "µs", more(goroutines), Target(0.3)),
            Figure(group, "strace -f -p", "µs", calls(plain, goroutines, "strace")),
            Figure(group, "strace -f -k -p", "µs", calls(stacks, goroutines, "strace")),
            Figure(group, "dlv trace", "µs", by_delve(goroutines) if shutil.which("dlv") else None),
        ]
    rate = Target(300_000, at_least=True)
    wanted += [
        Figure("attach", "start to first event", "ms", seconds_to_first_event, Target(300)),
        Figure("attach", "program stopped", "ms", lambda: seconds_stopped(detach=False), Target(5)),
        Figure("detach", "program stopped, at most", "ms", lambda: seconds_stopped(detach=True)),
        Figure(
            "reader, recorded",
            "JSON lines",
            "events/s",
            lambda: events_per_second("json", stacks=False),
            rate,
        ),
        Figure(
            "reader, recorded", "JSON lines, -k", "events/s", lambda: events_per_second("json", stacks=True)
        ),
        Figure(
            "reader, recorded",
            "Perfetto",
            "events/s",
            lambda: events_per_second("perfetto", stacks=False),
            rate,
        ),
        Figure(
            "reader, recorded", "Perfetto, -k", "events/s", lambda: events_per_second("perfetto", stacks=True)
        ),
        Figure("reader, recorded", "text", "events/s", lambda: events_per_second("text", stacks=False)),
        Figure("reader, recorded", "summary", "events/s", lambda: events_per_second("summary", stacks=False)),
        Figure("reader, live", "JSON lines, not lost", "events/s", lambda: live_events_per_second("json")),
    ]
    group = "an event of a goroutine"
    for way, round_kind, kinds, events in (
        ("block", "switch", ["block"], 2),
        ("unblock", "switch", ["unblock"], 2),
        ("start", "switch", ["start"], 2),
        ("create, with the start that numbers it", "create", ["create"], 3),
        ("exit", "create", ["exit"], 1),
    ):
        wanted.append(Figure(group, way, "ns", _event(round_kind, kinds, events)))
    return wanted


def _event(round_kind: str, kinds: list[str], events: int) -> Callable[[], float]:
    return lambda: seconds_per_event(round_kind, kinds, events)


def main() -> None:
    """Measure and print."""
    given = options("tracing", "Measure what tracing costs.").parse_args()
    rows = measure(figures(scale=0.1 if given.quick else 1), 1 if given.quick else given.repeat)
    show(rows, as_json=given.json)


if __name__ == "__main__":
    main()
