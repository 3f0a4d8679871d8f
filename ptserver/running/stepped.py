"""`ptserver run --engine=step`: a program natively, one instruction at a time."""

import os
import signal

from ptserver.hosts.endings import end_as
from ptserver.running.here import environment
from ptserver.running.run import RunOptions
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_ALL
from stepping.stepped_run import Observer, SteppedRun
from stepping.tracee_launch import launch_stopped


def run_stepped(options: RunOptions, path: str, observe: Observer | None = None) -> int:
    """Run the program by single steps; return the exit status for this process. observe: sees every instruction.

    Tracer and program take turns, so both are kept on one processor, where changing over is quickest.

    Raises:
        SteppingError: it cannot be started or traced.
    """
    # A user's ^C is the program's: this handler is not inherited by it, as ignoring the signal would be.
    signal.signal(signal.SIGINT, lambda *_: None)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    group = launch_stopped(Program(path, options.argv, environment()), FOLLOW_ALL)
    return end_as(SteppedRun(group, observe).run().raw_end)
