"""Keeps a program from the memory of its own shadow, which the kernel lets every process open as its own.

For another user than root the kernel denies it, since a session's process is not dumpable (`ptserver.confine`). For
root, what was opened is looked at before the program hears of it, and closed if it is the memory of a process.
Source: proc_pid_mem(5); fs/proc/base.c.
"""

import ctypes
import errno
import os
import stat

from ptserver.execute import Executed

#: The calls that open files by name or handle.
OPENS = frozenset({"open", "openat", "openat2", "creat", "open_by_handle_at"})

_PROC_SUPER_MAGIC = 0x9FA0
_STATFS_BYTES = 120
_MEM_MODE = 0o600  # that of /proc/PID/mem, and of no other file there that can be opened for both

_libc = ctypes.CDLL(None, use_errno=True)


def withhold_memory(executed: Executed) -> Executed:
    """Return what became of a call of `OPENS`, or EACCES if it has opened the memory of a process."""
    fd, failure, _ = executed
    if failure or not _is_memory(fd):
        return executed
    os.close(fd)
    return 0, errno.EACCES, {}


def _is_memory(fd: int) -> bool:
    status = os.fstat(fd)
    if os.major(status.st_dev) or not stat.S_ISREG(status.st_mode):
        return False  # proc's device has the major number 0
    statfs = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, statfs) or int.from_bytes(statfs.raw[:8], "little") != _PROC_SUPER_MAGIC:
        return False
    try:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == "mem"
    except OSError:  # there is no /proc at its place
        return stat.S_IMODE(status.st_mode) == _MEM_MODE
