"""`python -m bench.remote_split PROGRAM MODE N [ADDRESS]`: where the time of a served access goes, as JSON.

Runs a program with remote `main.counter` in this process's host, with clocks around what the host does for each
access but the first two, which also find out what there is to know. Nanoseconds by part, in all, and the number of
accesses that were counted. What the program itself sees, minus all of that, is the trap: the fault, the switches to
the host and back, and its waking. With the address of a server, the store is the message there, the server's work and
the answer.
"""

import json
import sys
import time
from collections import defaultdict
from typing import Any

from ptserver.remote_memory.options import Wanted
from ptserver.remote_memory.store import RemoteStore
from ptserver.remote_memory.stores import ServedStore
from ptserver.remote_memory.tracer import RemoteTracer
from ptserver.running.run import RunOptions, run
from stepping import ptrace_api
from stepping.ptrace_api import StoppedThreads
from stepping.tracee_memory import TraceeMemory

_NOT_COUNTED = 2
_spent: dict[str, int] = defaultdict(int)


def _clocked(part: str, owner: Any, name: str) -> None:
    """Add what *owner*'s function *name* takes to *part*; parts within others are taken off those by who reads it."""
    original = getattr(owner, name)

    def timed(*args: Any, **options: Any) -> Any:
        start = time.perf_counter_ns()
        try:
            return original(*args, **options)
        finally:
            _spent[part] += time.perf_counter_ns() - start

    setattr(owner, name, timed)


def _count_accesses() -> None:
    served = 0
    original = RemoteTracer.take_quickly

    def take(tracer: RemoteTracer, tid: int, raw: int) -> bool:
        nonlocal served
        start = time.perf_counter_ns()
        is_served = original(tracer, tid, raw)
        if is_served:
            served += 1
            _spent["take"] += time.perf_counter_ns() - start
            _spent["accesses"] += 1
            if served == _NOT_COUNTED:
                _spent.clear()
        return is_served

    RemoteTracer.take_quickly = take  # type: ignore[method-assign]


def main() -> None:
    """Run and print."""
    program, mode, count, *address = sys.argv[1:]
    _count_accesses()
    for store in (ServedStore, RemoteStore):
        for name in ("atomic", "get", "set"):
            _clocked("store", store, name)
    _clocked("code", TraceeMemory, "read")
    _clocked("registers", StoppedThreads, "read_general")
    _clocked("registers", StoppedThreads, "write_general")
    _clocked("signal", StoppedThreads, "read_fault")
    _clocked("resume", ptrace_api, "cont")
    wanted = Wanted(("main.counter",))
    run(RunOptions(program, (mode, count), *address, remote=wanted))
    print(json.dumps(_spent))


if __name__ == "__main__":
    main()
