"""Calls of an emulated program that a server at an address makes: what is different about them."""

import errno
import mmap
from typing import NamedTuple

from ptserver.machine import native_arch
from ptserver.shadow.raw_calls import raw_call
from ptserver.stub.hypercalls import Hypercall
from stepping.syscalls import SYSCALLS, Syscall
from stepping.syscalls.marshal import Args

_MAP_FIXED, _PROT_READ_WRITE = 0x10, 3
_MAX_ERRNO = 4095
_EVENTS = frozenset({"epoll_wait", "epoll_pwait", "poll"})


class Away(NamedTuple):
    """What of a program's calls is a server's at an address; see `ptserver.emulated.away`.

    claimed: the calls that it names; everything: whether the program's resources are its own; stderr: a descriptor
    for what is said to the user; linker_path: where the program's dynamic linker is, if not where the program says.
    """

    claimed: frozenset[str]
    everything: bool
    stderr: int
    linker_path: str | None


def map_from_away(fd: int, offset: int, address: int, size: int, shared: bool) -> tuple[int, int]:
    """As `map_file`, for a file of which the stub host has a copy."""
    flags = _MAP_FIXED | (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE)
    number = 0
    for protection in (_PROT_READ_WRITE, mmap.PROT_READ):
        value = raw_call(
            SYSCALLS["mmap"].numbers[native_arch()], address, size, protection, flags, fd, offset
        )
        if not -_MAX_ERRNO <= value < 0:
            return 0, protection | mmap.PROT_EXEC
        number = -value
        if number != errno.EACCES or not shared:
            break
    return number, 0


def interrupt_away(tid: int) -> bool:
    """Have the stub host end the call of this process's thread *tid*; return False if a signal is needed for that."""
    return raw_call(Hypercall.INTERRUPT, tid) > 0


def asks_only(row: Syscall, args: Args) -> bool:
    """Whether a call that waits for events does not: its time limit is 0."""
    if row.name not in _EVENTS:
        return False
    index = next(i for i, arg in enumerate(row.args) if arg.name == "timeout")
    return not args[index] & 0xFFFFFFFF
