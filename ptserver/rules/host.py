"""The stub host of a program some of whose resources are this machine's, see `ptserver.rules.resources`."""

from typing import Any, ClassVar

from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.remote import RemoteHost
from ptserver.hosts.to_user import say
from ptserver.machine import native_arch
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
        self._local = LocalResources(
            self._rules, server, self._loop, self._main, native_arch(), self._mappings.map_own
        )

    def _forward(self, call: PendingCall) -> None:
        if not self._local.take(call):
            super()._forward(call)

    def _answer(self, call: PendingCall, value: int, error: int, outs: dict[int, bytes]) -> None:
        self._local.heard(call, value, error)
        super()._answer(call, value, error, outs)

    def _abandon(self, call: PendingCall) -> None:
        self._local.abandon(call)
        super()._abandon(call)

    def _process_ended(self, process: Process) -> None:
        super()._process_ended(process)
        self._local.ended(process)
