"""Variables that several processes share by name: what a server keeps of the remote memory of its programs.

They live in one anonymous shared mapping. Processes that are forked after it was made see the same variables, so two
sessions that name the same variable have one value, atomic operations included.

    mapping = directory, data
    directory = entry*           one slot of 512 bytes each; the first free one has a name of length 0
    entry = NAME_LENGTH:u16 name[256] pad SIZE:u32 OFFSET:u32 pad LOCK[64]

Each variable has a lock, and the directory has that of the slot behind the last one. A session that is killed leaves
no lock behind (`shared_locks`). A variable lives as long as the mapping.

One thread per process uses an object. Not trusted: names and sizes, which are bounded here.
"""

import contextlib
import ctypes
import mmap
import struct
from collections.abc import Iterator
from typing import Self

from ptserver.errors import PtServerError
from ptserver.remote_memory import shared_locks
from stepping.remote_memory import AtomicOperation, apply_atomic

#: Of one variable.
MAX_NAME_BYTES, MAX_VARIABLE_BYTES = 255, 1 << 20
#: Of all together.
MAX_VARIABLES, MAX_TOTAL_BYTES = 4096, 64 << 20

_SLOT_BYTES = 512
_NAME = struct.Struct("<H256s")
_PLACE = struct.Struct("<II")
_PLACE_AT = 264
_LOCK_AT = 320
_DIRECTORY_LOCK = MAX_VARIABLES
_DIRECTORY_BYTES = (MAX_VARIABLES + 1) * _SLOT_BYTES
_ALIGNMENT = 64


class VariableError(PtServerError):
    """A variable cannot be shared, or not be accessed like that. `code`: an errno name that says it to a peer."""

    exit_status = 64

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class SharedVariables:
    """Variables by name. Offsets and sizes are in bytes."""

    def __init__(self, *, is_shared: bool = True) -> None:
        """is_shared: whether other processes will have them, too."""
        self._is_shared = is_shared
        self._data = mmap.mmap(-1, _DIRECTORY_BYTES + MAX_TOTAL_BYTES)
        first = ctypes.c_char.from_buffer(self._data)
        self._locks = ctypes.addressof(first) + _LOCK_AT
        self._known: dict[str, tuple[int, int, int]] = {}  # slot, size, offset in the mapping
        self._releases_later = False
        self._locked = 0  # the address of the lock that is held for the last access
        shared_locks.make_lock(self._lock_of(_DIRECTORY_LOCK))

    def adopt(self) -> Self:
        """Be those of a new process; return this.

        From now on the caller calls `release` after each access: whoever waits for the answer has it sooner.
        """
        self._releases_later = True
        return self

    def close(self) -> None:
        """Give up the mapping."""
        self._data.close()

    def declare(self, name: str, initial: bytes) -> bytes:
        """Have a variable *name* with the value *initial*, unless there is one; return the value that it has.

        Raises:
            VariableError: there is one of another size, no room for it, or its name or size is out of bounds.
        """
        raw = name.encode("utf-8", "surrogateescape")
        if not 0 < len(raw) <= MAX_NAME_BYTES or not 0 < len(initial) <= MAX_VARIABLE_BYTES:
            raise VariableError(
                "EINVAL", f"a variable called {name[:40]!r} of {len(initial)} bytes is out of bounds"
            )
        with self._directory():
            place = self._find(name) or self._add(name, raw, initial)
        size = place[1]
        if size != len(initial):
            raise VariableError(
                "EEXIST",
                f"the variable {name} has {size} bytes in another program, and {len(initial)} in this one",
            )
        return self.get(name, 0, size)

    def get(self, name: str, offset: int, size: int) -> bytes:
        """Return *size* bytes.

        Raises:
            VariableError: there is no such variable, or not so much of it.
        """
        slot, start = self._place(name, offset, size)
        self._acquire(slot)
        try:
            return self._data[start : start + size]
        finally:
            self._finish()

    def set(self, name: str, offset: int, data: bytes) -> None:
        """Put *data* there.

        Raises:
            VariableError: see `get`.
        """
        slot, start = self._place(name, offset, len(data))
        self._acquire(slot)
        try:
            self._data[start : start + len(data)] = data
        finally:
            self._finish()

    def atomic(
        self, name: str, offset: int, operation: AtomicOperation, operand: bytes, expected: bytes = b""
    ) -> bytes:
        """Do *operation* and return what was there before; see `stepping.remote_memory.RemoteStore.atomic`.

        Raises:
            VariableError: see `get`; or the operands are of no size, or not of the same.
        """
        size = len(operand)
        if size not in (1, 2, 4, 8, 16) or (operation == "compare_exchange" and len(expected) != size):
            raise VariableError("EINVAL", f"an atomic operation on {size} bytes, expecting {len(expected)}")
        slot, start = self._place(name, offset, size)
        self._acquire(slot)
        try:
            old = self._data[start : start + size]
            new = apply_atomic(operation, old, operand, expected)
            if new is not None:
                self._data[start : start + size] = new
            return old
        finally:
            self._finish()

    def release(self) -> None:
        """Let others access what was accessed last; no matter if that was done before."""
        if self._locked:
            shared_locks.release(self._locked)
            self._locked = 0

    def _acquire(self, slot: int) -> None:
        self.release()  # who had two at a time could wait for whom it keeps waiting
        if self._is_shared:
            lock = self._lock_of(slot)
            shared_locks.acquire(lock)
            self._locked = lock

    def _finish(self) -> None:
        if not self._releases_later:
            self.release()

    def _lock_of(self, slot: int) -> int:
        return self._locks + slot * _SLOT_BYTES

    @contextlib.contextmanager
    def _directory(self) -> Iterator[None]:
        """Have the directory for oneself."""
        lock = self._lock_of(_DIRECTORY_LOCK)
        shared_locks.acquire(lock)
        try:
            yield
        finally:
            shared_locks.release(lock)

    def _place(self, name: str, offset: int, size: int) -> tuple[int, int]:
        """Return a variable's slot and where in the mapping *size* bytes at *offset* of it are."""
        place = self._known.get(name)
        if place is None:
            with self._directory():
                place = self._find(name)
        if place is None:
            raise VariableError("ENOENT", f"no variable {name[:40]!r} has been declared")
        slot, whole, start = place
        if offset < 0 or size < 1 or offset + size > whole:
            raise VariableError("ERANGE", f"bytes {offset} to {offset + size} of {name}, which has {whole}")
        return slot, start + offset

    def _find(self, name: str) -> tuple[int, int, int] | None:
        """Look the variable up; the directory is locked."""
        raw = name.encode("utf-8", "surrogateescape")
        for slot in range(len(self._known), MAX_VARIABLES):
            length, other = _NAME.unpack_from(self._data, slot * _SLOT_BYTES)
            if not length:
                break
            size, offset = _PLACE.unpack_from(self._data, slot * _SLOT_BYTES + _PLACE_AT)
            self._known[other[:length].decode("utf-8", "surrogateescape")] = (
                slot,
                size,
                _DIRECTORY_BYTES + offset,
            )
            if other[:length] == raw:
                break
        return self._known.get(name)

    def _add(self, name: str, raw: bytes, initial: bytes) -> tuple[int, int, int]:
        """Add a variable; the directory is locked and all of it is known."""
        slot = len(self._known)
        used = max((start + size for _, size, start in self._known.values()), default=_DIRECTORY_BYTES)
        start = -(-used // _ALIGNMENT) * _ALIGNMENT
        if slot >= MAX_VARIABLES or start + len(initial) > _DIRECTORY_BYTES + MAX_TOTAL_BYTES:
            raise VariableError("ENOSPC", f"there is no room for another variable, {name}")
        self._data[start : start + len(initial)] = initial
        shared_locks.make_lock(self._lock_of(slot))
        _PLACE.pack_into(self._data, slot * _SLOT_BYTES + _PLACE_AT, len(initial), start - _DIRECTORY_BYTES)
        _NAME.pack_into(self._data, slot * _SLOT_BYTES, len(raw), raw)
        self._known[name] = slot, len(initial), start
        return self._known[name]
