"""Calls that a host has its server make about files, for itself: how they are asked, and what their results say.

Not trusted: the server's results.
"""

import errno
import os
import stat
import struct
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from ptserver.hosts.mapped_file import CHUNK_BYTES, FileFacts
from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.messages import Result
from stepping.syscalls.marshal import Args

#: Stands for an address in a register, where a buffer goes with the call.
SOME_ADDRESS = 8
#: /dev/zero, the only device that can be mapped.
ZERO_DEVICE = os.makedev(1, 5)

_O_PATH = 0o10000000
#: struct stat of amd64: st_dev, st_ino, st_mode, st_rdev, st_size, then times of modification and change.
_STAT = struct.Struct("=QQ8xI12xQq16x16xqqqq")
_STAT_BYTES = 144


class Asked(NamedTuple):
    """A call that the server is to make for *process*; call: the program's own call, if it is that one."""

    process: Process
    name: str
    args: Args
    ins: dict[int, bytes]
    outs: dict[int, int]
    call: PendingCall | None = None


#: Work that is done when the generator ends.
Work = Generator[Sequence[Asked], list[Result], None]
#: Has the server make a call, and calls back with its result.
Ask = Callable[[Asked, Callable[[Result], None]], None]


def facts_of(told: Result) -> FileFacts | None:
    """Return what a result of fstat says, None if it failed."""
    data = told.outs.get(1, b"")
    if told.errno or len(data) < _STAT.size:
        return None
    dev, ino, mode, rdev, size, *changed = _STAT.unpack_from(data)
    return FileFacts(dev, ino, mode, rdev, size, (changed[0], changed[1], changed[2], changed[3]))


def ask_facts(process: Process, fd: int) -> Asked:
    """Return the fstat of a descriptor."""
    return Asked(process, "fstat", (fd, SOME_ADDRESS, 0, 0, 0, 0), {}, {1: _STAT_BYTES})


def ask_close(process: Process, handle: int) -> Asked:
    """Return the close of a descriptor that the server keeps for a mapping."""
    return Asked(process, "close", (handle, 0, 0, 0, 0, 0), {}, {})


def ask_chunk(process: Process, handle: int, number: int) -> Asked:
    """Return the read of a chunk of a file."""
    args = (handle, SOME_ADDRESS, CHUNK_BYTES, number * CHUNK_BYTES, 0, 0)
    return Asked(process, "pread64", args, {}, {1: CHUNK_BYTES})


def refusal_to_map(facts: FileFacts, flags: int, writes: bool) -> int:
    """Return the errno with which the kernel refuses to map such a file, open with such *flags*; 0 if it does not."""
    if flags & _O_PATH:
        return errno.EBADF
    access = flags & os.O_ACCMODE
    if access == os.O_WRONLY or (writes and access != os.O_RDWR):
        return errno.EACCES
    if stat.S_ISREG(facts.mode) or (stat.S_ISCHR(facts.mode) and facts.rdev == ZERO_DEVICE):
        return 0
    return errno.ENODEV
