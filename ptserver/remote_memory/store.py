"""Remote variables that a server behind a connection keeps: each access is one message there and one back.

While an access is under way the host does nothing else: the thread that makes it is stopped, and the answer comes
within a fraction of a millisecond, or the server is lost.

Thread rules: the host's thread.
"""

import itertools
from collections.abc import Callable

from ptserver.errors import PtServerError
from ptserver.messages import MemoryAtomic, MemoryDeclare, MemoryGet, MemoryResult, MemorySet, Message
from stepping.remote_memory import AtomicOperation, RemoteVariable

#: Sends a message and returns its answer. Raises: `ptserver.remote_memory.stores.StoreLostError`.
Ask = Callable[[Message], MemoryResult]

_REASONS = {
    "EEXIST": "it has another size in another program",
    "ENOSPC": "the server has no room for more variables",
    "EINVAL": "the server does not take that name or size",
}


class RemoteStoreError(PtServerError):
    """The server does not keep a variable, or refuses an access that it should serve."""

    exit_status = 77


class RemoteStore:
    """A `VariableStore` at the other end of *ask*."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._ids = itertools.count(1)
        self._tid = self._goid = 0

    def declare(self, name: str, initial: bytes) -> bytes:
        """See `VariableStore.declare`."""
        result = self._ask(MemoryDeclare(next(self._ids), name, initial))
        if result.error:
            why = _REASONS.get(result.error, result.error)
            raise RemoteStoreError(f"the server does not take the remote variable {name}: {why}")
        return result.data

    def asked_by(self, tid: int, goid: int, pc: int) -> None:
        """See `VariableStore.asked_by`."""
        self._tid, self._goid = tid, goid

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        """See `RemoteStore.get`."""
        message = MemoryGet(next(self._ids), variable.name, offset, size, self._tid, self._goid)
        return self._data(message, size)

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        """See `RemoteStore.set`."""
        self._data(MemorySet(next(self._ids), variable.name, offset, data, self._tid, self._goid), 0)

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes,
    ) -> bytes:
        """See `RemoteStore.atomic`."""
        message = MemoryAtomic(
            *(next(self._ids), variable.name, offset, operation, operand, expected, self._tid, self._goid)
        )
        return self._data(message, len(operand))

    def _data(self, message: MemoryGet | MemorySet | MemoryAtomic, size: int) -> bytes:
        result = self._ask(message)
        if result.error:
            raise RemoteStoreError(f"the server refuses an access to {message.name}: {result.error}")
        if len(result.data) != size:
            raise RemoteStoreError(
                f"the server answers {size} bytes of {message.name} with {len(result.data)}"
            )
        return result.data
