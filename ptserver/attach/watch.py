"""The loop of `ptserver attach`: drives a source, and shows its snapshots on a screen or writes them as lines.

Signals come by a descriptor: SIGINT, SIGTERM, SIGHUP and SIGQUIT end it like the key `q`, and the program is let go
before anything else is done. Thread rules: the main thread, the process's only one.
"""

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Protocol

from ptserver.attach.snapshot import Snapshot
from ptserver.hosts.signals import HostSignals

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
#: How long the loop waits at most; the ring is read that often.
_STEP_MS = 10
_FIRST_SECONDS = 0.3

Show = Callable[[Snapshot], None]


class Source(Protocol):
    """Where snapshots come from. After `snapshot` has said that it ended, nothing but `close` is called."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is news, or the end."""

    def poll(self) -> bool:
        """Do what there is to do; return whether there is more to do at once."""

    def ended(self) -> str:
        """Return why there will be no more, "" while there will."""

    @property
    def is_ready(self) -> bool:
        """Whether a snapshot would be complete."""

    def snapshot(self, ended: str = "") -> Snapshot:
        """Return what happened since the last one. ended: why it is the last."""

    def close(self) -> None:
        """Let go of the program."""


class Watch:
    """The loop. interval: seconds between snapshots; stdin: whether keys are read."""

    def __init__(self, source: Source, interval: float) -> None:
        self._source = source
        self._interval = interval
        self._signals = HostSignals()
        self._poll = select.poll()
        self._poll.register(self._signals.fileno(), select.POLLIN)
        self._poll.register(source.fileno(), select.POLLIN)

    def close(self) -> None:
        """Let go of the program, and give signals their meaning back."""
        self._source.close()
        # The terminal may have said that it is gone before the kernel sends the signal that says so.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._signals.close()

    def write(self, write: Show, *, once: bool) -> None:
        """Hand on snapshots until the program ends or a signal comes; *once*: only one."""
        source = self._source
        due = time.monotonic() + self._interval
        while True:
            busy = source.poll()
            ended = source.ended()
            if ended or (time.monotonic() >= due and source.is_ready):
                write(source.snapshot(ended))
                due = time.monotonic() + self._interval
                if ended or once:
                    return
            if self._wait(busy) & _STOP:
                return

    def show(self) -> None:
        """Show snapshots on the terminal until the user has had enough; the last one stays until a key comes."""
        from ptserver.attach.screen import GONE, Screen
        from ptserver.attach.view import View

        source, view = self._source, View()
        due = time.monotonic() + min(self._interval, _FIRST_SECONDS)
        ended = ""
        with Screen() as screen:
            self._poll.register(screen.fileno(), select.POLLIN)
            screen.draw(view.render(*screen.size))
            while not (view.quits or screen.gone):
                busy = source.poll() if not ended else False
                changed = False
                if not ended:
                    ended = source.ended()
                    if ended or (time.monotonic() >= due and source.is_ready):
                        view.show(source.snapshot(ended))
                        due = time.monotonic() + self._interval
                        changed = True
                    if ended:
                        self._poll.unregister(source.fileno())
                events = self._wait(busy)
                if events & _STOP:
                    return
                if events & _KEYS:
                    for key in screen.read_keys():
                        if key != GONE:
                            view.press(key)
                if changed or events:
                    screen.draw(view.render(*screen.size))

    def _wait(self, busy: bool) -> int:
        """Wait for a moment, not at all if *busy*; return what came, of `_STOP`, `_KEYS` and `_RESIZED`."""
        found = 0
        for fd, _ in self._poll.poll(0 if busy else _STEP_MS):
            if fd == self._signals.fileno():
                for signo, _ in self._signals.receive():
                    found |= _STOP if signo in _ENDING else _RESIZED if signo == signal.SIGWINCH else 0
            elif fd != self._source.fileno():
                found |= _KEYS
        return found


_STOP, _KEYS, _RESIZED = 1, 2, 4


def line_writer(fd: int, encode: Callable[[Snapshot], bytes]) -> Show:
    """Return what writes snapshots as lines to *fd*. It raises BrokenPipeError when the reader has seen enough."""

    def write(snapshot: Snapshot) -> None:
        data = memoryview(encode(snapshot))
        while data:
            data = data[os.write(fd, data) :]

    return write
