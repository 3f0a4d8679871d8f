"""Many goroutines: listed in bounded memory, and fast. What is measured is this process's own work, not the clock."""

import json
import subprocess
import sys
import time

import pytest

from goabi.sched import GoRuntime
from goabi.unwind import Unwinder
from tests.gofixtures import ROOT, build
from tests.process.goabi.live import stopped

LISTER = """
import json, re, sys
from pathlib import Path
from goabi.binary import GoBinary
from goabi.sched import GoRuntime
from tests.process.goabi.live import ProcMemory, load_entry

pid, path = int(sys.argv[1]), sys.argv[2]
with GoBinary.open(path) as binary:
    runtime = GoRuntime(binary, ProcMemory(pid), binary.elf.load_bias(load_entry(pid)))
    # The last of them may have yet to get to the channel.
    listed = sum(runtime.wait_reason(g) in ("chan receive", "") for g in runtime.iter_goroutines())
# Not ru_maxrss: that counts what the parent had when it forked.
peak_kib = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps([listed, runtime.skipped, peak_kib]))
"""


def test_ten_thousand_with_stacks() -> None:
    path = build("goabi_many")
    with stopped(path, "10000") as program:
        runtime: GoRuntime = program.runtime(path)
        with runtime.binary:
            unwinder = Unwinder(runtime)
            began = time.process_time()
            frames = 0
            for goroutine in runtime.iter_goroutines():
                stack = unwinder.unwind_goroutine(goroutine)
                assert stack.is_complete
                frames += len(list(unwinder.iter_source_frames(stack)))
            spent = time.process_time() - began
    assert frames > 70_000
    assert spent < 1
    # A goroutine's stack is one read, and records that lie together are read together.
    assert program.memory.reads < 15_000


@pytest.mark.slow
def test_a_million_in_bounded_memory() -> None:
    path = build("goabi_many")
    with stopped(path, "1000000") as program:
        done = subprocess.run(
            [sys.executable, "-c", LISTER, str(program.pid), path],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
            timeout=240,
        )
    listed, skipped, peak_kib = json.loads(done.stdout)
    assert listed >= 1_000_000
    assert skipped == 0
    assert peak_kib < 100 * 1024
