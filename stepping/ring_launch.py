"""Starts a Go program with the ring in it from its first instruction on, and untraced."""

import contextlib
import os
import signal
from collections.abc import Iterable

from stepping.errors import TraceeGoneError
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_THREADS
from stepping.ring import Ring
from stepping.ring_inject import DEFAULT_BUFFER_BYTES, DEFAULT_SLOTS
from stepping.syscalls.model import Syscall
from stepping.tracee import Resume
from stepping.tracee_group import TraceeGroup
from stepping.tracee_launch import PendingExec, fork_tracee
from stepping.wait_status import Event, WaitKind


def launch_with_ring(
    program: Program,
    rows: Iterable[Syscall],
    *,
    slots: int = DEFAULT_SLOTS,
    buffer_bytes: int = DEFAULT_BUFFER_BYTES,
) -> Ring:
    """Start *program*, a child of this process, with a ring for the calls *rows*; nobody traces it then.

    The caller waits for the child, `ring.pid`, as for any other.

    Raises:
        ExecError: the kernel refuses to execute the file.
        NoRingError: it is no program for the ring; it has not run.
        PtraceRefusedError: the kernel does not allow to trace it.
    """
    pending = fork_tracee(program, FOLLOW_THREADS)
    pid = pending.tracee.tid
    group = TraceeGroup(pid)
    group.add(pending.tracee)
    try:
        _run_to_exec(group, pending)
        return Ring.attach(pid, rows, slots=slots, buffer_bytes=buffer_bytes, group=group)
    except BaseException:
        if group.exit is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        raise


def _run_to_exec(group: TraceeGroup, pending: PendingExec) -> None:
    """Run the child until it has returned from its exec: there it can be made to call the kernel."""
    executed = False
    while True:
        report = group.wait()
        if group.exit is not None or report is None:
            pending.raise_failure()
        tracee, status = report
        if status.kind is WaitKind.SYSCALL and executed:
            pending.close()
            return
        if status.event is Event.EXEC:
            executed = True
        if not status.is_stop:
            raise TraceeGoneError(tracee.tid)
        tracee.resume(Resume.SYSCALL if executed else Resume.FREE)
