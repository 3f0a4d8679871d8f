"""Idle processors that stay awake while many things are waited for.

A processor with nothing to do sleeps. To wake it takes some microseconds, in a virtual machine some ten, and whoever
wakes it waits for a part of that: the home of a spread program when it lets a thread go on, the kernel when a thread
has something to report. What spread programs do most is that. So while it happens hundreds of times a second, the
kernel is asked to let no processor of this machine sleep; that holds as long as a descriptor is open, so it ends with
this process in any case. It takes power, and what a sleeping processor leaves to others of the same core or machine.

Source: Documentation/power/pm_qos_interface.rst (cpu_dma_latency); drivers/cpuidle/governors.
"""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

_DEVICE = Path("/dev/cpu_dma_latency")
#: After so many events in so many seconds they stay awake, until there are fewer in each of that many.
_EVENTS, _SECONDS = 200, 0.5
_NO_LATENCY = struct.pack("=i", 0)


class AwakeProcessors:
    """Keeps them awake while `note` is called often. *later* calls a function after so many seconds.

    Nothing is changed where *device* cannot be had.
    """

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], None],
        device: Path = _DEVICE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._later = later
        self._device = device
        self._now = now
        self._may = True
        self._fd: int | None = None
        self._events = 0
        self._since = 0.0

    @property
    def are_kept(self) -> bool:
        """Whether they are kept awake."""
        return self._fd is not None

    def note(self) -> None:
        """Note that something was waited for."""
        self._events += 1
        if self._events == _EVENTS and self._fd is None:
            now = self._now()
            if now - self._since < _SECONDS:
                self._keep()
            else:
                self._events, self._since = 0, now

    def close(self) -> None:
        """Let them sleep."""
        self._may = False
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _keep(self) -> None:
        if not self._may:
            return
        try:
            self._fd = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._fd, _NO_LATENCY)
        except OSError:
            self.close()
            return
        self._look_later()

    def _look_later(self) -> None:
        self._events = 0
        self._later(_SECONDS, self._look)

    def _look(self) -> None:
        if self._fd is None:
            return
        if self._events >= _EVENTS:
            self._look_later()
            return
        os.close(self._fd)
        self._fd, self._events, self._since = None, 0, self._now()
