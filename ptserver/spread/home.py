"""The home of a spread program: it knows where every page and every thread is, and decides on both.

Messages of hosts come in by `take`, in order per host; what hosts are to do goes out by *send*. Nothing here
waits: what needs an answer goes on when the answer has come. So the home is the same in one process with its hosts
and far away from them, and tests drive it without either.

Calls. What concerns memory, futexes, signals between threads and placement is answered here. Everything else is
made at host 0, where the program's files, sockets and children are: by the thread itself if it runs there, else by
its parked counterpart, whose pointers are good because memory is one.
"""

import errno
import struct
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from ptserver.spread.address_space import AddressSpace
from ptserver.spread.coherence import CoherenceChecker
from ptserver.spread.companions import Companions
from ptserver.spread.errands import Errands
from ptserver.spread.futexes import (
    COMMAND_MASK,
    FUTEX_BYTES,
    FUTEX_WAIT,
    FUTEX_WAIT_BITSET,
    Futexes,
)
from ptserver.spread.goroutine_events import GoroutineEvents
from ptserver.spread.links import Links, Place, Straight
from ptserver.spread.members import Emptying, Members
from ptserver.spread.memory_calls import MemoryCalls
from ptserver.spread.messages import (
    Called,
    Captured,
    Done,
    Dropped,
    Executed,
    Fault,
    Happened,
    Inventory,
    Preempted,
    ProgramExited,
    Protect,
    Quit,
    SetAction,
    SignalsWait,
    SpreadMessage,
    Strayed,
    ThreadBorn,
    ThreadGone,
    Watched,
    Woke,
    Words,
)
from ptserver.spread.outgoing import Outgoing
from ptserver.spread.page_messages import PagesData
from ptserver.spread.pages import PageDirectory
from ptserver.spread.passing_messages import Arrived, Linked, Unlinked
from ptserver.spread.placement import HostLoad, Placement
from ptserver.spread.requests import Later, Peek, Requests
from ptserver.spread.statistics import Statistics
from ptserver.spread.threads import Thread, Threads, Where
from ptserver.spread.turns import Turns
from ptserver.spread.wakes import Wakes
from ptserver.spread.wishes import Wishes
from ptserver.stub.hypercalls import Hypercall
from stepping.maps import PAGE_BYTES
from stepping.syscalls import SYSCALLS

_NUMBERS = {
    name: SYSCALLS[name].numbers["amd64"]
    for name in (
        "futex mmap munmap mprotect madvise mremap brk mincore rseq rt_sigaction tgkill tkill gettid clone3 exit"
    ).split()
}
_SIGACTION_BYTES, _TIMESPEC_BYTES = 32, 16
_U32 = (1 << 32) - 1


class Home:
    """Decides for *hosts* hosts (their number); see the module's text.

    later: calls a function after so many seconds. status: the program's raw wait status once it is gone.
    check_seconds: how often to check that the hosts' memory is the same, 0 for never. straight: between which of
    them pages go straight. peek: reads the memory of hosts that need not be asked.
    events: takes what becomes of goroutines, if anybody wants to hear of that.
    fault_counts: how often (thread, host, address, whether to write) had to wait, if that is to be counted.
    """

    def __init__(
        self,
        hosts: int,
        send: Callable[[int, SpreadMessage], None],
        later: Later,
        placement: Placement,
        space: AddressSpace,
        check_seconds: float = 0.0,
        straight: Straight = Straight.FAR,
        peek: Peek = lambda host, address, size: None,
    ) -> None:
        self.members = Members(hosts)
        self._outgoing = Outgoing(send)
        self.flush = self._outgoing.flush
        send = self._outgoing.say
        self.space = space
        self.links = Links(send, lambda source, host: self.pages.pass_again(source, host), straight)
        self.pages = PageDirectory(self._outgoing, space.may_touch, self.links.are_linked)
        self.threads = Threads(send, self.members.leaves)
        self.status: int | None = None
        self._send = send
        self._later = later
        self._placement = placement
        self.futexes = Futexes()
        waits_for = self._outgoing.waits_for
        self.requests = Requests(
            send, self.pages, lambda host, *where: None if waits_for(host) else peek(host, *where)
        )
        self.wishes = Wishes(self.threads, self.requests, later)
        self._errands = Errands(self.threads, later)
        self.fault_counts: Counter[tuple[int, int, int, bool]] | None = None
        self.events: GoroutineEvents | None = None
        self._statistics = Statistics()
        self._companions = Companions()
        self._actions: dict[int, bytes] = {}
        self._waits = 0
        self.turns = Turns(self.pages, send, time.monotonic, later)
        self._wakes = Wakes(self.threads, self.futexes, self._companions, self.pages, later)
        self._takers: dict[type, Callable[..., None]] = {
            Fault: self._fault,
            PagesData: self._pages_data,
            Arrived: self._arrived,
            Dropped: self._dropped,
            Watched: self.turns.take_watched,
            Linked: self.links.take_linked,
            Unlinked: self.links.take_unlinked,
            Words: self.requests.take_words,
            Done: self.requests.take_done,
            Inventory: self._inventory,
            Called: self._called,
            Woke: self._wakes.take,
            Executed: lambda host, message: self.threads.executed(message.tid, message.result),
            Preempted: self._preempted,
            Strayed: self._strayed,
            Captured: self._captured,
            Happened: self._happened,
            ThreadBorn: lambda host, message: self.threads.begin(message.tid),
            SignalsWait: lambda host, message: self._take_signals(),
            ThreadGone: self._gone,
            ProgramExited: self._exited,
        }
        memory = self._memory = MemoryCalls(
            self.members.present,
            space,
            self.pages,
            self.requests,
            later,
            self._answer,
            self._make,
        )
        self._calls: dict[int, Callable[[int, Called, Thread], None]] = {
            _NUMBERS["futex"]: self._futex,
            **{_NUMBERS[name]: _without_thread(handler) for name, handler in memory.handlers.items()},
            _NUMBERS["rt_sigaction"]: self._sigaction,
            _NUMBERS["tgkill"]: partial(self._kill, 1),
            _NUMBERS["tkill"]: partial(self._kill, 0),
            _NUMBERS["gettid"]: lambda host, call, thread: self._return(thread, thread.tid),
            _NUMBERS["exit"]: self._exit,
            **{
                _NUMBERS[name]: lambda host, call, thread: self._return(thread, -errno.ENOSYS)
                for name in ("clone3", "mremap", "mincore", "rseq")
            },
            _NUMBERS["brk"]: lambda host, call, thread: self._return(thread, 0),  # it cannot be had
            Hypercall.HELLO: lambda host, call, thread: self._return(thread, 0),
            Hypercall.INFO: lambda host, call, thread: self._return(thread, 0),
            Hypercall.WATCH: lambda host, call, thread: None,  # it would return if the home were lost
            Hypercall.HOSTS: lambda host, call, thread: self._return(thread, self.members.slots),
            Hypercall.HERE: lambda host, call, thread: self._return(thread, thread.host),
            Hypercall.MIGRATE: self._migrate,
        }

        self.checker: CoherenceChecker | None = None
        if check_seconds:
            self.checker = CoherenceChecker(self.members, self.pages, send, later, check_seconds)
            self.checker.begin()
        if placement.look_seconds:
            later(placement.look_seconds, self._look)

    def take(self, host: int, message: SpreadMessage) -> None:
        """Take what *host* says."""
        self._takers[type(message)](host, message)

    # Hosts.

    def join(self, host: int) -> None:
        """Have a new host, to which `Begin` has gone, be as the others are."""
        self.members.join(host)
        for signo, action in self._actions.items():
            self._tell(host, partial(SetAction, signo=signo, action=action))
        for start, size, protection in self._memory.protections:
            self._tell(host, partial(Protect, tid=0, start=start, size=size, protection=protection))

    def set_ready(self, host: int, place: Place | None = None) -> None:
        """Let threads go to a host that has prepared itself. place: how other hosts reach it; None if it is in this
        process, where nothing can go straight.
        """
        self.members.set_ready(host)
        if place is not None:
            self.links.set_ready(host, place)
        if self.events is not None:
            self.events.join(host)

    def _tell(self, host: int, make: "Callable[..., SpreadMessage]") -> None:
        self.requests.on_each([host], lambda request: make(request=request), lambda: None)

    def empty(self, host: int, then: Callable[[], None]) -> None:
        """Have everything move off *host*, call *then* when it has, and have it end."""

        def finish() -> None:
            self._send(host, Quit())
            self._remove(host)
            then()

        self.members.set_leaving(host)
        Emptying(host, self.threads, self.futexes, self.pages, self.requests, self._later, finish).go_on()

    def abandon(self, host: int) -> bool:
        """Go on without *host*, which is lost; return False if the program cannot."""
        if any(thread.host == host for thread in self.threads) or not self.pages.abandon(host):
            return False
        if not self.requests.abandon(host):
            return False
        self.threads.turn_back(host)
        self._remove(host)
        return True

    def _remove(self, host: int) -> None:
        self.wishes.forget_host(host)
        self.members.remove(host)
        self.turns.forget_host(host)
        self.links.remove(host)
        if self.checker is not None:
            self.checker.forget_host(host)
        if self.events is not None:
            self.events.remove(host)

    # Pages.

    def _fault(self, host: int, message: Fault) -> None:
        tid, page, write = message.tid, message.page, message.write
        if self.fault_counts is not None:
            self.fault_counts[tid, host, message.access, write] += 1
        thread = self.threads.find(tid)
        if thread is None:
            self.pages.request(host, page, write=write)
            return
        thread.faults += 1
        source = self.pages.holder(page)
        if source is not None:
            self._statistics.pulled(tid, source)
        wants = self._companions.wants(tid, host, page, write=write, now=time.monotonic())
        if wants:  # a page that it reads and then writes leads its own companions
            write = write or (page, True) in wants
        if source is None or not self.turns.defers(tid, host, page, write=write):
            self.pages.request(host, page, write=write)
        if wants:
            keeps = self.turns.keeps
            self.pages.fetch_all_ahead(host, [want for want in wants if not keeps(host, want[0])])

    def _pages_data(self, _host: int, message: PagesData) -> None:
        self.pages.take_data(message.pages, message.dirty, message.data)

    def _arrived(self, _host: int, message: Arrived) -> None:
        self.pages.take_arrived(message.page, message.transfer, dirty=message.dirty)

    def _dropped(self, _host: int, message: Dropped) -> None:
        self.pages.take_dropped(message.page)

    # Threads.

    def _captured(self, host: int, message: Captured) -> None:
        self.threads.captured(message)
        thread = self.threads.find(message.tid)
        if thread is not None and self.events is not None and thread.host != host:
            self.events.moved(message.tid, host, thread.host, time.monotonic_ns())

    def _happened(self, host: int, message: Happened) -> None:
        if self.events is not None:
            self.events.take(host, message)

    def _gone(self, _host: int, message: ThreadGone) -> None:
        self.futexes.leave(message.tid)
        self._statistics.ended(message.tid)
        self._companions.pause(message.tid)
        self._wakes.go_on(message.tid)
        self._errands.end(message.tid)
        self.threads.end(message.tid)

    def _exited(self, _host: int, message: ProgramExited) -> None:
        def end() -> None:
            self.status = message.status
            for host in self.members.present:
                self._send(host, Quit())

        if self.checker is not None:
            self.checker.check(end)
        else:
            end()

    def _inventory(self, host: int, message: Inventory) -> None:
        if self.checker is not None:
            self.checker.take(host, message)

    def _preempted(self, _host: int, message: Preempted) -> None:
        thread = self.threads.find(message.tid)
        if thread is None:  # the program ends
            return
        thread.where, thread.goroutine, thread.sp = Where.ASKS, message.goroutine, message.sp

        def go_on(wanted: int | None) -> None:
            if self.members.leaves(thread.host):
                to = 0
            elif wanted is not None and self.members.is_ready(wanted):
                to = wanted
            elif (back := self._errands.way_back(thread)) is not None and self.members.is_ready(back):
                to = back
            else:
                to = self._choose(thread)
            if to != thread.host and message.signo:
                # Go sends a thread no second signal before the first has been handled, so this one goes along.
                thread.signals.append(message.signo)
            self._move(thread, to, result=None)

        self.wishes.decide(thread, go_on)

    def _move(self, thread: Thread, to: int, result: int | None) -> None:
        """Move a stopped thread, and what it will touch first with it: the source gives that before the thread."""
        if to != thread.host:
            page = thread.sp // PAGE_BYTES
            wants = self._companions.wants(thread.tid, to, page, write=True, now=time.monotonic())
            self.pages.fetch_all_ahead(to, [(page, True), *wants])
        self.threads.move(thread, to, result)

    def _strayed(self, _host: int, message: Strayed) -> None:
        """Have a thread touch at host 0 what other hosts have not mapped: a file, or nothing at all."""
        thread = self.threads.find(message.tid)
        if thread is not None:
            thread.where = Where.ASKS
            if thread.pinned:
                self._errands.begin(thread)
            self.threads.move(thread, 0, result=None)

    def _choose(self, thread: Thread) -> int:
        if thread.pinned:
            return thread.host
        to = self._placement.place(self._statistics.facts(thread), self.loads())
        if to == thread.host or not self.members.is_ready(to):
            return thread.host
        self._statistics.moved(thread)
        return to

    def _look(self) -> None:
        """Have the policy asked about what runs now, and again after a while."""
        for thread in self.threads:
            self.threads.stop(thread, busy=True)
        self._later(self._placement.look_seconds, self._look)

    def loads(self) -> list[HostLoad]:
        """Return how many threads run at each host to which threads may go."""
        running = {host: 0 for host in self.members.present if self.members.is_ready(host)}
        for thread in self.threads:
            if thread.host in running and not thread.calls and not self.futexes.sleeps(thread.tid):
                running[thread.host] += 1
        return [HostLoad(host, count) for host, count in running.items()]

    def _return(self, thread: Thread, result: int) -> None:
        self.threads.answer(thread, result)

    # Calls.

    def _called(self, host: int, call: Called) -> None:
        thread = self.threads.find(call.tid)
        if thread is None:  # the program ends
            return
        thread.where, thread.call, thread.sp = Where.ASKS, call.number, call.sp
        self._companions.pause(call.tid)
        handler = self._calls.get(call.number)
        if handler is not None:
            handler(host, call, thread)
        else:
            self._make(host, call)
        self._wakes.go_on(call.tid)

    def _make(self, _host: int, call: Called) -> None:
        """Have a call made at host 0, unless the program has ended meanwhile."""
        thread = self.threads.find(call.tid)
        if thread is not None:
            self.threads.call(thread, call.registers)

    def _answer(self, call: Called, result: int) -> None:
        """Let a call return *result*, unless the program has ended meanwhile."""
        thread = self.threads.find(call.tid)
        if thread is not None:
            self.threads.answer(thread, result)

    def _exit(self, host: int, call: Called, thread: Thread) -> None:
        self._make(host, call)  # its end is reported, and what ran elsewhere is ended then

    def _migrate(self, _host: int, call: Called, thread: Thread) -> None:
        to = call.args[0]
        if not self.members.is_ready(to):
            self._return(thread, -errno.EINVAL)
        else:
            thread.pinned = to != 0
            self._errands.end(thread.tid)
            self._move(thread, to, result=0)

    def _kill(self, first: int, _host: int, call: Called, thread: Thread) -> None:
        tid, signo = call.args[first] & _U32, call.args[first + 1] & _U32
        target = self.threads.find(tid)
        if target is None:
            self._return(thread, -errno.ESRCH)
            return
        self.threads.signal(target, signo)
        if self.futexes.leave(tid):
            self._return(target, -errno.EINTR)
        self._return(thread, 0)

    def _take_signals(self) -> None:
        """Wake a thread at host 0, or one that goes there, to take signals that are for any."""
        sleepers = [thread for thread in self.threads if self.futexes.sleeps(thread.tid)]
        thread = min(sleepers, key=lambda each: each.host, default=None)
        if thread is not None and thread.where is Where.ASKS and self.futexes.leave(thread.tid):
            self.threads.move(thread, 0, result=-errno.EINTR)

    def _sigaction(self, host: int, call: Called, thread: Thread) -> None:
        signo, action = call.args[0], call.args[1]
        if not action:
            self._make(host, call)
            return

        def spread(data: bytes) -> None:
            self._actions[signo] = data
            self.requests.on_each(
                self.members.present[1:],
                lambda request: SetAction(request, signo, data),
                lambda: self._make(host, call),
            )

        self.requests.read(action, _SIGACTION_BYTES, spread)

    # Futexes.

    def _futex(self, _host: int, call: Called, thread: Thread) -> None:
        address, operation, value = call.args[0], call.args[1] & COMMAND_MASK, call.args[2] & _U32
        if operation in (FUTEX_WAIT, FUTEX_WAIT_BITSET):
            self._wait(call, thread, address, value)
        else:
            self._return(thread, -errno.ENOSYS)

    def _wait(self, call: Called, thread: Thread, address: int, value: int) -> None:
        self._waits += 1
        wait = thread.waits = self._waits
        tid = thread.tid
        self.futexes.enter(tid, address)
        self.turns.sleeps(tid, thread.host)

        def check(word: bytes) -> None:
            if int.from_bytes(word, "little") != value:
                if thread.waits == wait and self.futexes.leave(tid):
                    self._return(thread, -errno.EAGAIN)
            elif call.args[3]:
                self.requests.read(call.args[3], _TIMESPEC_BYTES, arm)
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
            if thread.waits == wait and self.futexes.leave(tid):
                self._return(thread, -errno.ETIMEDOUT)

        self.requests.read(address, FUTEX_BYTES, check, (thread.host, call.word))

    def _asleep(self, thread: Thread) -> None:
        """A thread sleeps in earnest: elsewhere, it comes back to host 0, to be near what will wake it."""
        free = thread.host and not thread.pinned
        if free and self.futexes.sleeps(thread.tid) and self._placement.brings_back:
            self.threads.move(thread, 0, result=None, held=True)


def _without_thread(handler: Callable[[int, Called], None]) -> "Callable[[int, Called, Thread], None]":
    return lambda host, call, _thread: handler(host, call)
