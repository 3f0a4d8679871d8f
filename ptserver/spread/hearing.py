"""What it takes that somebody hears of a spread program's goroutines: probes at all hosts, and who hears."""

from typing import Self

from goabi.errors import GoAbiError
from ptserver.errors import PtServerError
from ptserver.net.poll_loop import PollLoop
from ptserver.spread.deciders import HearingPlacement, PolicyDecider, ServerDecider
from ptserver.spread.event_reader import EventReader
from ptserver.spread.goroutine_events import KINDS, Decider, GoroutineEvents
from ptserver.spread.home import Home
from ptserver.spread.host_pages import Emit
from ptserver.spread.messages import Patch, Recorder
from ptserver.spread.placement import Placement
from ptserver.spread.server_link import ServerLink
from ptserver.tracelog.frame_names import FrameNames
from ptserver.tracelog.go_events import RuntimeWanted
from stepping.errors import SteppingError
from stepping.instance import Instance
from stepping.instance_ring import InstanceRing, plan_ring, put_ring
from stepping.ring_probes import Probes

_RECORDED = frozenset(KINDS) - {"move"}


class NoEventsError(PtServerError):
    """The program cannot tell of its goroutines; the message says why."""

    exit_status = 69


class Hearing:
    """Who hears of the program's goroutines, and what records there. Close it."""

    def __init__(
        self, server: ServerDecider | ServerLink | None, ring: InstanceRing, probes: Probes, names: FrameNames
    ) -> None:
        self._server = server
        self._ring = ring
        self._probes = probes
        self._names = names
        self._reader: EventReader | None = None
        self.recorder = Recorder(ring.address, ring.code)
        self.patches = tuple(Patch(each.address, each.original, each.patched) for each in ring.patches)

    @classmethod
    def of(cls, instance: Instance, path: str, server: ServerDecider | ServerLink | None) -> Self:
        """Return what is needed for the program at *path*, of which *instance* has not run yet.

        Raises:
            NoEventsError: it has no place for probes.
        """
        try:
            probes = RuntimeWanted(events=_RECORDED).find_probes(path)
            assert probes is not None
            if not probes.entries:
                raise NoEventsError(
                    f"events of goroutines cannot be had: {path} has no casgstatus that is known"
                )
            names = FrameNames(path)
            ring = plan_ring(instance, probes)
        except (SteppingError, GoAbiError, OSError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise NoEventsError(f"events of goroutines cannot be had: {reason}") from error
        names.load_bias = ring.load_bias
        return cls(server, ring, probes, names)

    def begin(
        self,
        home: Home,
        instance: Instance,
        emit: Emit,
        loop: PollLoop,
        placement: Placement,
        keepalive_seconds: float,
    ) -> None:
        """Have host 0 record, and *home* tell who hears. emit: says something to the home for host 0."""
        reader = put_ring(instance, *self._ring[:2])
        for patch in self.patches:
            instance.change_code(patch.address, patch.old, patch.new)
        self._reader = EventReader(reader, emit, loop.later, 0)
        deciders: list[Decider] = []
        if isinstance(placement, HearingPlacement):
            deciders.append(PolicyDecider(placement, home.loads))
        if self._server is not None:
            deciders.append(self._server)
        events = home.events = GoroutineEvents(
            self._names,
            self._probes.wait_reasons,
            self._ring.goid_offset,
            home.threads,
            home.wishes,
            home.members.is_ready,
            home.members.present,
            deciders,
        )
        if isinstance(self._server, ServerLink):
            self._server.begin(loop, events.place, keepalive_seconds)
        elif self._server is not None:
            self._server.begin()

    def finish(self) -> None:
        """Have host 0 tell the last."""
        if self._reader is not None:
            self._reader.finish()

    def end(self, status: int | None) -> None:
        """Tell who hears that the program has ended. status: its raw wait status, None if it is not known."""
        server, self._server = self._server, None
        if server is not None:
            server.end(status)

    def close(self) -> None:
        """Give up the program's file, and the server."""
        self.end(None)
        self._names.close()
