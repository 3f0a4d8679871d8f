"""What an operator's command and the home of a running spread program say to each other, over a Unix socket.

The command asks and the home answers each question once, in any order. Both are of one user on one machine.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from ptserver.messages import LongText, ShortText
from ptserver.spread.messages import U64, HostId, RequestId, SpreadMessage, ThreadId

#: How much memory one question may ask for.
MAX_PEEK_BYTES = 64 << 10


class HostRow(msgspec.Struct, frozen=True):
    """A host. condition: ready, joins or leaves; running: of its threads, those that do not sleep; pages: it has.

    straight: the hosts with which it has a connection.
    """

    host: HostId
    address: LongText
    condition: ShortText
    threads: int
    running: int
    pages: int
    straight: tuple[HostId, ...] = ()


class ThreadRow(msgspec.Struct, frozen=True):
    """A thread. doing: ``runs``, ``sleeps``, ``call NAME`` or ``moves``; goroutine: the address of its g, if known.

    moves, faults: how many so far. pinned: the program keeps it where it is (runtime/remote.Migrate).
    """

    tid: ThreadId
    host: HostId
    doing: ShortText
    goroutine: U64
    moves: int
    faults: int
    pinned: bool


class UnlinkedRow(msgspec.Struct, frozen=True, array_like=True):
    """Two hosts whose pages go through the home, because they have no connection with each other, and why."""

    host: HostId
    other: HostId
    reason: LongText


class FaultRow(msgspec.Struct, frozen=True, array_like=True):
    """How often threads have waited for memory at an address. tid: 0 if not a thread of the program's."""

    tid: ThreadId
    host: HostId
    address: U64
    write: bool
    count: int


class List(SpreadMessage, frozen=True):
    """Say what there is: answer `Listed`. faults: count them from now on, and tell those since the last `List`."""

    request: RequestId
    faults: bool = False


class Peek(SpreadMessage, frozen=True):
    """Say what the program's memory has: answer `Peeked`."""

    request: RequestId
    address: U64
    size: Annotated[int, Meta(ge=1, le=MAX_PEEK_BYTES)]


class Migrate(SpreadMessage, frozen=True):
    """Move a goroutine to a host: answer `Did` when it goes. See `ptserver.spread.wishes.Wish`."""

    request: RequestId
    goroutine: U64
    goid: U64
    goid_at: U64
    tid: ThreadId
    curg_at: U64
    to: HostId


class Drain(SpreadMessage, frozen=True):
    """Move everything off a host and let it go: answer `Did`."""

    request: RequestId
    host: HostId


class Join(SpreadMessage, frozen=True):
    """Take another host: answer `Did`. keys, token_file: as for `ptserver run --spread`, or empty."""

    request: RequestId
    address: LongText
    keys: LongText = ""
    token_file: LongText = ""


class Listed(SpreadMessage, frozen=True):
    """The answer to `List`. path: the program's file; counts: what pages did, by kind.

    moves: of threads; unadapted: names of adaptations for which the program's code is not as expected; faults: at
    most some thousand, the most frequent. unlinked: the hosts whose pages do not go straight.
    """

    request: RequestId
    pid: int
    path: LongText
    hosts: tuple[HostRow, ...]
    threads: tuple[ThreadRow, ...]
    counts: dict[str, int]
    moves: int
    unadapted: tuple[LongText, ...]
    faults: tuple[FaultRow, ...] = ()
    unlinked: tuple[UnlinkedRow, ...] = ()


class Peeked(SpreadMessage, frozen=True):
    """The answer to `Peek`. mapped: whether the program may touch it; data is empty otherwise."""

    request: RequestId
    data: bytes
    mapped: bool = True


class Did(SpreadMessage, frozen=True):
    """The answer to what was to be done. error: why it was not, or empty; host: the one that joined."""

    request: RequestId
    error: LongText = ""
    host: HostId = 0


FromOperator = List | Peek | Migrate | Drain | Join
ToOperator = Listed | Peeked | Did
