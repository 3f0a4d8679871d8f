"""How soon who answers a stopped thread gets a processor.

Whenever a thread of a spread program waits for memory, or one touches a remote variable, an agent, a host or a
session has some microseconds of work to do, and everything waits until it has a processor for that. On a busy machine
(and two threads that compute are enough for two processors) the scheduler lets it wait for milliseconds. So they have
a real-time priority, the lowest. What they start has not. Who waits awake does so for moments only, and the kernel
leaves a part of each second to what has no such priority (/proc/sys/kernel/sched_rt_runtime_us).

Source: sched(7).
"""

import contextlib
import os


def be_urgent() -> None:
    """Have this thread run before all that has no real-time priority.

    Nothing is changed where that is not allowed, or if the thread has such a priority already.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def be_ordinary() -> None:
    """Undo `be_urgent` in this thread, if it had an effect."""
    if os.sched_getscheduler(0) == os.SCHED_RR | os.SCHED_RESET_ON_FORK:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
