"""The tracer thread: the one OS thread of a session that makes its ptrace requests.

The kernel ties a tracee to the thread that seized it; requests from another thread fail as if it were dead.
Whoever has no thread of its own for tracing (an async program, a server) hands functions to this one, which runs
them one after another.

A function may block in `wait_or_kick`; `kick` makes it come back. For that the thread is sent a signal whose
handler does nothing, over and over until the wait is left, so that no kick is lost between the look at the
flag and the wait itself.

`submit`, `call`, `kick` and `stop` may be called on any thread, `wait_or_kick` on the tracer thread only.

Source: ptrace(2); signal-safety(7).
"""

import ctypes
import os
import queue
import signal
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import ParamSpec, TypeVar

from stepping import ptrace_api
from stepping.errors import SteppingError

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Interrupts waits of the tracer thread. Nobody else uses the last real-time signal.
KICK_SIGNAL = signal.SIGRTMAX

_KICK_INTERVAL_S = 0.001
_SIGACTION = struct.Struct("@P128siP")


class TracerThread:
    """Runs functions on one OS thread of its own; a context manager that ends with the thread."""

    def __init__(self, name: str = "tracer") -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._kicked = threading.Event()
        self._left = threading.Event()
        self._waiting = False
        _install_handler()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> "TracerThread":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def submit(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Run *function* on the tracer thread, after what was submitted before; return its future result."""
        future: Future[_T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the caller's
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put(job)
        return future

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run *function* on the tracer thread and return what it returns, or raise what it raises."""
        if threading.current_thread() is self._thread:
            return function(*args, **kwargs)
        return self.submit(function, *args, **kwargs).result()

    def kick(self) -> None:
        """Make the current `wait_or_kick`, or else the next one, return None."""
        self._kicked.set()
        ident = self._thread.ident
        while self._waiting and ident is not None and self._thread.is_alive():
            signal.pthread_kill(ident, KICK_SIGNAL)
            self._left.wait(_KICK_INTERVAL_S)

    def wait_or_kick(self) -> tuple[int, int] | None:
        """Wait for any tracee of the tracer thread: its id and raw wait status; None after a `kick`.

        Raises:
            TraceeGoneError: there are no tracees.
        """
        self._left.clear()
        self._waiting = True
        try:
            # The kicker sets its flag before it looks at ours, so one of the two sees the other's.
            while not self._kicked.is_set():
                report = ptrace_api.wait_any_interruptibly()
                if report is not None:
                    return report
            self._kicked.clear()
            return None
        finally:
            self._waiting = False
            self._left.set()

    def stop(self) -> None:
        """End the thread after what was submitted. Its tracees, if any are left, are let go by the kernel."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _install_handler() -> None:
    """Let `KICK_SIGNAL` interrupt system calls and do nothing else.

    A handler of Python's own could be installed by the main thread only, and would make that one run it. Any C
    function that minds neither its argument nor its thread will do.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    action = _SIGACTION.pack(ctypes.cast(libc.getppid, ctypes.c_void_p).value, b"", 0, 0)
    if libc.sigaction(int(KICK_SIGNAL), action, None) != 0:
        raise SteppingError(f"cannot install a signal handler: {os.strerror(ctypes.get_errno())}")
