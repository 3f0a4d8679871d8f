"""Stops a process for a moment, to look into it, in such a way that it always goes on.

Signals to this process wait during a stop. Should it be killed all the same, the kernel lets the other one go on.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ptserver.inspection.proc_status import read_status
from stepping.errors import PtraceRefusedError
from stepping.first_in_line import first_in_line
from stepping.tracee_group import TraceeGroup

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


@dataclass(slots=True)
class Stop:
    """A stop of all threads of *group*. seconds: how long it was, once it is over."""

    group: TraceeGroup
    seconds: float = 0.0


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[Stop]:
    """Stop all threads of process *pid* inside, and let them go on after it, whatever happens.

    Raises:
        PtraceRefusedError: the kernel does not allow it.
        TraceeGoneError: it has exited.
        SteppingError: a thread does not stop.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        stop = Stop(TraceeGroup.attach(pid))
        with first_in_line():
            started = time.monotonic()
            try:
                stop.group.stop_all()
                yield stop
            finally:
                stop.group.detach_all()
                stop.seconds = time.monotonic() - started
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def explain_no_stop(pid: int, error: PtraceRefusedError) -> PtraceRefusedError:
    """Return *error* with the way out, if there is one: a process that another one traces can be read nonetheless."""
    if read_status(pid).get("TracerPid", "0") == "0":
        return error
    return PtraceRefusedError(pid, f"{error.missing}, or read it as it runs: --no-stop")
