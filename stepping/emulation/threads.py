"""The threads of an emulated program, and who runs next.

One processor executes all threads, one at a time, each until it waits or its time slice is over. A thread that
waits has a `Wait`; whatever ends that (another thread, a time, a descriptor, a signal) calls `Scheduler.wake` with
what its syscall returns.

Thread rules: everything here belongs to the machine's one thread, but for `Scheduler.complete`.
"""

import collections
import errno
import fcntl
import heapq
import itertools
import os
import resource
import select
from collections.abc import Callable
from enum import Enum

from stepping.emulation.clock import Clock
from stepping.emulation.registers import Context


class Outcome(Enum):
    """What a syscall's implementation says instead of a result."""

    BLOCKED = "blocked"  #: the thread waits
    RELOAD = "reload"  #: the thread goes on with what its `context` holds now
    AWAY = "away"  #: the thread does not go on now; it is gone, or its `context` is saved and it is ready


BLOCKED, RELOAD, AWAY = Outcome.BLOCKED, Outcome.RELOAD, Outcome.AWAY

#: What an implementation of a syscall returns: what the kernel would (negative errno), or how it ended otherwise.
Result = int | Outcome


_MOST_DESCRIPTORS = 1 << 16
_OWN_DESCRIPTORS = 64


def keep_descriptor(fd: int) -> int:
    """Return a descriptor for what *fd* is open on with a number that the program will hardly use; close *fd*.

    Low numbers are the program's: the kernel gives it the lowest that is free.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = max(min(hard, _MOST_DESCRIPTORS) - _OWN_DESCRIPTORS, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.close(fd)
    return kept


class Wait:
    """What a thread waits for.

    cancel: called when something else ends the wait; restarts: a signal whose handler has SA_RESTART makes the
    thread repeat the call instead of failing with EINTR; timeout_result: what the call returns at its deadline;
    interrupt: asked to end the wait when a signal comes, if that cannot be done at once; signals: the set that is
    waited for (sigtimedwait), signal n is bit n - 1.
    """

    __slots__ = ("cancel", "interrupt", "restarts", "signals", "timeout_result")

    def __init__(
        self,
        cancel: Callable[[], None] | None = None,
        restarts: bool = False,
        timeout_result: int = -errno.ETIMEDOUT,
        interrupt: Callable[[], None] | None = None,
        signals: int = 0,
    ) -> None:
        self.cancel = cancel
        self.restarts = restarts
        self.timeout_result = timeout_result
        self.interrupt = interrupt
        self.signals = signals


class Thread:
    """One thread of the program.

    context: its registers while it does not run; call: what the register of results held when its syscall began;
    result: what its syscall returns, once it runs again; pending:
    its signals that were not delivered yet, with their siginfo; mask: its blocked signals, signal n is bit n - 1;
    is_observed: somebody wants to know what its call returns;
    saved_mask: the mask to come back to after a call that waited with another (sigsuspend); altstack: (address,
    flags, size) as of sigaltstack(2).
    """

    __slots__ = (
        "altstack",
        "call",
        "clear_child_tid",
        "context",
        "interrupted",
        "is_observed",
        "mask",
        "name",
        "pending",
        "result",
        "robust_list",
        "saved_mask",
        "tid",
        "wait",
    )

    def __init__(self, tid: int, context: Context) -> None:
        self.tid = tid
        self.context = context
        self.call: int | None = None
        self.result: int | None = None
        self.wait: Wait | None = None
        self.interrupted: Wait | None = None
        self.is_observed = False
        self.pending: dict[int, bytes] = {}
        self.mask = 0
        self.saved_mask: int | None = None
        self.altstack = (0, 2, 0)
        self.clear_child_tid = 0
        self.robust_list = (0, 0)
        self.name = b""


#: For so many slices, a second or less, there may always be a thread that can run before that counts as idle.
_MOST_POLLS_HELD = 1000


class Scheduler:
    """Which threads can run, and what the others wait for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.ready: collections.deque[Thread] = collections.deque()
        self._deadlines: list[tuple[int, int, Thread | None, object]] = []
        self._order = itertools.count()
        self._poll = select.poll()
        self._watched: dict[int, list[tuple[int, Thread, Wait, Callable[[], Result]]]] = {}
        self._sources: dict[int, Callable[[], None]] = {}
        self._done: collections.deque[Callable[[], None]] = collections.deque()
        self._when_idle: collections.deque[Callable[[], None]] = collections.deque()
        self._polls_held = 0
        #: Where the clock jumps: waits in earnest first, and returns whether what it is given tells something then.
        self.linger: Callable[[select.poll], bool] | None = None
        #: Called after a sleep, before what has become ready is looked at: lets all get ready that will before long.
        self.settle: Callable[[], None] | None = None
        self._open_wakeup()

    def _open_wakeup(self) -> None:
        self._wakeup = keep_descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._poll.register(self._wakeup, select.POLLIN)

    def close(self) -> None:
        """Give up the descriptors."""
        os.close(self._wakeup)

    def block(self, thread: Thread, wait: Wait, deadline: int | None = None) -> Outcome:
        """Let *thread* wait, at most until *deadline* of the program's clock; return `BLOCKED`."""
        thread.wait = wait
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, next(self._order), thread, wait))
        return BLOCKED

    def call_at(self, deadline: int, action: Callable[[], None]) -> None:
        """Call *action* at *deadline*."""
        heapq.heappush(self._deadlines, (deadline, next(self._order), None, action))

    def watch(
        self,
        thread: Thread,
        descriptors: list[tuple[int, int]],
        retry: Callable[[], Result],
        wait: Wait,
        deadline: int | None = None,
    ) -> Outcome:
        """Let *thread* wait until one of *descriptors* (number, poll(2) events) is ready, then call *retry*.

        retry: returns what the call returns, or `BLOCKED` to wait on.
        """
        for fd, events in descriptors:
            self._watched.setdefault(fd, []).append((events, thread, wait, retry))
            self._register(fd)
        cancel = wait.cancel

        def forget() -> None:
            for fd, _ in descriptors:
                entries = [entry for entry in self._watched.get(fd, []) if entry[2] is not wait]
                self._watched[fd] = entries
                self._register(fd)
            if cancel is not None:
                cancel()

        wait.cancel = forget
        return self.block(thread, wait, deadline)

    def add_source(self, fd: int, action: Callable[[], None]) -> None:
        """Call *action* whenever the descriptor *fd*, which is not the program's, is readable."""
        self._sources[fd] = action
        self._poll.register(fd, select.POLLIN)

    def now(self) -> int:
        """Return the time that deadlines are measured by."""
        return self._clock.now()

    def complete(self, action: Callable[[], None]) -> None:
        """Let the machine's thread call *action* soon; any thread may say so."""
        self._done.append(action)
        os.eventfd_write(self._wakeup, 1)

    def complete_when_idle(self, action: Callable[[], None]) -> None:
        """Let the machine's thread call *action* when no thread can run, or after a while; any thread may say so."""
        self._when_idle.append(action)
        os.eventfd_write(self._wakeup, 1)

    def wake(self, thread: Thread, result: int) -> None:
        """End the wait of *thread*: its call returns *result*."""
        wait = thread.wait
        if wait is None:
            return
        thread.wait = None
        thread.result = result
        if wait.cancel is not None:
            wait.cancel()
        self.ready.append(thread)

    def interrupt(self, thread: Thread) -> None:
        """End the wait of *thread*, at once or soon, because it has a signal to handle."""
        wait = thread.wait
        if wait is not None and wait.interrupt is not None:
            wait.interrupt()
        else:
            self.end_by_signal(thread)

    def end_by_signal(self, thread: Thread) -> None:
        """End the wait of *thread* as a signal does: its call is made again, or fails with EINTR."""
        wait = thread.wait
        if wait is not None:
            self.wake(thread, -errno.EINTR)
            thread.interrupted = wait

    def after_fork(self) -> None:
        """Forget all threads and what they wait for: this process has a copy of one of them only."""
        os.close(self._wakeup)
        self._poll = select.poll()
        self._watched.clear()
        self._sources.clear()
        self._deadlines.clear()
        self.ready.clear()
        self._done.clear()
        self._when_idle.clear()
        self._open_wakeup()

    def poll(self, may_sleep: bool) -> None:
        """Wake whoever's time has come or whose descriptor is ready; sleep until there is one, if *may_sleep*."""
        timeout = self._timeout_ms() if may_sleep else 0
        if self._watched or self._sources or timeout != 0 or self._done:
            ready = self._poll.poll(timeout)
            if timeout != 0 and self.settle is not None:
                self.settle()
                ready = self._poll.poll(0)
            for fd, _ in ready:
                self._on_ready(fd)
        self._complete()  # a signal that belongs to a call which has just ended (SIGPIPE) comes before its result
        if self._when_idle:
            self._polls_held += 1
            if may_sleep or self._polls_held > _MOST_POLLS_HELD:
                self._polls_held = 0
                while self._when_idle:
                    self._when_idle.popleft()()
        self._fire()

    def _timeout_ms(self) -> int | None:
        if self._done or self._when_idle:
            return 0
        while self._deadlines and self._is_stale(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        if not self._deadlines:
            return None
        deadline = self._deadlines[0][0]
        if self.linger is not None and self.linger(self._poll):
            return 0
        if self._clock.skip_to(deadline):
            return 0
        return max(0, -((self._clock.now() - deadline) // 1_000_000))

    @staticmethod
    def _is_stale(entry: tuple[int, int, Thread | None, object]) -> bool:
        return entry[2] is not None and entry[2].wait is not entry[3]

    def _fire(self) -> None:
        if not self._deadlines:
            return
        now = self._clock.now()
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heapq.heappop(self._deadlines)
            _, _, thread, what = entry
            if thread is None:
                assert callable(what)
                what()
            elif thread.wait is what:
                assert isinstance(what, Wait)
                self.wake(thread, what.timeout_result)

    def _on_ready(self, fd: int) -> None:
        if fd == self._wakeup:
            os.eventfd_read(fd)
            self._complete()
            return
        if fd in self._sources:
            self._sources[fd]()
            return
        for _, thread, wait, retry in list(self._watched.get(fd, [])):
            if thread.wait is wait:
                result = retry()
                if isinstance(result, int):
                    self.wake(thread, result)

    def _complete(self) -> None:
        while self._done:
            self._done.popleft()()

    def _register(self, fd: int) -> None:
        entries = self._watched.get(fd)
        if entries:
            events = 0
            for entry in entries:
                events |= entry[0]
            self._poll.register(fd, events)
        else:
            self._watched.pop(fd, None)
            self._poll.unregister(fd)
