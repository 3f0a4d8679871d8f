"""The children of a spread program. They are nobody's business, and run free: they may have tracers of their own, and
may outlive the program.

But they have inherited the filter which lets the tracer of the program decide on some calls. So each gets a listener
of ours instead (`stepping/free_child.py`), and all that it has there to ask is let proceed. One that cannot have that
stays a tracee, and is resumed whenever it stops.

Thread rules: the thread that traces.
"""

import contextlib
import os
from collections.abc import Callable, Iterable

from ptserver.net.poll_loop import PollLoop
from stepping.errors import NotificationGoneError
from stepping.free_child import free_child
from stepping.listener import Listener
from stepping.seccomp import Rule, Verdict, assemble
from stepping.syscalls import Sysno
from stepping.tracee import Tracee
from stepping.wait_status import Event


class Children:
    """Lets all children go. loop: where their listeners are served; numbers: of the calls that are traced."""

    def __init__(self, loop: PollLoop, numbers: Iterable[Sysno]) -> None:
        self._loop = loop
        self._filter = assemble([Rule(number, Verdict.NOTIFY) for number in numbers], "amd64")
        self._listeners: dict[int, Listener] = {}  # by descriptor
        self._tracees: dict[int, Tracee] = {}  # those that have not gone

    def has(self, tid: int) -> bool:
        """Whether a child that is traced has a thread *tid*."""
        return tid in self._tracees

    def take(self, tid: int, pid: int, raw: int, begin: Callable[[Tracee], object]) -> None:
        """Take what the kernel reports of thread *tid* of a child. begin: is given it before its first instruction.

        Raises:
            TraceeGoneError: it died.
        """
        is_new = tid not in self._tracees
        tracee = self._tracees.setdefault(tid, Tracee(tid, pid))
        status = tracee.note(raw)
        if not status.is_stop:
            del self._tracees[tid]
            return
        if is_new and status.event is Event.STOP:
            begin(tracee)
            if tid == pid and self._let_go(tracee):
                return
        tracee.resume()

    def serve_the_rest(self) -> None:
        """Serve what outlives the program, in a copy of this process that has nothing else; return at once."""
        if not self._listeners or os.fork():
            return
        try:
            _keep_only(sorted(self._listeners))
            self._loop = PollLoop()
            for listener in self._listeners.values():
                self._watch(listener)
            while self._listeners:
                self._loop.round(lambda: None)
        finally:
            os._exit(0)

    def _let_go(self, tracee: Tracee) -> bool:
        listener = free_child(tracee, self._filter)
        if listener is None:
            return False
        del self._tracees[tracee.tid]
        self._listeners[listener.fileno()] = listener
        self._watch(listener)
        return True

    def _watch(self, listener: Listener) -> None:
        self._loop.watch(listener.fileno(), lambda: self._serve(listener))

    def _serve(self, listener: Listener) -> None:
        notification = listener.receive()
        if notification is not None:
            with contextlib.suppress(NotificationGoneError):
                listener.proceed(notification.id)
        elif not listener.is_used():
            self._loop.unwatch(listener.fileno())
            del self._listeners[listener.fileno()]
            listener.close()


def _keep_only(kept: list[int]) -> None:
    """Have no descriptors but *kept*, which is sorted, and no folder: who waits for their end would wait for us."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    start = 3
    for fd in kept:
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
