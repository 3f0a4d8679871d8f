"""What becomes of goroutines, as events made from a ring's records; and which probes that takes.

A goroutine gets its number after a probe sees that it was created. So its creation is told when the number is known,
which is when it is next seen.

Source: runtime/runtime2.go (statuses), runtime/proc.go in Go 1.21 to 1.27.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from ptserver.tracelog.events import Event, Frame, GcEvent, GoEvent, SyscallEvent
from ptserver.tracelog.frame_names import FrameNames
from stepping.ring_batch import RingBatch
from stepping.ring_probes import FIRST_EVENT, Moment, Probes, find_probes
from stepping.ring_site import NoRingError
from stepping.syscalls.table import SYSCALLS

#: What `--events` can ask for.
KINDS = ("create", "start", "block", "unblock", "exit", "gc")

_RUNNABLE, _RUNNING, _SYSCALL, _WAITING, _DEAD, _PREEMPTED = 1, 2, 3, 4, 6, 9
_CHANGES: dict[tuple[int, int], str] = {
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
_PHASES = {
    Moment.GC_START: "start",
    Moment.GC_MARK_TERMINATION: "mark termination",
    Moment.GC_SWEEP: "sweep",
    Moment.STOP_THE_WORLD: "stop the world",
    Moment.START_THE_WORLD: "start the world",
}
_WITH_STACK = frozenset({"create", "block", "unblock"})
#: Wait reasons of channels: only for them is the channel that a record names the one that is waited for.
_CHANNEL_REASONS = ("chan ", "select")
_YIELDS = ("runtime.Gosched", "runtime.goschedguarded", "runtime.goyield")


def wanted_changes(kinds: Collection[str]) -> set[tuple[int, int]]:
    """Return the changes of status, old and new, that must be recorded for these kinds of events."""
    wanted = {change for change, kind in _CHANGES.items() if kind in kinds}
    if "create" in kinds:  # where a new goroutine is seen next
        wanted |= {(_RUNNABLE, _RUNNING), (_WAITING, _RUNNING), (_WAITING, _RUNNABLE)}
    return wanted


def wanted_moments(kinds: Collection[str]) -> set[Moment]:
    """Return the functions of the runtime that must be recorded."""
    return set(_PHASES) if "gc" in kinds else set()


class RuntimeWanted(NamedTuple):
    """What is wanted of Go's runtime itself. calls: names of syscalls that it makes by itself; events: of `KINDS`."""

    calls: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()

    def find_probes(self, path: str) -> Probes | None:
        """Return the probes for the program in a file; None if nothing is wanted.

        Raises:
            NoRingError: they cannot be found in it.
        """
        if not self.calls and not self.events:
            return None
        numbers = {
            number
            for name in self.calls
            for number in (SYSCALLS[name].numbers.get("amd64"),)
            if number is not None
        }
        try:
            with GoBinary.open(path, prefer_table=True) as binary:
                return find_probes(
                    binary,
                    numbers=numbers,
                    transitions=wanted_changes(self.events),
                    moments=wanted_moments(self.events),
                )
        except (OSError, GoAbiError) as error:
            raise NoRingError(f"its runtime's functions cannot be found: {error}") from error


class GoEvents:
    """Makes events of one program's records. kinds: those that are wanted; wait_reasons: the runtime's texts."""

    def __init__(self, kinds: Collection[str], wait_reasons: Sequence[str], names: FrameNames) -> None:
        self._kinds = frozenset(kinds)
        self._reasons = wait_reasons
        self._names = names
        self._created: dict[int, GoEvent] = {}

    def merged(self, batch: RingBatch, calls: RingBatch, events: Sequence[SyscallEvent]) -> Iterator[Event]:
        """Return all events of *batch* in their order. calls: its calls that are wanted; events: those as events."""
        by_sequence = dict(zip(calls.sequences, events, strict=True))
        records = dict(zip(self._indexes(batch), self._records(batch), strict=True))
        for index, sequence in enumerate(batch.sequences):
            if sequence in by_sequence:
                yield by_sequence[sequence]
            elif index in records:
                yield from records[index]

    def rest(self) -> Iterator[Event]:
        """Return the creations that have still no number: of goroutines that never ran."""
        yield from self._created.values()
        self._created.clear()

    def close(self) -> None:
        """Give up the program's file."""
        self._names.close()

    @staticmethod
    def _indexes(batch: RingBatch) -> list[int]:
        return [index for index, number in enumerate(batch.numbers) if number >= FIRST_EVENT]

    def _records(self, batch: RingBatch) -> Iterator[list[Event]]:
        args = [batch.args(index) for index in range(6)]
        for index in self._indexes(batch):
            start_ns, tid, by = batch.start_ns[index], batch.tids[index], batch.goids[index] or None
            number = batch.numbers[index]
            if number != Moment.STATUS:
                phase = _PHASES[Moment(number)] if number in _PHASES else hex(number)
                yield [GcEvent(start_ns, batch.pid, tid, phase, by)]
                continue
            g, old, new, reason, channel, entry = (column[index] for column in args)
            made: list[Event] = []
            kind = _CHANGES.get((old, new), "")
            goid = batch.values[index] if kind != "create" else None
            created = self._created.pop(g, None)
            if created is not None and goid is not None:
                made.append(created._replace(goid=goid))
            if kind in self._kinds:
                stack = self._names(batch.stacks[index]) if kind in _WITH_STACK else ()
                text = self._reason(reason, (old, new), stack) if kind == "block" else ""
                waits_for = channel if text.startswith(_CHANNEL_REASONS) else 0
                function = self._names.function_at(entry) if kind == "create" else ""
                event = GoEvent(
                    start_ns,
                    batch.pid,
                    tid,
                    kind,
                    goid,
                    by if by != goid else None,
                    text,
                    waits_for,
                    function,
                    stack,
                )
                if kind == "create":
                    self._created[g] = event
                else:
                    made.append(event)
            yield made

    def _reason(self, number: int, change: tuple[int, int], stack: tuple[Frame, ...]) -> str:
        if change == (_SYSCALL, _RUNNABLE):
            return "no processor after a syscall"
        if change[1] == _RUNNABLE:
            yields = bool(stack) and stack[0].function.startswith(_YIELDS)
            return "yielded" if yields else "preempted"
        return self._reasons[number] if number < len(self._reasons) else str(number)
