"""The home of a spread program: it knows where every page and every thread is, and decides on both.

Messages of hosts come in by `take`, in order per host; what hosts are to do goes out by *send*. Nothing here
waits: what needs an answer goes on when the answer has come. So the home is the same in one process with its hosts
and far away from them, and tests drive it without either.

Calls. What concerns memory, futexes, signals between threads and placement is answered here. Everything else is
made at host 0, where the program's files, sockets and children are: by the thread itself if it runs there, else by
its parked counterpart, whose pointers are good because memory is one.
"""

import errno
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from ptserver.spread.address_space import AddressSpace
from ptserver.spread.futexes import (
    COMMAND_MASK,
    FUTEX_WAIT,
    FUTEX_WAIT_BITSET,
    FUTEX_WAKE,
    FUTEX_WAKE_BITSET,
    Futexes,
)
from ptserver.spread.memory_calls import MemoryCalls
from ptserver.spread.messages import (
    Called,
    Capture,
    Captured,
    Done,
    Dropped,
    End,
    Execute,
    Executed,
    Fault,
    Kill,
    PageData,
    Preempted,
    Proceed,
    ProgramExited,
    Quit,
    Return,
    SetAction,
    SpreadMessage,
    Start,
    ThreadBorn,
    ThreadGone,
    ThreadState,
    Words,
)
from ptserver.spread.pages import PageDirectory
from ptserver.spread.placement import HostLoad, Placement
from ptserver.spread.requests import Later, Requests
from ptserver.stub.hypercalls import Hypercall
from stepping.syscalls import SYSCALLS

_NUMBERS = {
    name: SYSCALLS[name].numbers["amd64"]
    for name in (
        "futex mmap munmap mprotect madvise mremap brk mincore rt_sigaction tgkill tkill gettid clone3 exit".split()
    )
}
_MADV_DONTNEED, _MADV_FREE = 4, 8
_SIGACTION_BYTES, _TIMESPEC_BYTES = 32, 16
_U32 = (1 << 32) - 1


class _Where(Enum):
    """What the home knows of a thread."""

    RUNS = "runs"
    ASKS = "waits for an answer"
    MOVES = "is on its way"


@dataclass(slots=True)
class _Thread:
    """A thread of the program, and where it is.

    waits: the number of its last sleep, for the time-out to recognise. While it moves, to: where; result and held:
    how it goes on there; woken: what its call returns if it was woken meanwhile; signals: those it was sent
    meanwhile.
    """

    tid: int
    host: int = 0
    where: _Where = _Where.RUNS
    waits: int = 0
    to: int = 0
    result: int | None = None
    held: bool = False
    woken: int | None = None
    pinned: bool = False
    signals: list[int] = field(default_factory=list)


class Home:
    """Decides for *hosts* hosts (their number); see the module's text.

    later: calls a function after so many seconds. status: the program's raw wait status once it is gone.
    """

    def __init__(
        self,
        hosts: int,
        send: Callable[[int, SpreadMessage], None],
        later: Later,
        placement: Placement,
        space: AddressSpace,
    ) -> None:
        self.hosts = hosts
        self.space = space
        self.pages = PageDirectory(send, space.may_touch)
        self.status: int | None = None
        self.moves = 0
        self._send = send
        self._later = later
        self._placement = placement
        self._futexes = Futexes()
        self._threads: dict[int, _Thread] = {}
        self._requests = Requests(send, later, self.pages)
        self._waits = 0
        self._takers: dict[type, Callable[..., None]] = {
            Fault: self._fault,
            PageData: self._page_data,
            Dropped: self._dropped,
            Words: self._requests.take_words,
            Done: self._requests.take_done,
            Called: self._called,
            Executed: self._executed,
            Preempted: self._preempted,
            Captured: self._captured,
            ThreadBorn: self._born,
            ThreadGone: self._gone,
            ProgramExited: self._exited,
        }
        memory = MemoryCalls(
            hosts,
            space,
            self.pages,
            self._requests,
            later,
            lambda call, result: self._return(self._threads[call.tid], result),
            lambda host, call: self._make(host, call, self._threads[call.tid]),
        )
        self._calls: dict[int, Callable[[int, Called, _Thread], None]] = {
            _NUMBERS["futex"]: self._futex,
            **{_NUMBERS[name]: _without_thread(handler) for name, handler in memory.handlers.items()},
            _NUMBERS["rt_sigaction"]: self._sigaction,
            _NUMBERS["tgkill"]: partial(self._kill, 1),
            _NUMBERS["tkill"]: partial(self._kill, 0),
            _NUMBERS["gettid"]: lambda host, call, thread: self._return(thread, thread.tid),
            _NUMBERS["exit"]: self._exit,
            **{
                _NUMBERS[name]: lambda host, call, thread: self._return(thread, -errno.ENOSYS)
                for name in ("clone3", "mremap", "brk", "mincore")
            },
            Hypercall.HELLO: lambda host, call, thread: self._return(thread, 0),
            Hypercall.INFO: lambda host, call, thread: self._return(thread, 0),
            Hypercall.WATCH: lambda host, call, thread: None,  # it would return if the home were lost
            Hypercall.HOSTS: lambda host, call, thread: self._return(thread, self.hosts),
            Hypercall.HERE: lambda host, call, thread: self._return(thread, thread.host),
            Hypercall.MIGRATE: self._migrate,
        }

    def begin(self, tid: int) -> None:
        """Note the program's first thread, at host 0."""
        self._threads[tid] = _Thread(tid)

    def take(self, host: int, message: SpreadMessage) -> None:
        """Take what *host* says."""
        self._takers[type(message)](host, message)

    def where(self) -> dict[int, int]:
        """Return the host of each thread."""
        return {thread.tid: thread.host for thread in self._threads.values()}

    def move(self, tid: int, to: int) -> None:
        """Have a thread that asks, stopped in user code, go on at host *to*; unless it is there."""
        thread = self._threads[tid]
        self._move(thread, to, result=None)

    # Pages.

    def _fault(self, host: int, message: Fault) -> None:
        self.pages.request(host, message.page, write=message.write)

    def _page_data(self, _host: int, message: PageData) -> None:
        self.pages.take_data(message.page, message.data, dirty=message.dirty)

    def _dropped(self, _host: int, message: Dropped) -> None:
        self.pages.take_dropped(message.page)

    # Threads.

    def _born(self, _host: int, message: ThreadBorn) -> None:
        self._threads[message.tid] = _Thread(message.tid)

    def _gone(self, _host: int, message: ThreadGone) -> None:
        thread = self._threads.pop(message.tid, None)
        self._futexes.leave(message.tid)
        if thread is not None and thread.host:
            self._send(thread.host, End(message.tid))

    def _exited(self, _host: int, message: ProgramExited) -> None:
        self.status = message.status
        for host in range(self.hosts):
            self._send(host, Quit())

    def _preempted(self, _host: int, message: Preempted) -> None:
        thread = self._threads[message.tid]
        thread.where = _Where.ASKS
        to = self._placement.place_busy(thread.host, self._loads())
        if to == thread.host:
            self._proceed(thread)
        else:
            # Go sends a thread no second signal before the first has been handled, so this one goes along.
            thread.signals.append(signal.SIGURG)
            self._move(thread, to, result=None)

    def _loads(self) -> list[HostLoad]:
        running = [0] * self.hosts
        for thread in self._threads.values():
            if not self._futexes.sleeps(thread.tid):
                running[thread.host] += 1
        return [HostLoad(host, count) for host, count in enumerate(running)]

    def _move(self, thread: _Thread, to: int, result: int | None, *, held: bool = False) -> None:
        """Move a stopped thread; it goes on there at once, or stays stopped there (*held*)."""
        if to == thread.host:
            if not held:
                self._proceed(thread) if result is None else self._return(thread, result)
            return
        thread.where, thread.to, thread.result, thread.held = _Where.MOVES, to, result, held
        self._send(thread.host, Capture(thread.tid))

    def _captured(self, _host: int, message: Captured) -> None:
        thread = self._threads.get(message.tid)
        if thread is None:  # the program has ended meanwhile
            return
        state: ThreadState = message.state
        thread.host = thread.to
        self.moves += 1
        if thread.woken is not None:  # while it was on its way
            thread.result, thread.held, thread.woken = thread.woken, False, None
        self._send(thread.host, Start(thread.tid, state, thread.result, thread.held))
        thread.where = _Where.ASKS if thread.held else _Where.RUNS
        for signo in thread.signals:
            self._send(thread.host, Kill(thread.tid, signo))
        thread.signals.clear()

    def _return(self, thread: _Thread, result: int) -> None:
        if thread.where is _Where.MOVES:
            thread.woken = result
            return
        thread.where = _Where.RUNS
        self._send(thread.host, Return(thread.tid, result))

    def _proceed(self, thread: _Thread) -> None:
        thread.where = _Where.RUNS
        self._send(thread.host, Proceed(thread.tid))

    # Calls.

    def _called(self, host: int, call: Called) -> None:
        thread = self._threads[call.tid]
        thread.where = _Where.ASKS
        handler = self._calls.get(call.number)
        if handler is not None:
            handler(host, call, thread)
        else:
            self._make(host, call, thread)

    def _make(self, host: int, call: Called, thread: _Thread) -> None:
        """Have the call made at host 0."""
        if host == 0:
            self._proceed(thread)
        else:
            self._send(0, Execute(call.tid, call.registers))

    def _executed(self, _host: int, message: Executed) -> None:
        thread = self._threads.get(message.tid)
        if thread is not None:
            self._return(thread, message.result)

    def _exit(self, host: int, call: Called, thread: _Thread) -> None:
        self._make(host, call, thread)  # its end is reported, and what ran elsewhere is ended then

    def _migrate(self, _host: int, call: Called, thread: _Thread) -> None:
        to = call.args[0]
        if to >= self.hosts:
            self._return(thread, -errno.EINVAL)
        else:
            thread.pinned = to != 0
            self._move(thread, to, result=0)

    def _kill(self, first: int, _host: int, call: Called, thread: _Thread) -> None:
        tid, signo = call.args[first] & _U32, call.args[first + 1] & _U32
        target = self._threads.get(tid)
        if target is None:
            self._return(thread, -errno.ESRCH)
            return
        if target.where is _Where.MOVES:
            target.signals.append(signo)
        else:
            self._send(target.host, Kill(tid, signo))
        if self._futexes.leave(tid):
            self._return(target, -errno.EINTR)
        self._return(thread, 0)

    def _sigaction(self, host: int, call: Called, thread: _Thread) -> None:
        signo, action = call.args[0], call.args[1]
        others = list(range(1, self.hosts))
        if not action or not others:
            self._make(host, call, thread)
            return

        def spread(data: bytes) -> None:
            self._requests.on_each(
                others,
                lambda request: SetAction(request, signo, data),
                lambda: self._make(host, call, thread),
            )

        self._requests.read(action, _SIGACTION_BYTES, spread)

    # Futexes.

    def _futex(self, _host: int, call: Called, thread: _Thread) -> None:
        address, operation, value = call.args[0], call.args[1] & COMMAND_MASK, call.args[2] & _U32
        if operation in (FUTEX_WAKE, FUTEX_WAKE_BITSET):
            woken = self._futexes.wake(address, value)
            for tid in woken:
                self._return(self._threads[tid], 0)
            self._return(thread, len(woken))
        elif operation in (FUTEX_WAIT, FUTEX_WAIT_BITSET):
            self._wait(call, thread, address, value)
        else:
            self._return(thread, -errno.ENOSYS)

    def _wait(self, call: Called, thread: _Thread, address: int, value: int) -> None:
        self._waits += 1
        wait = thread.waits = self._waits
        tid = thread.tid
        self._futexes.enter(tid, address)

        def check(word: bytes) -> None:
            if int.from_bytes(word, "little") != value:
                if thread.waits == wait and self._futexes.leave(tid):
                    self._return(thread, -errno.EAGAIN)
            elif call.args[3]:
                self._requests.read(call.args[3], _TIMESPEC_BYTES, arm)
            else:
                self._asleep(thread)

        def arm(timespec: bytes) -> None:
            seconds, nanoseconds = struct.unpack("=qq", timespec)
            delay = seconds + nanoseconds / 1e9
            if call.args[1] & COMMAND_MASK == FUTEX_WAIT_BITSET:
                delay -= time.monotonic()
            self._later(max(delay, 0.0), expire)
            self._asleep(thread)

        def expire() -> None:
            if thread.waits == wait and self._futexes.leave(tid):
                self._return(thread, -errno.ETIMEDOUT)

        self._requests.read(address, 4, check)

    def _asleep(self, thread: _Thread) -> None:
        """A thread sleeps in earnest: elsewhere, it comes back to host 0, to be near what will wake it."""
        free = thread.host and not thread.pinned
        if free and self._futexes.sleeps(thread.tid) and self._placement.brings_back:
            self._move(thread, 0, result=None, held=True)


def _without_thread(handler: Callable[[int, Called], None]) -> "Callable[[int, Called, _Thread], None]":
    return lambda host, call, _thread: handler(host, call)
