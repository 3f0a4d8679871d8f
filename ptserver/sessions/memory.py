"""The remote variables of a session's program: answers its memory messages.

The server's methods are asked first, then the variables that all sessions share.

Not trusted: the host. Names, offsets and sizes are checked where the variables are (`ptserver.remote_memory.shared`).
"""

from collections.abc import Callable
from typing import TypeAlias

from ptserver.messages import MemoryAtomic, MemoryDeclare, MemoryGet, MemoryResult, MemorySet, Message
from ptserver.net.poll_loop import may_wait_awake
from ptserver.net.urgency import be_urgent
from ptserver.remote_memory.shared import SharedVariables, VariableError
from ptserver.remote_memory.stores import ServedStore
from ptserver.server import RuntimeServer
from ptserver.session import Session
from stepping.remote_memory import RemoteVariable

MemoryMessage: TypeAlias = MemoryDeclare | MemoryGet | MemorySet | MemoryAtomic


class MemoryCalls:
    """Answers memory messages by *send*.

    flush: sends at once what was given to *send*. The thread that has made the access goes on then, and needs a
    processor: where there are few, this process does not stay awake for the next message.
    """

    def __init__(
        self,
        session: Session,
        server: RuntimeServer,
        variables: SharedVariables,
        send: Callable[[Message], None],
        flush: Callable[[], object],
    ) -> None:
        self._variables = variables
        self._store = ServedStore(server, session, variables)
        self._send = send
        self._flush = flush if not may_wait_awake() else _later
        self._named: dict[str, RemoteVariable] = {}

    def take(self, message: MemoryMessage) -> None:
        """Do what *message* asks for, and answer."""
        try:
            result = MemoryResult(message.id, self._do(message))
        except VariableError as error:
            result = MemoryResult(message.id, error=error.code)
        self._send(result)
        self._flush()
        self._variables.release()

    def _do(self, message: MemoryMessage) -> bytes:
        store, name = self._store, message.name
        if isinstance(message, MemoryDeclare):
            be_urgent()  # from now on, threads of the program wait for this process at each access
            value = store.declare(name, message.initial)
            self._named[name] = RemoteVariable(0, 0, name)
            return value
        store.asked_by(message.tid, message.goid, 0)
        variable = self._named.get(name) or RemoteVariable(0, 0, name)
        if isinstance(message, MemoryAtomic):
            return store.atomic(
                variable, message.offset, message.operation, message.operand, message.expected
            )
        if isinstance(message, MemoryGet):
            return store.get(variable, message.offset, message.size)
        store.set(variable, message.offset, message.data)
        return b""


def _later() -> None:
    """Let the session's loop send what there is to send, and stay awake."""
