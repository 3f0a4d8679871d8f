"""Starts a Go program with the ring in it from its first instruction on, and untraced."""

import contextlib
import os
import signal
from collections.abc import Iterable

from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_THREADS
from stepping.ring import Ring
from stepping.ring_inject import DEFAULT_BUFFER_BYTES, DEFAULT_SLOTS
from stepping.ring_probes import Probes
from stepping.ring_site import find_site
from stepping.syscalls.model import Syscall
from stepping.tracee_launch import launch_stopped


def launch_with_ring(
    program: Program,
    rows: Iterable[Syscall],
    *,
    slots: int = DEFAULT_SLOTS,
    buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    probes: Probes | None = None,
    with_c_code: bool = False,
) -> Ring:
    """Start *program*, a child of this process, with a ring for the calls *rows* and *probes*; nobody traces it then.

    The caller waits for the child, `ring.pid`, as for any other. with_c_code: as `find_site`.

    Raises:
        ExecError: the kernel refuses to execute the file.
        NoRingError: it is no program for the ring; it has not run.
        PtraceRefusedError: the kernel does not allow to trace it.
    """
    group = launch_stopped(program, FOLLOW_THREADS)
    pid = group.pid
    try:
        site = find_site(pid, with_c_code=with_c_code)
        return Ring.attach(
            pid, rows, slots=slots, buffer_bytes=buffer_bytes, site=site, group=group, probes=probes
        )
    except BaseException:
        if group.exit is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        raise
