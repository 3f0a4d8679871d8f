"""Many small pieces of a process's memory in few system calls: what is needed while a process is stopped for it.

process_vm_readv(2) gathers up to 1024 pieces in one call. Where it is not to be had (an old sandbox forbids it), the
pieces are read one by one from /proc/PID/mem. Any thread may call it; the process need not be traced.

Source: process_vm_readv(2); mm/process_vm_access.c.
"""

import ctypes
import errno
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from struct import Struct
from typing import Any

from stepping.errors import MemoryFaultError
from stepping.tracee_memory import TraceeMemory

_IOV_MAX = 1024
_IOVEC_BYTES = 16
_LAST = (1 << 64) - 1

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = (
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong),
    ctypes.c_ulong,
)


class Pieces:
    """What was read, in the order asked for. Nothing is copied again before a piece is taken."""

    def __init__(self, buffer: bytearray, ends: Sequence[int], missing: set[int]) -> None:
        self._buffer = memoryview(buffer)
        self._ends = ends
        #: The indexes of those that could not be read.
        self.missing = missing

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes | None:
        """Return a piece; None if not all of it could be read."""
        if index in self.missing:
            return None
        return bytes(self._buffer[self._ends[index - 1] if index else 0 : self._ends[index]])

    def unpack(self, record: Struct) -> Iterator[tuple[Any, ...]]:
        """Yield each piece, all of them as long as *record*, unpacked; those that are missing as zeros."""
        return record.iter_unpack(self._buffer)


def read_pieces(pid: int, memory: TraceeMemory, addresses: Sequence[int], sizes: Sequence[int]) -> Pieces:
    """Return *sizes*[i] bytes at each *addresses*[i]; never fails, but marks what cannot be read.

    memory: of the same process, for what process_vm_readv does not read; *addresses* are what it takes for such.
    """
    ends = array("Q", accumulate(sizes))
    total = ends[-1] if ends else 0
    remote = array("Q", bytes(_IOVEC_BYTES * len(sizes)))
    places = [(memory.base + address) & _LAST for address in addresses] if memory.base else addresses
    remote[0::2] = array("Q", places)
    remote[1::2] = array("Q", sizes)
    buffer = bytearray(total)
    missing: set[int] = set()
    if total:
        _fill(pid, memory, buffer, ends, remote, missing)
    return Pieces(buffer, ends, missing)


def _fill(
    pid: int,
    memory: TraceeMemory,
    buffer: bytearray,
    ends: "array[int]",
    remote: "array[int]",
    missing: set[int],
) -> None:
    local = (ctypes.c_uint64 * 2)()
    anchor = ctypes.c_char.from_buffer(buffer)
    base, iovecs = ctypes.addressof(anchor), remote.buffer_info()[0]
    done, count, usable = 0, len(ends), True
    while done < count:
        start = ends[done - 1] if done else 0
        batch = min(_IOV_MAX, count - done)
        got = -1
        if usable:
            local[0], local[1] = base + start, ends[done + batch - 1] - start
            got = _readv(pid, local, 1, iovecs + _IOVEC_BYTES * done, batch, 0)
            usable = got >= 0 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM)
        reached = start + max(got, 0)
        stop = done + batch
        if reached == ends[stop - 1]:
            done = stop
        while done < stop and ends[done] <= reached:
            done += 1
        if done < stop:  # this piece stopped it
            at = ends[done - 1] if done else 0
            try:
                buffer[at : ends[done]] = memory.read(remote[2 * done] - memory.base, remote[2 * done + 1])
            except MemoryFaultError:
                missing.add(done)
            done += 1
    del anchor
