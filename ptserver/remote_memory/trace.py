"""A log of the accesses to remote variables, a line each.

    [pid TID] goroutine GOID FUNCTION FILE:LINE: get NAME[OFFSET] SIZE = VALUE
    ... set NAME[OFFSET] SIZE = VALUE
    ... OPERATION NAME[OFFSET] SIZE, OPERAND = OLD             (compare_exchange: ..., EXPECTED -> OPERAND = OLD)

Values of up to 8 bytes are unsigned numbers, longer ones are bytes in hexadecimal. A part that is not known is left
out. The write to a closed pipe ends the log, not the program.
"""

import os

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from ptserver.remote_memory.stores import VariableStore
from stepping.remote_memory import AtomicOperation, RemoteVariable

_MAX_SHOWN_BYTES = 32


class TracingStore:
    """A `VariableStore` that logs to descriptor *fd* what *store* is asked. binary: the program, if it is Go's."""

    def __init__(self, store: VariableStore, fd: int, binary: GoBinary | None) -> None:
        self._store = store
        self._fd = fd
        self._binary = binary
        self._places: dict[int, str] = {}
        self._who = ""

    def declare(self, name: str, initial: bytes) -> bytes:
        """See `VariableStore.declare`."""
        return self._store.declare(name, initial)

    def asked_by(self, tid: int, goid: int, pc: int) -> None:
        """See `VariableStore.asked_by`."""
        self._store.asked_by(tid, goid, pc)
        place = self._places.get(pc)
        if place is None:
            place = self._places[pc] = self._place(pc)
        self._who = f"[pid {tid}] " + (f"goroutine {goid} " if goid else "") + place

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        """See `RemoteStore.get`."""
        data = self._store.get(variable, offset, size)
        self._log(f"get {_what(variable, offset)} {size} = {_value(data)}")
        return data

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        """See `RemoteStore.set`."""
        self._store.set(variable, offset, data)
        self._log(f"set {_what(variable, offset)} {len(data)} = {_value(data)}")

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes,
    ) -> bytes:
        """See `RemoteStore.atomic`."""
        old = self._store.atomic(variable, offset, operation, operand, expected)
        operands = f"{_value(expected)} -> {_value(operand)}" if expected else _value(operand)
        self._log(f"{operation} {_what(variable, offset)} {len(operand)}, {operands} = {_value(old)}")
        return old

    def _place(self, pc: int) -> str:
        if self._binary is None:
            return f"{pc:#x}: "
        try:
            frames = self._binary.functions.frames_at(pc)
        except GoAbiError:
            return f"{pc:#x}: "
        # What the user wrote is what counts, not the atomic operation that was inlined there.
        frame = next((frame for frame in frames if not frame.function.startswith(_LIBRARY)), None)
        return f"{frame.function} {frame.file}:{frame.line}: " if frame is not None else f"{pc:#x}: "

    def _log(self, text: str) -> None:
        try:
            os.write(self._fd, f"{self._who}{text}\n".encode("utf-8", "replace"))
        except BrokenPipeError:
            pass


_LIBRARY = ("sync/atomic.", "internal/runtime/atomic.", "runtime/internal/atomic.", "runtime.")


def _what(variable: RemoteVariable, offset: int) -> str:
    return f"{variable.name}[{offset}]" if offset else variable.name


def _value(data: bytes) -> str:
    if len(data) <= 8:
        return str(int.from_bytes(data, "little"))
    return data[:_MAX_SHOWN_BYTES].hex() + ("..." if len(data) > _MAX_SHOWN_BYTES else "")
