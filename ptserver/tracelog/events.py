"""What happens to a traced program, as values. Who made them (listener, stops, ring) does not show.

Times are nanoseconds of CLOCK_MONOTONIC. `tid` and `pid` mean what they mean to ptrace(2).
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from stepping.syscalls import SYSCALLS, Arch, Arg, ArgKind, ResultKind, Syscall, SyscallClass

if TYPE_CHECKING:
    from ptserver.tracelog.batch import CallBatch

_NOTHING: Mapping[int, bytes] = {}


class Frame(NamedTuple):
    """One call on a goroutine's stack, innermost first. file and line are empty if nobody knows them."""

    function: str
    file: str = ""
    line: int = 0
    pc: int = 0


class SyscallEvent(NamedTuple):
    """A thread made a call.

    name: as in the syscall table; of a call that it lacks, any name, such as ``syscall_0x1f5``.
    duration_ns: how long it took, None if the thread was gone before it ended, or nobody measured.
    args: its registers, unsigned 64-bit; ins, outs: by argument index, the bytes that it read and filled, as
    far as they were taken. value: what it returned (signed), None if it did not; errno: 0 or the error.
    unfinished: the program ended while the call was going on.
    goid: the goroutine that made it, and stack where, if that is known.
    """

    start_ns: int
    duration_ns: int | None
    pid: int
    tid: int
    name: str
    args: Sequence[int]
    ins: Mapping[int, bytes] = _NOTHING
    outs: Mapping[int, bytes] = _NOTHING
    value: int | None = None
    errno: int = 0
    unfinished: bool = False
    goid: int | None = None
    stack: tuple[Frame, ...] = ()


class SignalEvent(NamedTuple):
    """A signal was delivered to a thread. info: its siginfo_t, or empty."""

    start_ns: int
    pid: int
    tid: int
    signo: int
    info: bytes = b""


class StopEvent(NamedTuple):
    """A thread was stopped by job control, with signal *signo*, and waits for a SIGCONT."""

    start_ns: int
    pid: int
    tid: int
    signo: int


class ThreadEvent(NamedTuple):
    """A thread was ``created`` or has ``exited``."""

    start_ns: int
    pid: int
    tid: int
    event: str


class ExitEvent(NamedTuple):
    """A process is gone. status: its exit status, or None if *signo* killed it; core: it left a core file."""

    start_ns: int
    pid: int
    tid: int
    status: int | None
    signo: int = 0
    core: bool = False


class GoEvent(NamedTuple):
    """Something became of a goroutine.

    what: ``create``, ``start`` (it runs now), ``block`` (it runs no more), ``unblock`` (it can run), ``exit``.
    goid: which; None if a new one has no number yet. by: the goroutine that did it to this one, if another did.
    reason: why it blocks, in Go's words; channel: the address of the channel that it blocks on, or 0; channels: of a
    select with several, all of them, but no more than 32.
    function: of a new one, what it will execute. stack: where it blocks, or where *by* creates or unblocks it.
    """

    start_ns: int
    pid: int
    tid: int
    what: str
    goid: int | None
    by: int | None = None
    reason: str = ""
    channel: int = 0
    function: str = ""
    stack: tuple[Frame, ...] = ()
    channels: tuple[int, ...] = ()


class GcEvent(NamedTuple):
    """The collector enters a phase: ``start``, ``mark termination``, ``sweep``, or the world stops or starts again.

    by: the goroutine that it happens on, if any.
    """

    start_ns: int
    pid: int
    tid: int
    phase: str
    by: int | None = None


class LossEvent(NamedTuple):
    """The source could not keep up: *lost* events that came before this are missing."""

    start_ns: int
    lost: int


Event: TypeAlias = (
    SyscallEvent | SignalEvent | StopEvent | ThreadEvent | ExitEvent | GoEvent | GcEvent | LossEvent
)


@lru_cache(maxsize=1024)
def row_of(name: str) -> Syscall:
    """Return the table's row of the call called *name*; for one that it does not have, six plain registers."""
    row = SYSCALLS.get(name)
    if row is not None:
        return row
    args = tuple(Arg(f"arg{number}", ArgKind.SIZE, decoder="hex") for number in range(1, 7))
    return Syscall(name, {}, SyscallClass.SYSTEM, False, args, ResultKind.INT, bound=True)


class TraceStart(NamedTuple):
    """What a whole trace has in common.

    monotonic_ns and realtime_ns: the same moment on both clocks, so that events can be dated.
    program: its arguments, or empty if it was attached to; pid: 0 if it is not known yet.
    """

    program: tuple[str, ...]
    arch: Arch
    monotonic_ns: int
    realtime_ns: int
    pid: int = 0

    @classmethod
    def now(cls, program: Sequence[str] = (), pid: int = 0, arch: Arch = "amd64") -> "TraceStart":
        """Return the start of a trace that begins now."""
        return cls(tuple(program), arch, time.monotonic_ns(), time.time_ns(), pid)


class TraceSink(Protocol):
    """Takes the events of one trace, in the order of their ends.

    Thread rules: all methods are called from one thread. None of them raises because of its output: what cannot
    be written is lost, and said once, since the program must not suffer from it.
    """

    def event(self, event: Event) -> None:
        """Take an event. May keep its output back until `flush`."""

    def calls(self, batch: "CallBatch") -> None:
        """Take many events at once. The same as an `event` for each of `batch.all_events()`, and quicker."""

    def flush(self) -> None:
        """Write what was kept back; the source calls it when nothing happens for some milliseconds."""

    def close(self) -> None:
        """Write all that is left. No event comes afterwards."""
