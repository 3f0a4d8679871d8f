"""Memory of a program that lives elsewhere: which addresses, who keeps it, and accesses that may be partly local.

A `RemoteMap` knows the remote variables of one process and the pages that were made inaccessible for them. What
else lies on those pages, their neighbours, stays in the process: the host reads and writes it there, and since
every access to such a page comes to the host, one after another, its values and its atomic operations are exact.

All is on the tracer's thread.
"""

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from stepping.errors import SteppingError
from stepping.maps import PAGE_BYTES

#: What `RemoteStore.atomic` can do: all in one, and the old value comes back.
AtomicOperation = Literal["add", "and", "or", "xor", "exchange", "compare_exchange"]


@dataclass(frozen=True, slots=True, order=True)
class RemoteVariable:
    """A range of a program's memory that lives elsewhere: *size* bytes at *address*, known there as *name*."""

    address: int
    size: int
    name: str

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + self.size


class RemoteStore(Protocol):
    """Where remote variables live. Offsets and sizes are in bytes and within the variable."""

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        """Return *size* bytes; up to 8 aligned ones are of one moment."""

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        """Put *data* there; up to 8 aligned bytes at one moment."""

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes,
    ) -> bytes:
        """Do *operation* on as many bytes as *operand* has (1, 2, 4, 8 or 16), and return what was there before.

        expected: for ``compare_exchange``, which writes only if that was there; empty otherwise.
        """


class LocalMemory(Protocol):
    """The memory of a process itself. Both raise MemoryFaultError where there is none."""

    def read(self, address: int, size: int, /) -> bytes:
        """Return *size* bytes."""

    def write(self, address: int, data: bytes, /) -> object:
        """Put *data* there."""


class RemoteMap:
    """The remote *variables* of one process, whose *pages* are inaccessible to it, and its *memory*."""

    def __init__(self, variables: Iterable[RemoteVariable], memory: LocalMemory, store: RemoteStore) -> None:
        self.variables = sorted(variables)
        self.pages = frozenset(
            page
            for variable in self.variables
            for page in range(variable.address & -PAGE_BYTES, variable.end, PAGE_BYTES)
        )
        self.store = store
        self.memory = memory
        self._starts = [variable.address for variable in self.variables]

    def forget(self) -> None:
        """Have no variables any more: the process executes another program."""
        self.variables, self._starts, self.pages = [], [], frozenset()

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and address & -PAGE_BYTES in self.pages

    def touches(self, address: int, size: int) -> bool:
        """Whether any of *size* bytes at *address* is on an inaccessible page."""
        first, end = address & -PAGE_BYTES, address + size
        if size > PAGE_BYTES * len(self.pages):  # a size may be any number
            return size > 0 and any(first <= page < end for page in self.pages)
        return any(page in self.pages for page in range(first, end, PAGE_BYTES))

    def find(self, address: int) -> RemoteVariable | None:
        """Return the variable that holds *address*."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self.variables[index].end:
            return self.variables[index]
        return None

    def pieces(self, address: int, size: int) -> Iterator[tuple[int, int, RemoteVariable | None]]:
        """Cut *size* bytes at *address* into (address, size, variable); local ones have no variable."""
        end = address + size
        while address < end:
            variable = self.find(address)
            if variable is not None:
                stop = min(end, variable.end)
            else:
                index = bisect.bisect_right(self._starts, address)
                stop = min(end, self._starts[index]) if index < len(self._starts) else end
            yield address, stop - address, variable
            address = stop

    def read(self, address: int, size: int) -> bytes:
        """Return *size* bytes, wherever they live.

        Raises:
            MemoryFaultError: they are nowhere. Whatever the store raises.
        """
        parts = []
        for at, length, variable in self.pieces(address, size):
            if variable is None:
                parts.append(self.memory.read(at, length))
            else:
                parts.append(self.store.get(variable, at - variable.address, length))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_string(self, address: int, limit: int) -> bytes:
        """As `TraceeMemory.read_string`.

        Raises:
            MemoryFaultError: memory ends before a NUL.
            ValueError: there is no NUL within *limit* bytes.
        """
        data = b""
        while len(data) < limit:
            at = address + len(data)
            chunk = self.read(at, min(256, PAGE_BYTES - at % PAGE_BYTES))
            end = chunk.find(0)
            if end >= 0:
                return data + chunk[:end]
            data += chunk
        raise ValueError(f"no end of string within {limit} bytes")

    def write(self, address: int, data: bytes) -> None:
        """Put *data* there, wherever that lives.

        Raises:
            MemoryFaultError: it is nowhere. Whatever the store raises.
        """
        for at, length, variable in self.pieces(address, len(data)):
            part = data[at - address : at - address + length]
            if variable is None:
                self.memory.write(at, part)
            else:
                self.store.set(variable, at - variable.address, part)

    def atomic(
        self, address: int, operation: AtomicOperation, operand: bytes, expected: bytes = b""
    ) -> bytes:
        """Do an atomic operation on memory that is remote, or local on a page that only the host touches.

        Raises:
            SplitAtomicError: a part is remote, another is not, or belongs to another variable.
        """
        size = len(operand)
        variable = self.find(address)
        if variable is not None and address + size <= variable.end:
            return self.store.atomic(variable, address - variable.address, operation, operand, expected)
        if any(found is not None for _, _, found in self.pieces(address, size)):
            raise SplitAtomicError(address, size)
        old = self.memory.read(address, size)
        new = apply_atomic(operation, old, operand, expected)
        if new is not None:
            self.memory.write(address, new)
        return old


class SplitAtomicError(SteppingError):
    """An atomic operation on *size* bytes at *address*, of which only a part is remote."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(
            f"an atomic operation on {size} bytes at {address:#x}, of which only a part is remote"
        )
        self.address = address
        self.size = size


def apply_atomic(operation: AtomicOperation, old: bytes, operand: bytes, expected: bytes) -> bytes | None:
    """Return what *operation* makes of *old*; None if it leaves it as it is. Numbers are little-endian."""
    if operation == "compare_exchange":
        return operand if old == expected else None
    if operation == "exchange":
        return operand
    size = len(old)
    a, b = int.from_bytes(old, "little"), int.from_bytes(operand, "little")
    value = {"add": a + b, "and": a & b, "or": a | b, "xor": a ^ b}[operation]
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
