"""What clone3(2) is asked for: its arguments lie in memory, so they are judged and used as the copy that was taken.

Source: clone(2); kernel/fork.c (copy_clone_args_from_user, clone3_args_valid), <linux/sched.h>.
"""

import errno
import signal
import struct
from typing import NamedTuple

from stepping.clone_flags import (
    CLONE_CLEAR_SIGHAND,
    CLONE_INTO_CGROUP,
    CLONE_NEWTIME,
    CLONE_PARENT,
    CLONE_SIGHAND,
    CLONE_THREAD,
)
from stepping.syscalls import Arch
from stepping.syscalls.marshal import Args, BadArgumentError

_FIELDS = struct.Struct("=11Q")
_FIRST_BYTES = 64  # of the struct's first version
_MOST_BYTES = 4096
_CSIGNAL = 0xFF
_CLONE_DETACHED = 0x400000
_OLD_FLAGS = 0xFFFFFFFF
_MAX_TIDS = 32
_INT_MAX = (1 << 31) - 1


class Clone3(NamedTuple):
    """struct clone_args; the members that are addresses are the program's."""

    flags: int
    pidfd: int
    child_tid: int
    parent_tid: int
    exit_signal: int
    stack: int
    stack_size: int
    tls: int
    set_tid: int
    set_tid_size: int
    cgroup: int

    def as_clone(self, arch: Arch) -> Args:
        """Return the registers of the clone(2) that makes such a process, without what only clone3 has."""
        flags = self.flags & _OLD_FLAGS & ~_CSIGNAL | self.exit_signal
        stack = self.stack + self.stack_size
        last = (self.child_tid, self.tls) if arch == "amd64" else (self.tls, self.child_tid)
        return (flags, stack, self.parent_tid, *last, 0)


def decode_clone3(data: bytes) -> Clone3:
    """Return what *data*, the struct as long as the caller has it, says.

    Raises:
        BadArgumentError: with the kernel's own errno, where the kernel would refuse it.
    """
    if len(data) > _MOST_BYTES or any(data[_FIELDS.size :]):
        raise BadArgumentError(errno.E2BIG)
    if len(data) < _FIRST_BYTES:
        raise BadArgumentError(errno.EINVAL)
    asked = Clone3(*_FIELDS.unpack(data[: _FIELDS.size].ljust(_FIELDS.size, b"\0")))
    flags = asked.flags
    is_right = (
        not flags & ~(_OLD_FLAGS | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP)
        and not flags & (_CLONE_DETACHED | _CSIGNAL & ~CLONE_NEWTIME)
        and not (flags & CLONE_SIGHAND and flags & CLONE_CLEAR_SIGHAND)
        and not (flags & (CLONE_THREAD | CLONE_PARENT) and asked.exit_signal)
        and asked.exit_signal < signal.NSIG
        and bool(asked.stack) == bool(asked.stack_size)
        and bool(asked.set_tid) == bool(asked.set_tid_size)
        and asked.set_tid_size <= _MAX_TIDS
        and not (flags & CLONE_INTO_CGROUP and (asked.cgroup > _INT_MAX or len(data) < _FIELDS.size))
    )
    if not is_right:
        raise BadArgumentError(errno.EINVAL)
    return asked
