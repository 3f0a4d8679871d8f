"""Threads that make the calls that may wait, so that the session's loop never does.

One thread per waiting call; threads that have nothing to do are kept for the next, up to a few. A call is
interrupted by a signal to its thread, again and again until it returns: the signal may come just before the
thread enters the kernel, and would be lost otherwise. Who knows a better way than the signal gives that.

Thread rules: everything but `_Worker._run` belongs to the session's thread. `fileno()` polls as readable when
`take_finished` has something to return.
"""

import collections
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable
from queue import SimpleQueue
from typing import Generic, TypeVar

from ptserver.shadow.execute import Executed

_Key = TypeVar("_Key", bound=Hashable)
Work = Callable[[], Executed]

#: How soon an interrupted call that has not returned is interrupted again.
RETRY_SECONDS = 0.01
#: How long an interrupted call is waited for at most, and how often it is looked at meanwhile.
_MOMENT_SECONDS, _LOOK_SECONDS = 0.05, 0.0002

_MAX_WORKERS = 2048
_MAX_IDLE = 32
_STACK_BYTES = 256 << 10
#: Interrupts a worker.
WORKER_SIGNAL = signal.SIGRTMIN + 5


class _NoThreadError(Exception):
    """There can be no more threads."""


class Workers(Generic[_Key]):
    """Runs work under keys, see the module's text. Works are calls of `execute`."""

    def __init__(self, keep: Callable[[int], int], interrupt: Callable[[int], bool] | None = None) -> None:
        """Keep: moves a descriptor out of a program's way, as `Descriptors.keep` does.

        interrupt: asks for the end of the call of a thread (its tid); returns False if a signal is needed for that.
        """
        self._interrupt = interrupt
        self._eventfd = keep(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._finished: collections.deque[tuple[_Key, Executed]] = collections.deque()
        self._idle: list[_Worker[_Key]] = []
        self._busy: dict[_Key, _Worker[_Key]] = {}
        self._interrupted: set[_Key] = set()
        threading.stack_size(_STACK_BYTES)
        signal.signal(
            WORKER_SIGNAL, _do_nothing
        )  # installed without SA_RESTART: a call that waits returns EINTR

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when work is done."""
        return self._eventfd

    def __len__(self) -> int:
        return len(self._busy)

    def __contains__(self, key: _Key) -> bool:
        return key in self._busy

    @property
    def is_interrupting(self) -> bool:
        """Whether `interrupt_again` is to be called within `RETRY_SECONDS`."""
        return bool(self._interrupted)

    def running_tids(self) -> list[int]:
        """Return the threads whose work `take_finished` does not have yet."""
        return [worker.tid for worker in self._busy.values() if worker.is_working]

    def start(self, key: _Key, work: Work) -> None:
        """Let a thread do *work*; its result comes from `take_finished` under *key*."""
        try:
            worker = self._idle.pop() if self._idle else self._new_worker()
        except _NoThreadError:
            self._finished.append((key, (0, errno.ENOMEM, {})))
            os.eventfd_write(self._eventfd, 1)
            return
        self._busy[key] = worker
        worker.start(key, work)

    def _new_worker(self) -> "_Worker[_Key]":
        if len(self._busy) >= _MAX_WORKERS:
            raise _NoThreadError
        try:
            return _Worker(self._finished, self._eventfd, self._interrupt)
        except RuntimeError as error:  # the system lets us have no more
            raise _NoThreadError from error

    def interrupt(self, key: _Key) -> None:
        """Let the work under *key* return soon, with what it did or with EINTR."""
        if key in self._busy:
            self._interrupted.add(key)
            self._busy[key].signal()

    def await_end(self, key: _Key) -> None:
        """Wait until the work under *key*, which was interrupted, has returned; a moment at most."""
        until = time.monotonic() + _MOMENT_SECONDS
        worker = self._busy[key]
        while worker.is_working and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            worker.signal()

    def interrupt_again(self) -> None:
        """Interrupt what still has not returned."""
        for key in self._interrupted:
            self._busy[key].signal()

    def interrupt_all(self) -> None:
        """Interrupt every work."""
        self._interrupted |= self._busy.keys()
        self.interrupt_again()

    def take_finished(self) -> list[tuple[_Key, Executed]]:
        """Return what has been done since the last time."""
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return []
        done = []
        while self._finished:
            key, result = self._finished.popleft()
            self._interrupted.discard(key)
            worker = self._busy.pop(key, None)
            if worker is not None:
                if len(self._idle) < _MAX_IDLE:
                    self._idle.append(worker)
                else:
                    worker.works.put(None)
            done.append((key, result))
        return done

    def start_anew(self) -> None:
        """Go on in a process that was forked, which has none of the threads."""
        self._idle.clear()
        self._busy.clear()
        self._interrupted.clear()
        self._finished.clear()

    def retire_idle(self) -> None:
        """Let the threads that are idle end: new ones have this thread's credentials."""
        while self._idle:
            self._idle.pop().works.put(None)


class _Worker(Generic[_Key]):
    """A thread that does one work after another."""

    __slots__ = ("_done", "_eventfd", "_finished", "_interrupt", "_started", "_thread", "works")

    def __init__(
        self,
        finished: collections.deque[tuple[_Key, Executed]],
        eventfd: int,
        interrupt: Callable[[int], bool] | None,
    ) -> None:
        self._interrupt = interrupt
        self.works: SimpleQueue[tuple[_Key, Work] | None] = SimpleQueue()
        self._finished = finished
        self._eventfd = eventfd
        self._started = 0  # by the session's thread alone, and
        self._done = (
            0  # by this one: the next work may be there before this thread has seen to the last one's end
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def tid(self) -> int:
        return self._thread.native_id or 0  # it has one since it was started

    @property
    def is_working(self) -> bool:
        """Whether there is work whose result, or the word of it, `Workers.take_finished` might not find yet."""
        return self._done != self._started

    def start(self, key: _Key, work: Work) -> None:
        self._started += 1
        self.works.put((key, work))

    def signal(self) -> None:
        ident, tid = self._thread.ident, self._thread.native_id
        if ident is None or tid is None or not self._thread.is_alive():
            return
        if self._interrupt is None or not self._interrupt(tid):
            signal.pthread_kill(ident, WORKER_SIGNAL)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, set(signal.valid_signals()) - {WORKER_SIGNAL})
        while (item := self.works.get()) is not None:
            key, work = item
            self._finished.append((key, work()))
            os.eventfd_write(self._eventfd, 1)
            self._done += 1


def _do_nothing(_signo: int, _frame: object) -> None:
    pass
