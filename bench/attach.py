"""`python -m bench.attach [--json] [--rounds N] [--quick]`: what looking into programs takes, and what they notice.

Three things: lists of 10,000 goroutines, against delve; naming functions of a large program; and what is left of the
speed of a loaded server while somebody watches it, against strace. Delve is Debian's, which reads programs of Go
1.21, so its list is of such a one. Each figure is the median of the rounds; ratios are to the server alone in the
same round.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from bench.measure import PTSERVER, BenchError
from bench.run import Figure, Target, measure, table
from tests.gofixtures import ROOT, build, toolchain

_MANY = 10_000
_CLIENTS = 8
_NAMER = """
import json, random, re, sys, time
from goabi.binary import GoBinary
began = time.process_time()
with GoBinary.open(sys.argv[1]) as binary:
    module, chosen = binary.module, random.Random(0)
    for _ in range(1000):
        binary.functions.frames_at(chosen.randrange(module.min_pc, module.max_pc))
spent = time.process_time() - began
print(json.dumps([spent, int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024]))
"""


class Program:
    """A fixture that answers lines."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.pid = process.pid

    def ask(self, line: str) -> str:
        """Send a line and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@contextlib.contextmanager
def running(name: str, *words: str, go: str = "1.27") -> Iterator[Program]:
    """Run a fixture that says when it is ready."""
    pipe = subprocess.PIPE
    with subprocess.Popen([build(name, go=go), *words], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            while "ready" not in process.stdout.readline():
                pass
            yield Program(process)
        finally:
            process.kill()


def listing(pid: int, *words: str) -> dict[str, float]:
    """List goroutines; return how long it took, and how long the program was stopped."""
    began = time.perf_counter()
    done = subprocess.run(
        [PTSERVER, "goroutines", "--json", *words, str(pid)], capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    if done.returncode:
        raise BenchError(done.stderr)
    return {"took": took, "stopped": json.loads(done.stdout.splitlines()[-1])["stopped_ns"] / 1e9}


def delve_listing(pid: int) -> float:
    """Return how long delve takes for the same, from its start to its end; the program is stopped all the time."""
    command = ["dlv", "attach", "--check-go-version=false", "--allow-non-terminal-interactive", str(pid)]
    began = time.perf_counter()
    done = subprocess.run(
        command, input="goroutines -u\nexit\nn\n", capture_output=True, text=True, check=False, timeout=600
    )
    if done.stdout.count("\n") < _MANY:
        raise BenchError(f"delve lists nothing: {done.stderr}")
    return time.perf_counter() - began


def naming() -> tuple[float, float]:
    """Return processor time and memory for opening Go's compiler and naming 1,000 of its pcs."""
    compiler = toolchain().parent.parent / "pkg/tool/linux_amd64/compile"
    command = [sys.executable, "-c", _NAMER, str(compiler)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    spent, peak = json.loads(done.stdout)
    return spent, peak


@contextlib.contextmanager
def watching(command: list[str]) -> Iterator[None]:
    """Run a command that watches meanwhile; it has begun when it has said something, or after two seconds."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        if "attach" in command:
            time.sleep(2)
        elif not process.stderr.readline():
            raise BenchError(f"{' '.join(command)} ends at once")
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table, or with ``--json`` the rows."""
    parser = argparse.ArgumentParser(prog="bench.attach")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="little of everything, once")
    options = parser.parse_args(argv)
    requests = 100 if options.quick else 1500
    strace = shutil.which("strace")
    with contextlib.ExitStack() as stack:
        many = stack.enter_context(running("goabi_many", str(_MANY)))
        old = (
            stack.enter_context(running("goabi_many", str(_MANY), go="1.21")) if shutil.which("dlv") else None
        )
        web = stack.enter_context(running("ring_net"))
        pid = str(web.pid)

        def serve(*command: str, part: int = 1) -> Callable[[], float]:
            def rate() -> float:
                with watching(list(command)) if command else contextlib.nullcontext():
                    began = time.perf_counter()
                    web.ask(f"get {max(1, requests // part)}")
                    return max(1, requests // part) * _CLIENTS / (time.perf_counter() - began)

            return rate

        full = (PTSERVER, "trace", "--json", "-o", os.devnull)
        by_strace = serve(strace, "-f", "-o", os.devnull, "-p", pid, part=10) if strace else None
        lists, names = "10,000 goroutines", "1,000 pcs of a program of 28 MB"
        group = "HTTP requests to a server that is watched"
        figures = [
            Figure(lists, "ptserver goroutines", "ms", lambda: listing(many.pid)["took"], Target(1000)),
            Figure(lists, "with stacks", "ms", lambda: listing(many.pid, "-k")["took"], Target(1000)),
            Figure(lists, "stopped", "ms", lambda: listing(many.pid, "-k")["stopped"], Target(100)),
            Figure(lists, "delve", "ms", None if old is None else lambda: delve_listing(old.pid)),
            Figure(names, "processor time", "ms", lambda: naming()[0], Target(500)),
            Figure(names, "memory", "MB", lambda: naming()[1], Target(100)),
            Figure(group, "native", "calls/s", serve()),
            Figure(
                group, "ptserver trace", "calls/s", serve(*full, pid), Target(0.9, ratio=True, at_least=True)
            ),
            Figure(group, "ptserver trace -k", "calls/s", serve(*full, "-k", pid)),
            Figure(group, "ptserver attach", "calls/s", serve(PTSERVER, "attach", "--json", pid)),
            Figure(group, "strace -f", "calls/s", by_strace),
        ]
        rows = measure(figures, 1 if options.quick else options.rounds)
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
