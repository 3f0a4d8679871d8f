"""What the home of a spread program and its hosts say to each other.

The *home* decides; a *host* is one instance of the program (`stepping.instance`) with who keeps it: the home's own
process, or an agent, to which there is a connection.
Threads are named by `tid`, their number at host 0, wherever they run; pages by number (address / 4096). Messages
between two parties arrive in the order in which they were sent, and the protocol relies on it.

Both ends are of one version of ptserver: the handshake says so before any of these is sent.
"""

import msgspec

from ptserver.spread.message_base import U64 as U64
from ptserver.spread.message_base import HostId as HostId
from ptserver.spread.message_base import PageNumber as PageNumber
from ptserver.spread.message_base import RequestId as RequestId
from ptserver.spread.message_base import Several as Several
from ptserver.spread.message_base import SpreadMessage as SpreadMessage
from ptserver.spread.message_base import ThreadId as ThreadId
from ptserver.spread.page_messages import PagesData, PutPages, SendPages
from ptserver.spread.passing_messages import (
    Arrived,
    ExpectPage,
    Link,
    Linked,
    Listening,
    PassAgain,
    PassPage,
    Settled,
    Unlink,
    Unlinked,
)


class ThreadState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A thread as `stepping.gadget` captures it: register sets, blocked signals, signal stack."""

    general: bytes
    extended: bytes
    mask: U64
    altstack: bytes


class Patch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Code of the program at *address*, and what is to be there instead."""

    address: U64
    old: bytes
    new: bytes


class Recorder(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Routines of ours, *code* at *address*, that record what becomes of goroutines (`stepping.instance_ring`)."""

    address: U64
    code: bytes


class Begin(SpreadMessage, frozen=True):
    """Home to host, first: be host number *host*, blank. Answer `Ready`.

    regions: [start, size) of the memory that host 0 watches. keepalive_seconds: how long either side may say nothing,
    0 for ever. clock_offset_ns: by how much the program's monotonic clock is ahead of this host's. patches: what to
    change in its code. recorder: what records there; then say `Happened`.
    """

    host: HostId
    regions: tuple[tuple[U64, U64], ...]
    keepalive_seconds: float = 0.0
    clock_offset_ns: int = 0
    patches: tuple[Patch, ...] = ()
    recorder: Recorder | None = None


class TellClock(SpreadMessage, frozen=True):
    """Home to host, before `Begin`: answer `ClockIs`, at once."""


class ClockIs(SpreadMessage, frozen=True):
    """Host to home: its monotonic clock."""

    monotonic_ns: int


class Ready(SpreadMessage, frozen=True):
    """Host to home: the instance is there. error: why it is not, or empty. listening: for other hosts, if it does."""

    error: str = ""
    listening: Listening | None = None


class Alive(SpreadMessage, frozen=True):
    """Either to the other, when it has not been heard for a while. answer: say the same without it."""

    answer: bool


# Host to home.


class Fault(SpreadMessage, frozen=True):
    """A thread waits for *page*, which is not here, or, with *write*, is protected.

    access: the very address; tid: the thread, 0 if it is none of the program's.
    """

    page: PageNumber
    write: bool
    access: U64
    tid: ThreadId = 0


class Watched(SpreadMessage, frozen=True):
    """The answer to `Watch`. written: whether one of the pages is still written here."""

    turn: int
    written: bool


class Dropped(SpreadMessage, frozen=True):
    """The page is not here any more: the answer to `DropPage`."""

    page: PageNumber


class Words(SpreadMessage, frozen=True):
    """The answer to `ReadWords`."""

    request: RequestId
    data: bytes


class Done(SpreadMessage, frozen=True):
    """The answer to `Discard`, `Protect`, `AddRegion` or `SetAction`. error: a message, or empty."""

    request: RequestId
    error: str = ""


class Inventory(SpreadMessage, frozen=True):
    """The answer to `TakeInventory`: [page, CRC-32 of its content] for each that is here."""

    pages: tuple[tuple[PageNumber, int], ...]


class Called(SpreadMessage, frozen=True):
    """A thread is about to make a call, and is stopped.

    registers: its general register set, unless it is at host 0; sp: its stack pointer. word: what the futex has for
    which it waits, if that is here; else empty, and who is told has to ask.
    """

    tid: ThreadId
    number: U64
    args: tuple[U64, U64, U64, U64, U64, U64]
    registers: bytes
    sp: U64 = 0
    word: bytes = b""


class Woke(SpreadMessage, frozen=True):
    """A thread has called FUTEX_WAKE for *count* sleepers at *address*; it goes on already."""

    tid: ThreadId
    address: U64
    count: U64


class Executed(SpreadMessage, frozen=True):
    """The call of `Execute` has returned *result*, signed."""

    tid: ThreadId
    result: int


class Preempted(SpreadMessage, frozen=True):
    """A thread that computes is stopped; the home says how it goes on.

    signo: the signal by which Go's scheduler interrupts it, 0 if it was the home's `Stop`. goroutine: the address of
    the g that it runs, by its register; Go's own code may have something else there. sp: its stack pointer.
    """

    tid: ThreadId
    signo: int
    goroutine: U64
    sp: U64 = 0


class Strayed(SpreadMessage, frozen=True):
    """A thread elsewhere than at host 0 has touched what this host has not mapped; it is stopped before that."""

    tid: ThreadId


class Captured(SpreadMessage, frozen=True):
    """The answer to `Capture`: the thread does not run here any more. signals: those that waited for it."""

    tid: ThreadId
    state: ThreadState
    signals: tuple[int, ...] = ()


class SignalsWait(SpreadMessage, frozen=True):
    """Host 0: signals wait for the program as a whole, and no thread of it runs here that could take them."""


class ThreadBorn(SpreadMessage, frozen=True):
    """Host 0: the program has a new thread, which runs."""

    tid: ThreadId


class ThreadGone(SpreadMessage, frozen=True):
    """Host 0: a thread has ended."""

    tid: ThreadId


class ProgramExited(SpreadMessage, frozen=True):
    """Host 0: the program is gone; its raw wait status."""

    status: int


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A goroutine's status has changed, as a probe saw it at *at_ns* of the program's clock.

    tid: the thread on which; old, new: Go's numbers; goroutine: the address of its g, goid: its number, which a new
    one has not yet; by: the number of who does it, or 0; reason: Go's number of what it waits for; entry: the address
    of its first function; stack: of the code that does it, return addresses of 8 bytes, innermost first.
    """

    at_ns: U64
    tid: ThreadId
    old: int
    new: int
    goroutine: U64
    goid: U64
    by: U64
    reason: int
    entry: U64
    stack: bytes


class Happened(SpreadMessage, frozen=True):
    """Host to home, again and again if there is a recorder: what became of goroutines until *until_ns*.

    lost: how many changes are missing. After the last no earlier change will come, but for what a thread is just
    recording.
    """

    until_ns: U64
    changes: tuple[Change, ...] = ()
    lost: int = 0


# Home to host.


class ZeroPages(SpreadMessage, frozen=True):
    """*count* pages from *page* on are all zeros, and may be written."""

    page: PageNumber
    count: int


class AllowWrite(SpreadMessage, frozen=True):
    """The page that is here may be written now."""

    page: PageNumber


class TryAgain(SpreadMessage, frozen=True):
    """Who waits for the page has what is needed."""

    page: PageNumber


class Deny(SpreadMessage, frozen=True):
    """Nobody may touch the page: who waits for it gets SIGSEGV."""

    page: PageNumber


class DropPage(SpreadMessage, frozen=True):
    """Give up a page that is protected here: answer `Dropped`."""

    page: PageNumber


class Watch(SpreadMessage, frozen=True):
    """See whether any of *pages*, which may be written here, is, for a moment: answer `Watched`."""

    turn: int
    pages: tuple[PageNumber, ...]


class ReadWords(SpreadMessage, frozen=True):
    """Say what memory holds within one page that is here: answer `Words`."""

    request: RequestId
    address: U64
    size: int


class TakeInventory(SpreadMessage, frozen=True):
    """Say what pages are here: answer `Inventory`. For checks: takes some microseconds for each."""


class Discard(SpreadMessage, frozen=True):
    """Drop all pages in [start, end), addresses: answer `Done`."""

    request: RequestId
    start: U64
    end: U64


class Protect(SpreadMessage, frozen=True):
    """mprotect(2) [start, start + size): answer `Done`. tid: host 0's thread that is stopped in that call."""

    request: RequestId
    tid: ThreadId
    start: U64
    size: U64
    protection: int


class AddRegion(SpreadMessage, frozen=True):
    """Have memory at [start, start + size), empty: answer `Done`. tid: a thread that is stopped at host 0."""

    request: RequestId
    tid: ThreadId
    start: U64
    size: U64


class SetAction(SpreadMessage, frozen=True):
    """rt_sigaction(2) of the program: answer `Done`. action: struct sigaction as the kernel has it, 32 bytes."""

    request: RequestId
    signo: int
    action: bytes


class Return(SpreadMessage, frozen=True):
    """Let the thread's call return *result*, signed, without being made.

    after: when these of the pages have come that the host is to expect by now, or soon anyway.
    """

    tid: ThreadId
    result: int
    after: tuple[PageNumber, ...] = ()


class Proceed(SpreadMessage, frozen=True):
    """Let the thread go on as it was about to: make its call, or take its signal."""

    tid: ThreadId


class Execute(SpreadMessage, frozen=True):
    """Host 0: have the thread, which runs elsewhere, make the call that *registers* are about to make here."""

    tid: ThreadId
    registers: bytes


class Stop(SpreadMessage, frozen=True):
    """Stop the thread if it computes, and say so: `Preempted`. One that is in a call, or waits for a page, is left
    alone; with *busy* so is one that has computed only for some milliseconds since it came or was last asked about.
    """

    tid: ThreadId
    busy: bool = False


class Capture(SpreadMessage, frozen=True):
    """Take the stopped thread's state: answer `Captured`."""

    tid: ThreadId


class Start(SpreadMessage, frozen=True):
    """Have the thread go on here. result: what its call returns, if it was in one; held: it stays stopped."""

    tid: ThreadId
    state: ThreadState
    result: int | None = None
    held: bool = False


class Kill(SpreadMessage, frozen=True):
    """tgkill(2) the thread, which is here."""

    tid: ThreadId
    signo: int


class End(SpreadMessage, frozen=True):
    """The thread, stopped here, is over."""

    tid: ThreadId


class Quit(SpreadMessage, frozen=True):
    """End the instance."""


_OneToHome = (
    Ready
    | ClockIs
    | Alive
    | Fault
    | PagesData
    | Arrived
    | Dropped
    | Watched
    | Linked
    | Unlinked
    | Words
    | Done
    | Inventory
    | Called
    | Woke
    | Executed
    | Preempted
    | Strayed
    | Captured
    | Happened
    | SignalsWait
    | ThreadBorn
    | ThreadGone
    | ProgramExited
)
_OneToHost = (
    Begin
    | TellClock
    | Alive
    | SendPages
    | PutPages
    | Link
    | Unlink
    | PassPage
    | PassAgain
    | Settled
    | ExpectPage
    | ZeroPages
    | AllowWrite
    | TryAgain
    | Deny
    | DropPage
    | Watch
    | ReadWords
    | TakeInventory
    | Discard
    | Protect
    | AddRegion
    | SetAction
    | Return
    | Proceed
    | Execute
    | Stop
    | Capture
    | Start
    | Kill
    | End
    | Quit
)

ToHome = _OneToHome | Several[_OneToHome]
ToHost = _OneToHost | Several[_OneToHost]
