"""What a new process has of its own besides its number: namespaces, and a place among the control groups.

The kernel gives these in the fork itself; a shadow takes them right after it, before anybody hears of it.

Not trusted: the stub host's arguments. Thread rules: the shadow's first thread.
"""

import ctypes
import errno
import os
from typing import NamedTuple

from ptserver.shadow.waiting import Args
from stepping.clone3 import decode_clone3
from stepping.clone_flags import CLONE_INTO_CGROUP, CLONE_NAMESPACES, CLONE_NEWPID, CLONE_NEWTIME
from stepping.syscalls.marshal import BadArgumentError


class Birth(NamedTuple):
    """namespaces: the flags of those that it has of its own; cgroup: a descriptor of the program's, or None."""

    namespaces: int = 0
    cgroup: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is to be taken that may be refused."""
        return not self.namespaces and self.cgroup is None

    def take(self, program_limit: int) -> int:
        """Take all of it, in the new process; return the errno. Descriptors from *program_limit* on are our own."""
        try:
            if self.cgroup is not None:
                _enter_cgroup(self.cgroup, program_limit)
            if self.namespaces:
                _enter_namespaces(self.namespaces)
        except OSError as error:
            return error.errno or errno.EAGAIN
        return 0


def birth_of(name: str, args: Args, ins: dict[int, bytes]) -> Birth:
    """Return what the call *name* (fork, vfork, clone, clone3) wants.

    Raises:
        BadArgumentError: the arguments of clone3 are none.
    """
    if name == "clone":
        return Birth(args[0] & CLONE_NAMESPACES)
    if name != "clone3":
        return Birth()
    asked = decode_clone3(ins.get(0, b""))
    if asked.flags & CLONE_NEWPID:
        raise BadArgumentError(errno.EINVAL)
    namespaces = asked.flags & (CLONE_NAMESPACES | CLONE_NEWTIME)
    return Birth(namespaces, asked.cgroup if asked.flags & CLONE_INTO_CGROUP else None)


def _enter_cgroup(folder: int, program_limit: int) -> None:
    if folder >= program_limit:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        processes = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError) as error:  # it is none
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from error
    try:
        os.write(processes, b"0")
    finally:
        os.close(processes)


def _enter_namespaces(namespaces: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(ctypes.c_int(namespaces)):
        raise OSError(ctypes.get_errno(), "unshare")
    if namespaces & CLONE_NEWTIME:  # unshare(2) gives that to children only
        theirs = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(theirs, CLONE_NEWTIME):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(theirs)
