"""How programs end, and how this process ends as one of them did."""

import contextlib
import os
import signal


def exit_of(wait_status: int) -> tuple[int | None, int]:
    """Return (exit status, or None if a signal killed it; that signal, or 0) of a *wait_status*."""
    code = os.waitstatus_to_exitcode(wait_status)
    return (code, 0) if code >= 0 else (None, -code)


def end_as(wait_status: int) -> int:
    """Return the exit status that *wait_status* holds; do not return if a signal killed the program."""
    status, signo = exit_of(wait_status)
    if status is None:
        die_by(signo)
        return 128 + signo  # not reached, unless the signal is one that cannot kill this process
    return status


def die_by(signo: int) -> None:
    """End this process as *signo* ended the program, without a second core file."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler
        signal.signal(signo, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signo})
    os.kill(os.getpid(), signo)
