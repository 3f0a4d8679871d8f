"""Calls of an emulated program that may sleep, where poll(2) cannot tell when they would not: locks, children, FIFOs.

Each is made on a thread of its own. A signal for the program's thread that waits interrupts the call as the kernel
would: what it has done by then counts, and otherwise it is made again or fails, as the handler's SA_RESTART says.

Where a run is to be repeatable, the program goes on only when such calls, and its children, are at rest (see
`ptserver.emulated.stillness`), so that it does not depend on this machine how far they have come by then. Children
that will wake by themselves get a while for that before the clock jumps. Where a server at an address makes the
calls, nobody here knows who is at rest; they get a moment.

Thread rules: the machine's thread alone, which must be the process's main thread.
"""

import errno
import itertools
import os
import select
import time
from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING

from ptserver.shadow.execute import Executed
from ptserver.shadow.workers import RETRY_SECONDS, Workers
from stepping.emulation.threads import Outcome, Scheduler, Thread, Wait, keep_descriptor

if TYPE_CHECKING:
    from ptserver.emulated.stillness import Stillness

#: How long a call of a server at an address may take that does not wait, and how often that is looked at.
_SETTLE_SECONDS, _LOOK_SECONDS = 0.03, 0.001
#: How long children that sleep may take to do something that the program is to see at once.
_CHILD_SECONDS = 1.0
_RETRY_NS = int(RETRY_SECONDS * 1_000_000_000)


class Background:
    """The calls that are under way. Nothing is set up before the first.

    interrupt: as of `Workers`. here: whether this machine makes the calls.
    """

    def __init__(self, interrupt: Callable[[int], bool] | None = None, *, here: bool = True) -> None:
        self._interrupt_call = interrupt
        self._here = here
        self._workers: Workers[int] | None = None
        self._scheduler: Scheduler | None = None
        self._keys = itertools.count()
        self._waiting: dict[int, tuple[Thread, Wait, Callable[[Executed], None]]] = {}
        self._retries = False
        self._may_linger = False
        self._stillness: Stillness | None = None
        self._is_taking = False

    @property
    def settles(self) -> bool:
        """Whether the program waits for the rest of calls and children, so that the run is repeatable."""
        return self._stillness is not None

    def begin_to_settle(self) -> None:
        """Be as `settles` says from now on. Nothing is imported later, which takes descriptors for a moment."""
        from ptserver.emulated.stillness import Stillness

        self._stillness = Stillness()

    def start(
        self,
        scheduler: Scheduler,
        thread: Thread,
        call: Callable[[], Executed],
        finish: Callable[[Wait, Executed], None],
        *,
        restarts: bool,
    ) -> Outcome:
        """Let *thread* wait until *call*, which a thread of this process makes, has returned; then call *finish*."""
        if self._workers is None:
            self._workers = Workers(keep_descriptor, self._interrupt_call)
            self._scheduler = scheduler
            scheduler.add_source(self._workers.fileno(), self._take)
        key = next(self._keys)
        wait = Wait(restarts=restarts, interrupt=lambda: self._interrupt(key))
        self._waiting[key] = (thread, wait, lambda done: finish(wait, done))
        self._workers.start(key, call)
        outcome = scheduler.block(thread, wait)
        self.settle()
        return outcome

    def settle(self) -> None:
        """If `settles`: let calls and children go as far as they will; what has ended returns in its order."""
        if self._stillness is None or self._is_taking:
            return
        if self._here:
            if self._waiting or self._stillness:
                self._stillness.wait(self._running)
        elif self._waiting:
            deadline = time.monotonic() + _SETTLE_SECONDS
            while self._running() and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(left, _LOOK_SECONDS))
        if self._waiting:
            self._take()

    def _running(self) -> list[int]:
        return self._workers.running_tids() if self._workers is not None else []

    def child_born(self, pid: int) -> None:
        """If `settles`: let the child *pid* come to its end or to rest."""
        if self._stillness is not None and self._here:
            self._stillness.born(pid)
            self.settle()

    def acted(self) -> None:
        """Take note of a call that may let a child go on."""
        self._may_linger = True

    def linger(self, poll: "select.poll") -> bool:
        """Give children that may wake by themselves a moment before the program goes on, once after `acted`.

        Return whether they have done something, by what *poll* tells.
        """
        may_linger, self._may_linger = self._may_linger, False
        if not may_linger or not self._stillness:
            return False
        deadline = time.monotonic() + _CHILD_SECONDS
        while self._stillness.may_act_alone() and time.monotonic() < deadline:
            if poll.poll(0):
                self.settle()
                return True
            self._stillness.pause()
        return bool(poll.poll(0))

    def identity_changed(self) -> None:
        """Take note that threads to come have other rights than those that there are."""
        if self._workers is not None:
            self._workers.retire_idle()

    def after_fork(self) -> None:
        """Forget all calls: this process has a copy of the thread alone that forked it."""
        if self._workers is not None:
            os.close(self._workers.fileno())
        self._workers = self._scheduler = None
        self._waiting.clear()
        if self._stillness is not None:
            self._stillness.after_fork()
        self._retries = False

    def close(self) -> None:
        """Let what still waits end."""
        if self._workers is not None:
            self._workers.interrupt_all()
        if self._stillness is not None:
            self._stillness.close()

    def _take(self) -> None:
        assert self._workers is not None
        assert self._scheduler is not None
        self._is_taking = True
        for key, done in sorted(self._workers.take_finished(), key=itemgetter(0)):
            thread, wait, finish = self._waiting.pop(key)
            if thread.wait is not wait:
                continue  # it is gone
            if done[1] == errno.EINTR:
                self._scheduler.end_by_signal(thread)
            else:
                finish(done)
        self._is_taking = False

    def _interrupt(self, key: int) -> None:
        assert self._workers is not None
        self._workers.interrupt(key)
        self.settle()
        if not self._retries:
            self._retries = True
            self._retry_later()

    def _retry_later(self) -> None:
        assert self._scheduler is not None
        self._scheduler.call_at(self._scheduler.now() + _RETRY_NS, self._retry)

    def _retry(self) -> None:
        if self._workers is None:
            return
        self._retries = self._workers.is_interrupting
        if self._retries:
            self._workers.interrupt_again()
            self._retry_later()
