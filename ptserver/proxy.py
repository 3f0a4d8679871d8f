"""Makes a call in this process in the place of a thread of a program on the same machine.

Descriptors are duplicated from the program (pidfd_getfd(2)), names are looked up from its working directory, and
new descriptors that the call returns are handed back to the caller of `execute` to be given to the program.

Not covered: calls whose out-buffers hold descriptors (pipe2, socketpair), and a program with another root folder or
mount namespace than this process; they fail with ENOSYS.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
from typing import NamedTuple

from ptserver.execute import execute
from stepping.syscalls import ArgKind, ResultKind, Syscall
from stepping.syscalls.marshal import Args

_NR_PIDFD_GETFD = 438
_AT_FDCWD = -100
_DESCRIPTORS = frozenset({ArgKind.FD, ArgKind.DIRFD})


class Executed(NamedTuple):
    """What became of a call. fd: the new descriptor, open in this process, if it returned one, else -1."""

    value: int
    errno: int
    outs: dict[int, bytes]
    fd: int = -1


class _NoSuchDescriptorError(Exception):
    """The program has no such descriptor; `args[0]` is the errno."""


def execute_for(
    tid: int, pid: int, row: Syscall, args: Args, ins: dict[int, bytes], outs: dict[int, int]
) -> Executed:
    """Make call *row* for thread *tid* of process *pid*; it may sleep, if the call does.

    args, ins, outs: as `ptserver.execute.execute` takes them.
    """
    if any(arg.decoder == "fds" for arg in row.args):
        return Executed(0, errno.ENOSYS, {})
    with contextlib.ExitStack() as stack:
        registers = list(args)
        try:
            for index, arg in enumerate(row.args):
                if arg.kind in _DESCRIPTORS:
                    registers[index] = _borrow(stack, tid, pid, arg.kind, args[index])
        except _NoSuchDescriptorError as error:
            return Executed(0, error.args[0], {})
        if any(arg.decoder == "mode" for arg in row.args):
            stack.callback(os.umask, os.umask(_umask(pid)))
        value, error_number, filled = execute(row, registers, ins, outs)
    if row.result is ResultKind.FD and not error_number:
        return Executed(0, 0, filled, value)
    return Executed(value, error_number, filled)


def closes_on_exec(fd: int) -> bool:
    """Whether *fd* was opened with the close-on-exec flag."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


def _borrow(stack: contextlib.ExitStack, tid: int, pid: int, kind: ArgKind, register: int) -> int:
    """Return a descriptor of this process, closed with *stack*, for the program's *register*."""
    number = register & 0xFFFFFFFF
    number -= number >> 31 << 32
    try:
        if kind is ArgKind.DIRFD and number == _AT_FDCWD:
            fd = os.open(f"/proc/{tid}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        elif number < 0:
            raise _NoSuchDescriptorError(errno.EBADF)
        else:
            fd = _get_fd(pid, number)
    except OSError as error:
        raise _NoSuchDescriptorError(error.errno) from error
    stack.callback(os.close, fd)
    return fd


def _get_fd(pid: int, number: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = int(libc.syscall(_NR_PIDFD_GETFD, pidfd, number, 0))
        if fd < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return fd
    finally:
        os.close(pidfd)


def _umask(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line[6:], 8)
    return 0o022
