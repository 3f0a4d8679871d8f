"""What becomes of the goroutines of a program that a host serves: by a ring that the host puts into it.

The ring has probes only; the program's calls are the host's own matter, but for those of Go's runtime, which the ring
tells from others. It is made without any call that the host would have to answer (`Ring.attach`, not mapped), for the
host waits meanwhile: a millisecond or two. It stays in the program to its end; when nobody wants events any more, its
probes for goroutines record nothing. Those for the runtime's calls are only put in if the first who wants the ring
wants them; then they record to the end.

Unless the host is root's, events of the last moments before the program ends may be lost with it. Thread rules: those
of the host.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable

from goabi.errors import GoAbiError
from ptserver.errors import PtServerError
from ptserver.inspection.guest import find_guest
from ptserver.net.poll_loop import PollLoop
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, GcEvent, GoEvent, LossEvent
from ptserver.tracelog.frame_names import FrameNames
from ptserver.tracelog.go_events import KINDS, WAIT_CHANGES, GoEvents, RuntimeWanted, wanted_changes
from stepping.errors import SteppingError
from stepping.ring import BATCH, Ring
from stepping.ring_site import find_site

_BUSY_SECONDS, _IDLE_SECONDS = 0.005, 0.04
_SLOTS = 1 << 13

Take = Callable[[CallBatch], None]


class NoEventsError(PtServerError):
    """Events of the program's goroutines cannot be had; the message says why."""

    exit_status = 69


class HostGoEvents:
    """Reads the events of process *pid* and gives them to *take*, whenever there are some; `want` says which.

    own_id: what the program takes its first thread's number for; calls: those that its runtime makes by itself that
    are wanted, too. since_ns: from when on events are complete.

    Raises:
        NoEventsError: the program cannot have a ring.
    """

    def __init__(
        self, pid: int, own_id: int, loop: PollLoop, take: Take, *, calls: Collection[str] = ()
    ) -> None:
        if find_guest(pid) is not None:
            raise NoEventsError(
                "events of goroutines cannot be had: the program is emulated; where it runs, `ptserver run --trace "
                "--events` logs them"
            )
        path = f"/proc/{pid}/exe"
        runtime = RuntimeWanted(frozenset(calls), frozenset(KINDS), waits=True)
        try:
            site = find_site(pid, with_c_code=True)
            probes = runtime.find_probes(path)
            assert probes is not None
            names = FrameNames(path)
            self._ring = Ring.attach(
                pid,
                (),
                slots=_SLOTS,
                site=site,
                probes=probes._replace(transitions=frozenset()),
                mapped=False,
            )
        except (SteppingError, GoAbiError, OSError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise NoEventsError(f"events of goroutines cannot be had: {reason}") from error
        names.load_bias = site.load_bias
        self._go = GoEvents(KINDS, probes.wait_reasons, names, waits=True)
        self._all = probes.transitions
        self._pid, self._own_id = pid, own_id
        self._loop = loop
        self._take = take
        self._lost = 0
        self._closed = self._wanted = self._reads = False
        self.calls = frozenset(calls)
        self.since_ns = time.monotonic_ns()

    def want(self, kinds: Collection[str], *, calls: bool) -> None:
        """Have events of these kinds from now on, and all waits if there are any; none, if *kinds* is empty.

        calls: whether somebody wants the runtime's calls.
        """
        changes = wanted_changes(kinds) | WAIT_CHANGES if kinds else frozenset()
        self._ring.want(changes & self._all)
        self._wanted = bool(kinds) or calls
        if self._wanted and not self._reads:
            self._reads = True
            if self.calls:
                self._skip()
            self._loop.later(_BUSY_SECONDS, self._read)

    def finish(self) -> None:
        """Read what the program, which has ended, has left."""
        if self._wanted and not self._closed:
            self._read_all(final=True)
            rest = [(0, event) for event in self._go.rest()]
            self._take(CallBatch(self._ring.empty_batch())._replace(others=rest))

    def close(self) -> None:
        """Read what is left, and give up the memory; the ring goes with the program."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(SteppingError):
                self._read_all()
            self._ring.close()
            self._go.close()

    def _skip(self) -> None:
        """Leave out what was recorded while nobody wanted it."""
        while self._ring.read_batch() is not None:
            pass
        self._lost = self._ring.lost

    def _read(self) -> None:
        if self._closed:
            return
        seconds = _BUSY_SECONDS if self._read_all() else _IDLE_SECONDS
        self._reads = self._wanted
        if self._reads:
            self._loop.later(seconds, self._read)

    def _thread(self, number: int) -> int:
        """Return a thread's number here."""
        return self._pid if number == self._own_id else number

    def _read_all(self, *, final: bool = False) -> bool:
        """Hand on what there is, but not for ever; return whether there was anything.

        final: as in `Ring.read_batch`.
        """
        found = False
        for _ in range(_SLOTS // BATCH):
            batch = self._ring.read_batch(final=final)
            if batch is None:
                break
            found = True
            batch.number_threads(self._thread)
            self._take(self._go.merge(batch, CallBatch(batch.calls())))
        if self._ring.lost > self._lost:
            lost, self._lost = self._ring.lost - self._lost, self._ring.lost
            nothing = CallBatch(self._ring.empty_batch())
            self._take(nothing._replace(others=[(0, LossEvent(time.monotonic_ns(), lost))]))
        return found


def of_kinds(events: Iterable[tuple[int, Event]], kinds: Collection[str]) -> list[tuple[int, Event]]:
    """Return those of *events* that are of these kinds, and losses."""
    return [
        (index, event)
        for index, event in events
        if type(event) is LossEvent
        or (type(event) is GoEvent and event.what in kinds)
        or (type(event) is GcEvent and "gc" in kinds)
    ]
