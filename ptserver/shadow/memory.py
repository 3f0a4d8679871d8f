"""Keeps a program from what its shadow has for itself: its memory, and its own pipes and files in memory.

The kernel lets every process open these as its own, below /proc. Memory is denied by it to another user than root,
since a session's process is not dumpable (`ptserver.confinement.confine`). What else was opened is looked at before
the program hears of it, and closed if it is none of the program's.

Source: proc_pid_mem(5), proc_pid_fd(5); fs/proc/base.c.
"""

import contextlib
import ctypes
import errno
import os
import stat

from ptserver.shadow.execute import Executed

#: The calls that open files by name or handle.
OPENS = frozenset({"open", "openat", "openat2", "creat", "open_by_handle_at"})

_PROC_SUPER_MAGIC = 0x9FA0
_STATFS_BYTES = 120
_MEM_MODE = 0o600  # that of /proc/PID/mem, and of no other file there that can be opened for both

_libc = ctypes.CDLL(None, use_errno=True)


class OwnThings:
    """Knows what belongs to this process. first: the lowest number of its own descriptors."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._devices = _nameless_devices()

    def withhold(self, executed: Executed) -> Executed:
        """Return what became of a call of `OPENS`, or EACCES if it has opened something of this process's own."""
        fd, failure, _ = executed
        if failure:
            return executed
        status = os.fstat(fd)
        if os.major(status.st_dev):
            return executed  # neither proc nor pipes nor memory: their devices have the major number 0
        if status.st_dev in self._devices:
            is_own = self._has((status.st_dev, status.st_ino))
        else:
            is_own = stat.S_ISREG(status.st_mode) and _is_memory(fd, status)
        if not is_own:
            return executed
        os.close(fd)
        return 0, errno.EACCES, {}

    def _has(self, identity: tuple[int, int]) -> bool:
        """Whether a descriptor of our own is open on the file of that device and number."""
        try:
            numbers = [int(name) for name in os.listdir("/proc/self/fd")]
        except OSError:  # there is no /proc at its place, so nobody knows
            return True
        for number in numbers:
            if number >= self._first:
                with contextlib.suppress(OSError):  # that of the listing itself is closed
                    status = os.fstat(number)
                    if identity == (status.st_dev, status.st_ino):
                        return True
        return False


def _nameless_devices() -> frozenset[int]:
    """Return the devices of pipes and of files in memory, which are only opened again below /proc."""
    reading, writing = os.pipe()
    memory = os.memfd_create("ptserver", os.MFD_CLOEXEC)
    devices = frozenset(os.fstat(fd).st_dev for fd in (reading, memory))
    for fd in (reading, writing, memory):
        os.close(fd)
    return devices


def _is_memory(fd: int, status: os.stat_result) -> bool:
    statfs = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, statfs) or int.from_bytes(statfs.raw[:8], "little") != _PROC_SUPER_MAGIC:
        return False
    try:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == "mem"
    except OSError:  # there is no /proc at its place
        return stat.S_IMODE(status.st_mode) == _MEM_MODE
