"""Where the threads of a spread program are, and how one gets from host to host. Pure: messages in, messages out.

A thread that moves is captured where it stands, and started where it goes. What happens to it on the way (it is
woken, it gets signals) is kept, and done when it has arrived. A thread whose call is under way at host 0 cannot start
there; its state stays with the home until the call has returned.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from ptserver.spread.messages import (
    Capture,
    Captured,
    End,
    Execute,
    Kill,
    Proceed,
    Return,
    SpreadMessage,
    Start,
    Stop,
    ThreadState,
)


class Where(Enum):
    """What the home knows of a thread."""

    RUNS = "runs"
    ASKS = "waits for an answer"
    MOVES = "is on its way"
    KEPT = "is kept by the home until its call has returned"


@dataclass(slots=True)
class Thread:
    """A thread of the program, and where it is.

    waits: the number of its last sleep, for the time-out to recognise. calls: whether a call of it is under way at
    host 0 while it is elsewhere. While it moves, to: where; result and held: how it goes on there; woken: what its
    call returns if it was woken meanwhile; signals: those it was sent meanwhile. kept: its state, if the home has it.
    pinned: it stays where the program put it. goroutine: the address of the g that it was last seen to run, or 0.
    sp: its stack pointer when it was last stopped. call: the number of the call that it asked for last; moves,
    faults: how many so far.
    """

    tid: int
    host: int = 0
    where: Where = Where.RUNS
    waits: int = 0
    calls: bool = False
    to: int = 0
    result: int | None = None
    held: bool = False
    woken: int | None = None
    kept: ThreadState | None = None
    pinned: bool = False
    goroutine: int = 0
    sp: int = 0
    call: int = 0
    moves: int = 0
    faults: int = 0
    signals: list[int] = field(default_factory=list)


class Threads:
    """All threads. leaves: whether nothing may go to a host, because it is being emptied."""

    def __init__(self, send: Callable[[int, SpreadMessage], None], leaves: Callable[[int], bool]) -> None:
        self._send = send
        self._leaves = leaves
        self._threads: dict[int, Thread] = {}
        self.moves = 0

    def __iter__(self) -> Iterator[Thread]:
        return iter(self._threads.values())

    def __getitem__(self, tid: int) -> Thread:
        return self._threads[tid]

    def find(self, tid: int) -> Thread | None:
        """Return a thread; None if there is none, or not any more."""
        return self._threads.get(tid)

    def begin(self, tid: int) -> None:
        """Note a new thread, which runs at host 0."""
        self._threads[tid] = Thread(tid)

    def end(self, tid: int) -> None:
        """Note that a thread has ended at host 0; it is over elsewhere, too."""
        thread = self._threads.pop(tid, None)
        if thread is not None and thread.host and thread.where is not Where.KEPT:
            self._send(thread.host, End(tid))

    def are_at(self, host: int) -> list[Thread]:
        """Return the threads that are at a host, or on the way from or to it."""
        return [
            thread
            for thread in self
            if thread.host == host or (thread.where is Where.MOVES and thread.to == host)
        ]

    def turn_back(self, host: int) -> None:
        """Have those that are on their way to *host*, which is lost, go on where they were; its calls say that."""
        for thread in self:
            if thread.where is Where.MOVES and thread.to == host:
                thread.to, thread.pinned = thread.host, False
                if thread.result is not None:  # of the call by which it wanted to go there
                    thread.result = -errno.EINVAL

    def stop(self, thread: Thread, *, busy: bool = False) -> None:
        """Have a thread that computes stop and be reported (`Preempted`). busy: if it has done so for a while."""
        if thread.where is Where.RUNS:
            self._send(thread.host, Stop(thread.tid, busy))

    def move(self, thread: Thread, to: int, result: int | None, *, held: bool = False) -> None:
        """Move a stopped thread; it goes on there at once, or stays stopped there (*held*)."""
        if to == thread.host:
            if not held:
                self.proceed(thread) if result is None else self.answer(thread, result)
            return
        thread.where, thread.to, thread.result, thread.held = Where.MOVES, to, result, held
        self._send(thread.host, Capture(thread.tid))

    def captured(self, message: Captured) -> None:
        """Take the state of a thread that was to move."""
        thread = self._threads.get(message.tid)
        if thread is None:  # the program has ended meanwhile
            return
        if self._leaves(thread.to):
            thread.to = 0
        if thread.to != thread.host:
            thread.moves += 1
            self.moves += 1
        thread.host = thread.to
        thread.signals[:0] = message.signals
        if thread.woken is not None:  # while it was on its way
            thread.result, thread.held, thread.woken = thread.woken, False, None
        if thread.calls and thread.host == 0:
            thread.where, thread.kept = Where.KEPT, message.state
        else:
            self._start(thread, message.state)

    def signal(self, thread: Thread, signo: int) -> None:
        """Send it a signal, where it is or will be."""
        if thread.where in (Where.MOVES, Where.KEPT):
            thread.signals.append(signo)
        else:
            self._send(thread.host, Kill(thread.tid, signo))

    def call(self, thread: Thread, registers: bytes) -> None:
        """Have a stopped thread's call made at host 0."""
        if thread.host == 0:
            self.proceed(thread)
        else:
            thread.calls = True
            self._send(0, Execute(thread.tid, registers))

    def executed(self, tid: int, result: int) -> None:
        """Take the result of a call that was made for a thread elsewhere."""
        thread = self._threads.get(tid)
        if thread is not None:
            thread.calls = False
            self.answer(thread, result)

    def answer(self, thread: Thread, result: int, after: tuple[int, ...] = ()) -> None:
        """Let a thread's call return *result*. after: pages for which its host waits before, as `Return` says."""
        if thread.where is Where.MOVES:
            thread.woken = result
        elif thread.kept is not None:
            state, thread.kept = thread.kept, None
            thread.result, thread.held = result, False
            self._start(thread, state)
        elif self._leaves(thread.host):
            self.move(thread, 0, result)
        else:
            thread.where = Where.RUNS
            self._send(thread.host, Return(thread.tid, result, after))

    def proceed(self, thread: Thread) -> None:
        """Let a stopped thread go on as it was about to."""
        thread.where = Where.RUNS
        self._send(thread.host, Proceed(thread.tid))

    def _start(self, thread: Thread, state: ThreadState) -> None:
        self._send(thread.host, Start(thread.tid, state, thread.result, thread.held))
        thread.where = Where.ASKS if thread.held else Where.RUNS
        for signo in thread.signals:
            self._send(thread.host, Kill(thread.tid, signo))
        thread.signals.clear()
