"""How soon the home and the agents of a spread program get a processor.

Whenever a thread of the program waits for memory, an agent has some microseconds of work to do, and everything waits
until it has a processor for that. On a busy machine (and two threads that compute are enough for two processors) the
scheduler lets it wait for milliseconds. So agents have a real-time priority, the lowest. What they start has not.
"""

import contextlib
import os


def be_urgent() -> None:
    """Have this thread run before all that has no real-time priority; change nothing where that is not allowed."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
