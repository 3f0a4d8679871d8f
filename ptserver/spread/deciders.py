"""Who hears of goroutines in the home's own process: a policy of the user's, or a server."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

from ptserver.errors import ServerMistakeError
from ptserver.hosts.endings import exit_of
from ptserver.messages import GoroutineEvent
from ptserver.server import RuntimeServer
from ptserver.session import Session
from ptserver.spread.goroutine_events import Place
from ptserver.spread.placement import HostLoad


@runtime_checkable
class HearingPlacement(Protocol):
    """A policy that hears of goroutines, too. events: of which events, of `goroutine_events.KINDS`."""

    events: Collection[str]

    def event(self, event: GoroutineEvent, loads: list[HostLoad]) -> int | None:
        """Return the host at which the goroutine is to run, or None to leave that as it is."""


class PolicyDecider:
    """Asks a policy."""

    def __init__(self, policy: HearingPlacement, loads: Callable[[], list[HostLoad]]) -> None:
        self.kinds = frozenset(policy.events)
        self._policy = policy
        self._loads = loads

    def take(self, events: Sequence[GoroutineEvent], lost: int, place: Place) -> None:
        """Ask about each event."""
        loads = self._loads()
        for event in events:
            host = self._policy.event(event, loads)
            if host is not None:
                place(event.goid, host)


class ServerDecider:
    """Asks a server of this process; `begin` and `end` call its other hooks."""

    def __init__(self, server: RuntimeServer, session: Session) -> None:
        self.kinds = frozenset(server.goroutine_events)
        self._server = server
        self._session = session

    def begin(self) -> None:
        """Tell it that a program begins."""
        self._call("session_started")

    def take(self, events: Sequence[GoroutineEvent], lost: int, place: Place) -> None:
        """Ask about each event.

        Raises:
            ServerMistakeError: the server failed.
        """
        if lost:
            self._session.log(f"{lost} events of goroutines are missing")
        try:
            for event in events:
                host = self._server.goroutine_event(self._session, event)
                if host is not None:
                    place(event.goid, host)
        except Exception as error:
            raise ServerMistakeError.of(type(self._server), "goroutine_event", error) from error

    def end(self, status: int | None) -> None:
        """Tell it that the program is gone: with the raw wait status, or None if that is not known."""
        if status is not None:
            self._call("exited", *exit_of(status))
        self._call("session_ended")

    def _call(self, name: str, *arguments: object) -> None:
        try:
            getattr(self._server, name)(self._session, *arguments)
        except Exception as error:
            raise ServerMistakeError.of(type(self._server), name, error) from error
