"""`ptserver run --engine=step`: a program natively, one instruction at a time."""

import os
import signal
import threading
from collections.abc import Collection

from ptserver.hosts.endings import end_as
from ptserver.hosts.signals import is_passed_on, send_signal
from ptserver.running.here import environment
from ptserver.running.run import RunOptions
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_ALL
from stepping.stepped_run import Observer, SteppedRun
from stepping.tracee_launch import launch_stopped


def run_stepped(options: RunOptions, path: str, observe: Observer | None = None) -> int:
    """Run the program by single steps; return the exit status for this process. observe: sees every instruction.

    Tracer and program take turns, so both are kept on one processor, where changing over is quickest; on any one, so
    that several such runs do not meet there.

    Raises:
        SteppingError: it cannot be started or traced.
    """
    passed_on = [signo for signo in signal.Signals if is_passed_on(signo)]
    original_mask = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[os.getpid() % len(allowed)]})
    group = launch_stopped(Program(path, options.argv, environment(), blocked=original_mask), FOLLOW_ALL)
    threading.Thread(target=_pass_on, args=(passed_on, group.pid), daemon=True).start()
    return end_as(SteppedRun(group, observe).run().raw_end)


def _pass_on(signals: Collection[signal.Signals], pid: int) -> None:
    """Give the program the signals that this process is sent; what a terminal's keys send, it gets itself."""
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_code <= 0:  # another process sent it
            send_signal(pid, received.si_signo)
