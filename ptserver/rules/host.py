"""The stub host of a program some of whose resources are this machine's, see `ptserver.rules.resources`."""

from typing import Any, ClassVar

from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.remote import RemoteHost
from ptserver.hosts.to_user import say
from ptserver.machine import native_arch
from ptserver.messages import FIRST_RELAY, StreamCredit, StreamData, StreamEnd, ToHost
from ptserver.rules.relays import HostRelays
from ptserver.rules.resources import LocalResources
from ptserver.rules.rules import Rules
from ptserver.rules.server import Server


def host_by(rules: Rules) -> type[RemoteHost]:
    """Return the class of a host that serves what *rules* say is local, and has the server do the rest."""

    class ByRules(_RulesHost):
        _rules = rules

    return ByRules


class _RulesHost(RemoteHost):
    _rules: ClassVar[Rules]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        server = Server(self._ids, self._asked, self._tell, self._answer, super()._forward, say)
        self._relays = HostRelays(self._loop, self._tell)
        self._local = LocalResources(
            self._rules,
            server,
            self._loop,
            self._main,
            native_arch(),
            self._mappings.map_own,
            self._relays if self._welcome.relays else None,
        )
        if self._children is not None:
            self._children.born = self._local.born

    def run(self) -> int:
        """Serve the program until it is gone and its output, and that of what it executed, is delivered."""
        status = super().run()
        self._relays.stop()
        while self._relays.is_writing:
            self._round()
        return status

    def _forward(self, call: PendingCall) -> None:
        if not self._local.take(call):
            super()._forward(call)

    def _answer(self, call: PendingCall, value: int, error: int, outs: dict[int, bytes]) -> None:
        self._local.heard(call, value, error)
        super()._answer(call, value, error, outs)

    def _abandon(self, call: PendingCall) -> None:
        self._local.abandon(call)
        super()._abandon(call)

    def _take(self, message: ToHost) -> None:
        match message:
            case StreamData() | StreamCredit() | StreamEnd() if message.stream >= FIRST_RELAY:
                self._relays.take(message)
            case _:
                super()._take(message)

    def _lose(self, reason: str) -> None:
        super()._lose(reason)
        self._relays.stop()

    def _before_waiting(self) -> None:
        super()._before_waiting()
        if self._wait_status is not None:
            self._relays.leave()
        self._relays.watch(congested=self._congested)

    def _process_ended(self, process: Process) -> None:
        super()._process_ended(process)
        self._local.ended(process)
