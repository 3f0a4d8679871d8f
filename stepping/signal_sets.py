"""How the threads of a running process treat signals, as the kernel tells it. Source: proc_pid_status(5)."""

import os
from typing import NamedTuple

from stepping.errors import TraceeGoneError


class SignalSets(NamedTuple):
    """How a thread treats signals; bit *n* stands for signal *n* + 1. ignored, caught: of its whole process.

    pending: those that wait for it, or for any thread of its process.
    """

    blocked: int
    ignored: int
    caught: int
    pending: int


def read_signal_sets(pid: int, tid: int) -> SignalSets:
    """Return how thread *tid* of process *pid* treats signals.

    Raises:
        TraceeGoneError: there is no such thread.
    """
    try:
        with open(f"/proc/{pid}/task/{tid}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if line.startswith((b"Sig", b"ShdPnd")))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(tid) from error
    blocked, ignored, caught, own, shared = (
        int(fields[name], 16) for name in (b"SigBlk", b"SigIgn", b"SigCgt", b"SigPnd", b"ShdPnd")
    )
    return SignalSets(blocked, ignored, caught, own | shared)


def has_one_thread(pid: int) -> bool:
    """Whether process *pid* has a single thread; false if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) == 1
    except OSError:
        return False
