"""What becomes of goroutines, as events made from a ring's records; and which probes that takes.

A goroutine gets its number after a probe sees that it was created. So its creation is told when the number is known,
which is when it is next seen.

Source: runtime/runtime2.go (statuses), runtime/proc.go in Go 1.21 to 1.27.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from ptserver.tracelog.batch import CallBatch, Wait
from ptserver.tracelog.events import Event, Frame, GcEvent, GoEvent
from ptserver.tracelog.frame_names import FrameNames
from stepping.ring_batch import RingBatch
from stepping.ring_probes import FIRST_EVENT, Moment, Probes, find_probes
from stepping.ring_site import NoRingError
from stepping.syscalls.table import SYSCALLS

#: What `--events` can ask for.
KINDS = ("create", "start", "block", "unblock", "exit", "gc")

_RUNNABLE, _RUNNING, _SYSCALL, _WAITING, _DEAD, _PREEMPTED = 1, 2, 3, 4, 6, 9
#: What a change of a goroutine's status, old and new, is called.
CHANGES: dict[tuple[int, int], str] = {
    (_DEAD, _RUNNABLE): "create",
    (_DEAD, _WAITING): "create",
    (_RUNNABLE, _RUNNING): "start",
    (_WAITING, _RUNNING): "start",
    (_RUNNING, _WAITING): "block",
    (_RUNNING, _RUNNABLE): "block",
    (_SYSCALL, _RUNNABLE): "block",
    (_WAITING, _RUNNABLE): "unblock",
    (_PREEMPTED, _RUNNABLE): "unblock",
    (_RUNNING, _DEAD): "exit",
}
_PHASES: dict[int, str] = {
    Moment.GC_START: "start",
    Moment.GC_MARK_TERMINATION: "mark termination",
    Moment.GC_SWEEP: "sweep",
    Moment.STOP_THE_WORLD: "stop the world",
    Moment.START_THE_WORLD: "start the world",
}
#: The changes between which a goroutine waits for something, and its end.
WAIT_CHANGES = frozenset(
    {(_RUNNING, _WAITING), (_WAITING, _RUNNABLE), (_WAITING, _RUNNING), (_RUNNING, _DEAD)}
)
#: The kinds of events that tell how long goroutines wait, and reasons for a `block` that is no wait.
WAIT_KINDS = frozenset({"start", "block", "unblock", "exit"})
_NO_PROCESSOR, _YIELDED, _PREEMPTED_REASON = "no processor after a syscall", "yielded", "preempted"
_NO_WAITS = frozenset({_NO_PROCESSOR, _YIELDED, _PREEMPTED_REASON})
_WITH_STACK = frozenset({"create", "block", "unblock"})
#: Wait reasons of channels: only for them is the channel that a record names the one that is waited for.
_CHANNEL_REASONS = ("chan ", "select")
_YIELDS = ("runtime.Gosched", "runtime.goschedguarded", "runtime.goyield")


def wanted_changes(kinds: Collection[str]) -> set[tuple[int, int]]:
    """Return the changes of status, old and new, that must be recorded for these kinds of events."""
    wanted = {change for change, kind in CHANGES.items() if kind in kinds}
    if "create" in kinds:  # where a new goroutine is seen next
        wanted |= {(_RUNNABLE, _RUNNING), (_WAITING, _RUNNING), (_WAITING, _RUNNABLE)}
    return wanted


def wanted_moments(kinds: Collection[str]) -> set[Moment]:
    """Return the functions of the runtime that must be recorded."""
    return set(map(Moment, _PHASES)) if "gc" in kinds else set()


class RuntimeWanted(NamedTuple):
    """What is wanted of Go's runtime itself.

    calls: names of syscalls that it makes by itself; events: of `KINDS`; waits: how long goroutines wait.
    """

    calls: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    waits: bool = False

    @property
    def needs_ring(self) -> bool:
        """Whether only the ring can tell."""
        return bool(self.events) or self.waits

    @property
    def all_events(self) -> frozenset[str]:
        """The events that a source must tell of which knows waits by them alone."""
        return self.events | WAIT_KINDS if self.waits else self.events

    def find_probes(self, path: str) -> Probes | None:
        """Return the probes for the program in a file; None if nothing is wanted.

        Raises:
            NoRingError: they cannot be found in it.
        """
        if not self.calls and not self.needs_ring:
            return None
        numbers = {
            number
            for name in self.calls
            for number in (SYSCALLS[name].numbers.get("amd64"),)
            if number is not None
        }
        changes = wanted_changes(self.events)
        try:
            with GoBinary.open(path, prefer_table=True) as binary:
                return find_probes(
                    binary,
                    numbers=numbers,
                    transitions=changes | WAIT_CHANGES if self.waits else changes,
                    moments=wanted_moments(self.events),
                )
        except (OSError, GoAbiError) as error:
            raise NoRingError(f"its runtime's functions cannot be found: {error}") from error


def block_reason(reasons: Sequence[str], number: int, change: tuple[int, int], stack: Sequence[Frame]) -> str:
    """Return why a goroutine blocks by *change*: *number* is its wait reason among *reasons*, *stack* where it is."""
    if change == (_SYSCALL, _RUNNABLE):
        return _NO_PROCESSOR
    if change[1] == _RUNNABLE:
        yields = bool(stack) and stack[0].function.startswith(_YIELDS)
        return _YIELDED if yields else _PREEMPTED_REASON
    return reasons[number] if number < len(reasons) else str(number)


class GoEvents:
    """Makes events of one program's records. kinds: those that are wanted; wait_reasons: the runtime's texts.

    waits: whether batches get `CallBatch.waits`.
    """

    def __init__(
        self, kinds: Collection[str], wait_reasons: Sequence[str], names: FrameNames, *, waits: bool = False
    ) -> None:
        self._kinds = frozenset(kinds)
        self._reasons = wait_reasons
        self._names = names
        self._waits = waits
        self._created: dict[int, GoEvent] = {}

    def merge(self, batch: RingBatch, calls: CallBatch) -> CallBatch:
        """Return *calls*, those of *batch* that are wanted, with all that *batch* holds besides."""
        sequences, position, count = calls.records.sequences, 0, calls.records.size
        others: list[tuple[int, Event]] = []
        for sequence, event in self._events(batch):
            while position < count and sequences[position] < sequence:
                position += 1
            others.append((position, event))
        waits = list(read_waits(batch)) if self._waits else ()
        return calls._replace(others=others, waits=waits)

    def rest(self) -> Iterator[Event]:
        """Return the creations that have still no number: of goroutines that never ran."""
        yield from self._created.values()
        self._created.clear()

    def close(self) -> None:
        """Give up the program's file."""
        self._names.close()

    def _events(self, batch: RingBatch) -> Iterator[tuple[int, Event]]:
        """Return what the records of probes tell, each with its record's sequence."""
        kinds, created, names, new_event = self._kinds, self._created, self._names, tuple.__new__
        pid, sequences, starts, tids = batch.pid, batch.sequences, batch.start_ns, batch.tids
        gs, olds, news, reasons, channels, entries = (batch.args(index) for index in range(6))
        numbers, goids, by_whom, stacks = batch.numbers, batch.values, batch.goids, batch.stacks
        for index in _of_probes(batch):
            sequence = sequences[index]
            by = by_whom[index] or None
            if numbers[index] != Moment.STATUS:
                phase = _PHASES.get(numbers[index]) or hex(numbers[index])
                yield sequence, GcEvent(starts[index], pid, tids[index], phase, by)
                continue
            change = olds[index], news[index]
            kind = CHANGES.get(change, "")
            goid = None if kind == "create" else goids[index]
            if created and goid is not None:
                known = created.pop(gs[index], None)
                if known is not None:
                    yield sequence, known._replace(goid=goid)
            if kind not in kinds:
                continue
            stack = names(stacks[index]) if kind in _WITH_STACK else ()
            reason, channel, function = "", 0, ""
            more: tuple[int, ...] = ()
            if kind == "block":
                reason = block_reason(self._reasons, reasons[index], change, stack)
                if reason.startswith(_CHANNEL_REASONS):
                    channel, more = channels[index], _several(batch, index)
            elif kind == "create":
                function = names.function_at(entries[index])
            if by == goid:
                by = None
            fields = (starts[index], pid, tids[index], kind, goid, by, reason, channel, function, stack, more)
            event = new_event(GoEvent, fields)
            if kind == "create":
                created[gs[index]] = event
            else:
                yield sequence, event


def read_waits(batch: RingBatch) -> Iterator[Wait]:
    """Return when goroutines began to wait and were done with it, as *batch* says; quicker than as events."""
    starts, goids, numbers = batch.start_ns, batch.values, batch.numbers
    olds, news = batch.args(1), batch.args(2)
    for index in _of_probes(batch):
        change = olds[index], news[index]
        if numbers[index] == Moment.STATUS and change in WAIT_CHANGES:
            waits, ended = change == (_RUNNING, _WAITING), change == (_RUNNING, _DEAD)
            yield Wait(goids[index], starts[index], waits, ended)


class WaitsOfEvents:
    """Makes waits of events, of which all `WAIT_KINDS` must be given, in their order; where there are no records."""

    def __init__(self) -> None:
        self._waiting: set[int] = set()

    def take(self, event: GoEvent) -> Wait | None:
        """Return the wait that begins or ends with *event*, if one does."""
        goid = event.goid
        if goid is None or event.what == "create" or event.reason in _NO_WAITS:
            return None
        if event.what == "block":
            self._waiting.add(goid)
        elif event.what == "start" and goid not in self._waiting:
            return None  # it was ready to run
        else:
            self._waiting.discard(goid)
        return Wait(goid, event.start_ns, event.what == "block", event.what == "exit")


def _of_probes(batch: RingBatch) -> list[int]:
    return [index for index, number in enumerate(batch.numbers) if number >= FIRST_EVENT]


def _several(batch: RingBatch, index: int) -> tuple[int, ...]:
    """Return the channels that a record has, if there are several."""
    (data,) = batch.data((index,), 0)
    words = memoryview(data[: len(data) & -8]).cast("Q").tolist()
    return tuple(words) if len(words) > 1 else ()
