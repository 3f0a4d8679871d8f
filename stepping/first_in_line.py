"""Keeps short what others have to wait for: the time for which a program is stopped.

Thread rules: concerns the thread that enters it (its priority), and the collector of the whole process.
Source: setpriority(2), where a process is a thread to Linux.
"""

import contextlib
import gc
import os
from collections.abc import Iterator

_URGENT_NICE = -15


@contextlib.contextmanager
def first_in_line() -> Iterator[None]:
    """Let this thread go before others on a busy machine, where that is allowed, and collect no garbage meanwhile."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, min(nice, _URGENT_NICE))
        yield
    finally:
        if os.getpriority(os.PRIO_PROCESS, 0) != nice:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        if collecting:
            gc.enable()
