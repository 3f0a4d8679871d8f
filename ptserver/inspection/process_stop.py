"""Finds a process to look into, and stops it for a moment, in such a way that it always goes on.

Signals to this process wait during a stop. Should it be killed all the same, the kernel lets the other one go on.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ptserver.inspection.inspector import InspectError
from ptserver.inspection.proc_status import find_inside, read_status
from stepping.errors import PtraceRefusedError
from stepping.first_in_line import first_in_line
from stepping.tracee_group import TraceeGroup

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


class Found(NamedTuple):
    """A process that may be looked into. pid: the process, also if a thread's number was given; name: its command."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"


@dataclass(slots=True)
class Stop:
    """A stop of all threads of *group*. seconds: how long it was, once it is over."""

    group: TraceeGroup
    seconds: float = 0.0


def find_process(pid: int) -> Found:
    """Return process *pid*, or that of thread *pid*.

    Raises:
        InspectError: there is none, it has exited, or it is a kernel thread.
    """
    fields = read_status(pid)
    if not fields:
        inside = find_inside(pid)
        hint = f"; in a container there is, which is process {inside} here" if inside else ""
        raise InspectError(f"there is no process {pid}{hint}")
    found = Found(int(fields.get("Tgid", pid)), fields.get("Name", "?"))
    if fields.get("State", "").startswith(("Z", "X")):
        parent = int(fields.get("PPid", 0))
        name = read_status(parent).get("Name", "?")
        raise InspectError(
            f"{found} has exited, and waits for its parent, process {parent} ({name}), to notice"
        )
    if fields.get("Kthread") == "1" or "VmSize" not in fields:
        raise InspectError(f"{found} is a kernel thread and runs no program")
    return found


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
