"""A server and a policy that hear of a spread program's goroutines; for `test_spread_events`."""

import sys
from collections.abc import Sequence

import msgspec

from ptserver.messages import GoroutineEvent
from ptserver.server import RuntimeServer, Session
from ptserver.spread.placement import GoroutineFacts, HostLoad

#: The function in which workers of `spread_workers` begin.
WORKER = "main.main.gowrap1"


class Places(RuntimeServer):
    """Writes down all events, and wants each worker where `host_of` says."""

    goroutine_events = ("create", "start", "block", "unblock", "exit", "move")

    def goroutine_event(self, session: Session, event: GoroutineEvent) -> int | None:
        session.log(msgspec.json.encode(event).decode())
        return host_of(event.goid) if (event.what, event.function) == ("create", WORKER) else None


class Policy:
    """Wants the same, and says for each worker once that it has moved there."""

    brings_back = False
    look_seconds = 0.0
    events: Sequence[str] = ("create", "move")

    def __init__(self) -> None:
        self._placed: set[int] = set()

    def place(self, goroutine: GoroutineFacts, loads: list[HostLoad]) -> int:
        return goroutine.here

    def event(self, event: GoroutineEvent, loads: list[HostLoad]) -> int | None:
        if event.function != WORKER:
            return None
        to = host_of(event.goid)
        if event.what == "move" and event.host == to and event.goid not in self._placed:
            self._placed.add(event.goid)
            print(event.goid, file=sys.stderr, flush=True)
        return to if event.what == "create" else None


def host_of(goid: int) -> int:
    """Return the host at which a worker is to run: host 1 or 2."""
    return 1 + goid % 2
