"""`python -m bench.stepping [--json] [--quick] [--repeat N]`: how fast programs are decoded into blocks, and stepped.

Measured in one run, each the median of all rounds:

- decoding the whole text of a Go program into classified blocks, with an empty cache, in MB per second of processor
  time; and opening a cache that holds a text of 20 MB;
- single steps a second: by ptrace from Python (`stepping.singlestep`), the same by blocks (`stepping.stepped_run`),
  by a loop of ptrace calls in C, which is what the kernel and processor allow, by gdb (`stepi N`), and on the
  emulator, by gdb over its remote protocol and alone.

Targets: 1 MB/s and 100 ms. Absent: what is not installed.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import options
from goabi.binary import GoBinary
from ptserver.debugger.emulated_target import EmulatedTarget
from stepping.block_cache import Block, BlockCache
from stepping.block_map import BlockMap
from stepping.breakpoints import Breakpoints
from stepping.executor import Until
from stepping.instructions import Flow, Touch
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_ALL
from stepping.singlestep import StepExecutor
from stepping.stepped_run import SteppedRun
from stepping.tracee_launch import launch_stopped
from stepping.tracee_memory import TraceeMemory
from tests.gofixtures import build

DECODE_TARGET_MB_PER_S = 1.0
OPEN_TARGET_MS = 100.0

_STEPS = 2000
_TEXT_BYTES = 20 << 20
#: The mean length of a block in Go's text.
_BLOCK_BYTES = 16
_FUNCTION_BYTES = 320

_C_LOOP = """
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
	int status, pid = fork();
	if (!pid) { ptrace(PTRACE_TRACEME, 0, 0, 0); execv(argv[1], argv + 1); _exit(1); }
	struct timespec a, b;
	waitpid(pid, &status, 0);
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (int i = 0; i < STEPS; i++) { ptrace(PTRACE_SINGLESTEP, pid, 0, 0); waitpid(pid, &status, 0); }
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%f", STEPS / ((b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) / 1e9));
	ptrace(PTRACE_KILL, pid, 0, 0);
	return argc == 0;
}
"""


def decoding() -> float:
    """Return MB of text a second of processor time, the cache being empty."""
    with GoBinary.open(build("goroutines")) as binary:
        spans = [(one.entry, one.end) for one in binary.functions.iter_functions()]
        blocks = BlockMap(binary.arch.name, binary.elf.read)
        began = time.process_time()
        for start, end in spans:
            blocks.blocks_of(start, end)
        return sum(end - start for start, end in spans) / 1e6 / (time.process_time() - began)


def opening() -> float:
    """Return how many ms it takes to open the cache of a text of 20 MB, and to find a function in it."""
    count = _FUNCTION_BYTES // _BLOCK_BYTES
    functions = {
        at: [
            Block(at + _BLOCK_BYTES * index, _BLOCK_BYTES, 4, Flow.BRANCH, Touch.STACK, at)
            for index in range(count)
        ]
        for at in range(0x400000, 0x400000 + _TEXT_BYTES, _FUNCTION_BYTES)
    }
    with tempfile.TemporaryDirectory() as folder:
        BlockCache(b"bench", 0x400000, Path(folder)).add(functions)
        began = time.perf_counter()
        cache = BlockCache(b"bench", 0x400000, Path(folder))
        found = cache.find(0x400000 + _FUNCTION_BYTES * 1000)
        took = time.perf_counter() - began
        assert found is not None
        assert len(found) == count
        cache.close()
    return took * 1e3


def stepping_by_ptrace() -> float:
    """Return steps a second by `StepExecutor`."""
    group = launch_stopped(Program(str(build("hello")), [b"hello"], []), FOLLOW_ALL)
    memory = TraceeMemory(group.pid)
    leader = group.leader
    assert leader is not None
    stepper = StepExecutor(group, Breakpoints(memory, leader.layout))
    began = time.perf_counter()
    stepper.run(leader, Until(instructions=_STEPS))
    took = time.perf_counter() - began
    memory.close()
    os.kill(group.pid, 9)
    group.wait()
    return _STEPS / took


def stepping_by_blocks() -> float:
    """Return instructions a second of a whole program whose instructions nobody watches."""
    null = os.open(os.devnull, os.O_WRONLY)
    program = Program(str(build("hello")), [b"hello"], [], stdio=(0, null, null))
    run = SteppedRun(launch_stopped(program, FOLLOW_ALL))
    began = time.perf_counter()
    run.run()
    took = time.perf_counter() - began
    os.close(null)
    return run.count / took


def stepping_in_c() -> float:
    """Return steps a second by a loop in C."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "loop.c", Path(folder) / "loop"
        source.write_text(_C_LOOP)
        subprocess.run(["gcc", "-O1", f"-DSTEPS={_STEPS}", "-o", program, source], check=True)
        done = subprocess.run([program, build("hello")], check=True, capture_output=True, text=True)
    return float(done.stdout)


def stepping_emulated() -> float:
    """Return single steps a second on the emulator."""
    target = EmulatedTarget(str(build("hello")), [b"hello"], [])
    began = time.perf_counter()
    for _ in range(_STEPS):
        target.step(target.pid)
    took = time.perf_counter() - began
    target.kill()
    return _STEPS / took


def stepping_by_gdb() -> float:
    """Return steps a second by gdb: the time of `stepi N`, less that of gdb without."""
    command = ["gdb", "-nx", "-batch", "-iex", "set auto-load off", "-ex", "starti"]

    def seconds(*more: str) -> float:
        began = time.perf_counter()
        subprocess.run([*command, *more, build("hello")], check=True, capture_output=True)
        return time.perf_counter() - began

    without = seconds("-ex", "stepi 1")
    return _STEPS / max(seconds("-ex", f"stepi {_STEPS}") - without, 1e-6)


def stepping_by_gdb_remotely() -> float:
    """Return steps a second by gdb of a program that `ptserver step --gdb` emulates."""

    def seconds(count: int) -> float:
        words = ["ptserver", "step", "--engine=emulate", "--gdb", "localhost:0", str(build("hello"))]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            match = re.search(r"at (\S+)", server.stderr.readline())
            assert match is not None
            gdb = ["gdb", "-nx", "-batch", "-iex", "set auto-load off", "-ex", f"target remote {match[1]}"]
            began = time.perf_counter()
            subprocess.run([*gdb, "-ex", f"stepi {count}", "-ex", "kill"], check=True, capture_output=True)
            took = time.perf_counter() - began
            server.communicate(timeout=60)
        return took

    return _STEPS / max(seconds(_STEPS) - seconds(1), 1e-6)


FIGURES: dict[str, tuple[str, Callable[[], float], str | None]] = {
    "decode, empty cache": ("MB/s", decoding, None),
    "open the cache of 20 MB": ("ms", opening, None),
    "step: ptrace in C": ("1/s", stepping_in_c, "gcc"),
    "step: ptserver": ("1/s", stepping_by_ptrace, None),
    "step: ptserver, by blocks": ("1/s", stepping_by_blocks, None),
    "step: gdb": ("1/s", stepping_by_gdb, "gdb"),
    "step: emulated": ("1/s", stepping_emulated, None),
    "step: emulated, by gdb": ("1/s", stepping_by_gdb_remotely, "gdb"),
}


def main() -> None:
    """Print the table."""
    given = options("stepping", "Measure decoding into blocks and single steps.", rounds=3).parse_args()
    values: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(1 if given.quick else given.repeat):
        for name, (_, measure, needs) in FIGURES.items():
            if needs is None or shutil.which(needs):
                values[name].append(measure())
    medians = {name: statistics.median(found) for name, found in values.items() if found}
    met = (
        medians["decode, empty cache"] >= DECODE_TARGET_MB_PER_S
        and medians["open the cache of 20 MB"] <= OPEN_TARGET_MS
    )
    if given.json:
        print(json.dumps({"medians": medians, "targets_met": met}))
    else:
        for name, (unit, _, _) in FIGURES.items():
            print(
                f"{name:<28} {medians[name]:>12,.2f} {unit}"
                if name in medians
                else f"{name:<28}       absent"
            )
        print("targets met" if met else "targets MISSED")


if __name__ == "__main__":
    main()
