"""The remote variables of a session's program: answers its memory messages.

The server's methods are asked first, then the variables that all sessions share.

Not trusted: the host. Names, offsets and sizes are checked where the variables are (`ptserver.remote_memory.shared`).
"""

from collections.abc import Callable

from ptserver.messages import MemoryAtomic, MemoryDeclare, MemoryGet, MemoryResult, MemorySet, Message
from ptserver.net.poll_loop import may_wait_awake
from ptserver.net.urgency import be_urgent
from ptserver.remote_memory.shared import SharedVariables, VariableError
from ptserver.remote_memory.stores import ServedStore
from ptserver.server import RuntimeServer
from ptserver.session import Session
from stepping.remote_memory import RemoteVariable


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
        self._store = ServedStore(server, session, variables)
        self._send = send
        self._flush = flush if not may_wait_awake() else _later

    def take_declare(self, message: MemoryDeclare) -> None:
        """Have the variable; from now on, threads of the program wait for this process at each access."""
        be_urgent()
        self._answer(message.id, lambda: self._store.declare(message.name, message.initial))

    def take_get(self, message: MemoryGet) -> None:
        """Read."""
        variable = self._named(message)
        self._answer(message.id, lambda: self._store.get(variable, message.offset, message.size))

    def take_set(self, message: MemorySet) -> None:
        """Write."""
        variable = self._named(message)
        self._answer(message.id, lambda: self._store.set(variable, message.offset, message.data))

    def take_atomic(self, message: MemoryAtomic) -> None:
        """Operate."""
        variable = self._named(message)
        offset, operation, operand, expected = (
            *(message.offset, message.operation),
            *(message.operand, message.expected),
        )
        self._answer(message.id, lambda: self._store.atomic(variable, offset, operation, operand, expected))

    def _named(self, message: MemoryGet | MemorySet | MemoryAtomic) -> RemoteVariable:
        self._store.asked_by(message.tid, message.goid, 0)
        return RemoteVariable(0, 0, message.name)

    def _answer(self, number: int, answer: Callable[[], bytes | None]) -> None:
        try:
            self._send(MemoryResult(number, answer() or b""))
        except VariableError as error:
            self._send(MemoryResult(number, error=error.code))
        self._flush()


def _later() -> None:
    """Let the session's loop send what there is to send, and stay awake."""
