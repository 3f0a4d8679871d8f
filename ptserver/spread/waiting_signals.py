"""Signals to a spread program as a whole, while all its threads sleep.

The kernel gives such a signal to any thread that may take it, and a stopped thread may not. But a thread that sleeps
for a futex is stopped at host 0, since the home keeps its sleep. So host 0 looks now and then whether signals wait,
and one that sleeps is woken to take them, as the kernel would have done.
"""

from collections.abc import Callable

from ptserver.spread.requests import Later
from stepping.errors import TraceeGoneError
from stepping.tracee import read_pending_of_process

#: How often to look; less often while signals stay, since no thread takes them.
_LOOK_SECONDS, _LONGEST_SECONDS = 0.05, 1.0


class WaitingSignals:
    """Looks at process *pid*, and calls *tell* while signals wait for it and *all_stopped* says that nobody runs."""

    def __init__(
        self, pid: int, all_stopped: Callable[[], bool], tell: Callable[[], None], later: Later
    ) -> None:
        self._pid = pid
        self._all_stopped = all_stopped
        self._tell = tell
        self._later = later
        self._seconds = _LOOK_SECONDS
        later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        try:
            waits = self._all_stopped() and read_pending_of_process(self._pid) != 0
        except TraceeGoneError:
            return
        if waits:
            self._tell()
        self._seconds = min(2 * self._seconds, _LONGEST_SECONDS) if waits else _LOOK_SECONDS
        self._later(self._seconds, self._look)
