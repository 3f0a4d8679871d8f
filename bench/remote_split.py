"""`python -m bench.remote_split PROGRAM MODE N`: where the time of a served access goes, as JSON, in nanoseconds.

Runs a program with remote `main.counter` in this process's host, with clocks around what the host does, which count
its processor time. What the program itself sees, minus all of that, is the trap: the fault, the switches to the host
and back, its waking, and what the two wait for a processor that others use.
"""

import json
import os
import sys
import time
from collections import defaultdict
from typing import Any

from ptserver.remote_memory.options import Wanted
from ptserver.remote_memory.stores import ServedStore
from ptserver.remote_memory.tracer import RemoteTracer
from ptserver.running.here import run_here
from ptserver.running.run import RunOptions
from stepping import ptrace_api
from stepping.tracee import Tracee
from stepping.tracee_engine import TraceeEngine

_spent: dict[str, int] = defaultdict(int)


def _clocked(part: str, owner: Any, name: str) -> None:
    """Add what *owner*'s function *name* takes to *part*; parts within others are taken off those by who reads it."""
    original = getattr(owner, name)

    def timed(*args: Any, **options: Any) -> Any:
        start = time.thread_time_ns()
        try:
            return original(*args, **options)
        finally:
            _spent[part] += time.thread_time_ns() - start

    setattr(owner, name, timed)


def main() -> None:
    """Run and print."""
    _clocked("take", RemoteTracer, "_take")
    _clocked("emulate", TraceeEngine, "load")
    _clocked("emulate", TraceeEngine, "execute")
    _clocked("emulate", TraceeEngine, "read")
    _clocked("store", ServedStore, "atomic")
    _clocked("store", ServedStore, "get")
    _clocked("store", ServedStore, "set")
    _clocked("registers", Tracee, "read_registers")
    _clocked("registers", Tracee, "write_registers")
    _clocked("signal", ptrace_api, "getsiginfo")
    _clocked("signal", ptrace_api, "getsigmask")
    _clocked("resume", Tracee, "resume")
    options = RunOptions(sys.argv[1], tuple(sys.argv[2:]), remote=Wanted(("main.counter",)))
    run_here(options, os.path.abspath(sys.argv[1]), None)
    print(json.dumps(_spent))


if __name__ == "__main__":
    main()
