"""Where a host finds the remote variables of its program: by the methods of a server of this process.

`ServedStore` asks the server's methods first, if it overrides them, and otherwise `SharedVariables`. The store of a
server behind a connection is `ptserver.remote_memory.store`.

Thread rules: the host's thread.
"""

from typing import Protocol

from ptserver.errors import PtServerError, ServerMistakeError
from ptserver.memory_access import MemoryAccess
from ptserver.remote_memory.shared import SharedVariables
from ptserver.server import RuntimeServer
from ptserver.session import Session
from stepping.remote_memory import AtomicOperation, RemoteVariable


class StoreLostError(PtServerError):
    """The server that keeps the variables is lost: the access has not been made, or nobody will know that it was."""

    exit_status = 69


class VariableStore(Protocol):
    """A `stepping.remote_memory.RemoteStore` that is told what it holds, and who asks."""

    def declare(self, name: str, initial: bytes) -> bytes:
        """Have a variable; return its value: *initial*, unless there was one already. Raises: PtServerError."""

    def asked_by(self, tid: int, goid: int, pc: int) -> None:
        """Hear which thread and goroutine makes the next accesses, and by the instruction at which address."""

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        """See `RemoteStore.get`."""

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        """See `RemoteStore.set`."""

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes,
    ) -> bytes:
        """See `RemoteStore.atomic`."""


class ServedStore:
    """Variables of *server*'s programs, kept in *variables*; a server that overrides nothing costs nothing."""

    def __init__(self, server: RuntimeServer, session: Session, variables: SharedVariables) -> None:
        self._server = server
        self._session = session
        self._variables = variables
        kind = type(server)
        self._sees_gets = kind.memory_get is not RuntimeServer.memory_get
        self._sees_sets = kind.memory_set is not RuntimeServer.memory_set
        self._sees_atomics = kind.memory_atomic is not RuntimeServer.memory_atomic
        self._tid = self._goid = 0

    def declare(self, name: str, initial: bytes) -> bytes:
        """See `VariableStore.declare`."""
        return self._variables.declare(name, initial)

    def asked_by(self, tid: int, goid: int, pc: int) -> None:
        """See `VariableStore.asked_by`."""
        self._tid, self._goid = tid, goid

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        """See `RemoteStore.get`."""
        if self._sees_gets:
            answer = self._ask("memory_get", MemoryAccess(*self._who(variable), offset, size), size)
            if answer is not None:
                return answer
        return self._variables.get(variable.name, offset, size)

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        """See `RemoteStore.set`."""
        if self._sees_sets:
            access = MemoryAccess(*self._who(variable), offset, len(data), data)
            answer = self._ask("memory_set", access, len(data))
            data = data if answer is None else answer
        self._variables.set(variable.name, offset, data)

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes,
    ) -> bytes:
        """See `RemoteStore.atomic`."""
        if self._sees_atomics:
            size = len(operand)
            access = MemoryAccess(*self._who(variable), offset, size, operand, operation, expected)
            answer = self._ask("memory_atomic", access, size)
            if answer is not None:
                return answer
        return self._variables.atomic(variable.name, offset, operation, operand, expected)

    def _who(self, variable: RemoteVariable) -> tuple[Session, int, int, str]:
        return self._session, self._tid, self._goid, variable.name

    def _ask(self, method: str, access: MemoryAccess, size: int) -> bytes | None:
        """Return what the server's method answers.

        Raises:
            ServerMistakeError: it raises, or answers anything but None or so many bytes.
        """
        try:
            answer = getattr(self._server, method)(access)
        except Exception as error:
            raise ServerMistakeError.of(type(self._server), method, error) from error
        if answer is not None and (not isinstance(answer, bytes) or len(answer) != size):
            name = type(self._server).__name__
            raise ServerMistakeError(f"{name}.{method} returned {answer!r:.60}, which is not {size} bytes")
        return answer
