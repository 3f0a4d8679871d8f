"""Makes calls in this process in the place of threads of a program on the same machine.

Descriptors are duplicated from the program (pidfd_getfd(2)), names are looked up from its working directory with its
umask, `/proc/self` is its own, and new descriptors are handed to the host, which puts them into the program. A call
that may sleep runs on a worker's thread.

Calls on what belongs to one process alone (its table of descriptors, its folder, its ids, its locks, its memory) can
only be made by itself: `can_make` tells which.

Not covered: a program with another root folder or mount namespace than this process.
"""

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Sequence

from ptserver.shadow.execute import Executed, execute
from ptserver.shadow.waiting import Waiting
from ptserver.shadow.workers import Workers
from stepping.syscalls import ArgKind, Syscall, SyscallClass
from stepping.syscalls.marshal import Args

_NR_PIDFD_GETFD = 438
_CLONE_FS = 0x200
_AT_FDCWD = -100
_DESCRIPTORS = frozenset({ArgKind.FD, ArgKind.DIRFD})

_CLASSES = frozenset({SyscallClass.FILE, SyscallClass.NET, SyscallClass.TIME})
_OWN_CALLS = frozenset(
    "close close_range dup2 dup3 fcntl chdir fchdir chroot umask getcwd epoll_ctl timerfd_settime "
    "timer_create timer_settime timer_delete setitimer alarm".split()
)
_OWN_KINDS = frozenset(
    {ArgKind.MSG_IN, ArgKind.MSG_OUT, ArgKind.MMSG_IN, ArgKind.MMSG_OUT, ArgKind.SIGSET_REF}
)
_MODES = frozenset({"mode", "open_mode", "file_mode"})
_OWN_DECODERS = frozenset({"pollfds", "fd_set"})

_libc = ctypes.CDLL(None, use_errno=True)
_threads = threading.local()
_can_make: dict[str, bool] = {}


def can_make(row: Syscall) -> bool:
    """Whether another process can make such calls in a thread's place."""
    known = _can_make.get(row.name)
    if known is None:
        known = _can_make[row.name] = _can_be_made(row)
    return known


def _can_be_made(row: Syscall) -> bool:
    if row.bound or row.name in _OWN_CALLS or (row.klass not in _CLASSES and row.name != "uname"):
        return False
    return not any(arg.kind in _OWN_KINDS or arg.decoder in _OWN_DECODERS for arg in row.args)


def closes_on_exec(fd: int) -> bool:
    """Whether *fd* was opened with the close-on-exec flag."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


class Proxy:
    """Makes calls for one program. One thread uses it; `fileno` polls as readable when calls have returned."""

    def __init__(self) -> None:
        self._workers: Workers[int] = Workers(keep=lambda fd: fd)

    def fileno(self) -> int:
        """Return the descriptor to poll for `take_finished`."""
        return self._workers.fileno()

    def make(
        self,
        call_id: int,
        tid: int,
        pid: int,
        pidfd: int,
        row: Syscall,
        args: Args,
        ins: dict[int, bytes],
        outs: dict[int, int],
    ) -> Executed | None:
        """Make call *row* for thread *tid* of process *pid*; None if it waits: `take_finished` will have it.

        pidfd: stands for the process. args, ins, outs and what is returned: as `ptserver.shadow.execute.execute` has
        them, but descriptors in args are the program's, while those in the result are open in this process.
        """
        try:
            registers, borrowed = _borrow(row, args, tid, pidfd)
        except OSError as error:
            return 0, error.errno or errno.EBADF, {}
        ins = {index: _own_path(row, index, data, tid, pid) for index, data in ins.items()}

        has_mode = any(arg.decoder in _MODES for arg in row.args)

        def work() -> Executed:
            if has_mode:
                _take_umask(pid)
            try:
                return execute(row, registers, ins, outs)
            finally:
                _close_all(borrowed)

        if row.may_wait and Waiting().may_wait(row, registers, ins):
            self._workers.start(call_id, work)
            return None
        return work()

    def interrupt(self, call_id: int) -> None:
        """Let a call that waits return soon, with what it did or with EINTR."""
        self._workers.interrupt(call_id)

    def interrupt_again(self) -> bool:
        """Interrupt once more what has not returned yet; return whether there is something."""
        self._workers.interrupt_again()
        return self._workers.is_interrupting

    def take_finished(self) -> list[tuple[int, Executed]]:
        """Return the calls that waited and have returned, with their ids."""
        return self._workers.take_finished()


def _borrow(row: Syscall, args: Args, tid: int, pidfd: int) -> tuple[Args, list[int]]:
    """Return the registers with descriptors of this process for the program's, and those descriptors.

    Raises:
        OSError: the program has no such descriptor.
    """
    registers, borrowed = list(args), []
    try:
        for index, arg in enumerate(row.args):
            if arg.kind not in _DESCRIPTORS:
                continue
            number = args[index] & 0xFFFFFFFF
            number -= number >> 31 << 32
            if arg.kind is ArgKind.DIRFD and number == _AT_FDCWD:
                fd = os.open(f"/proc/{tid}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                fd = _libc.syscall(_NR_PIDFD_GETFD, pidfd, number, 0)
                if fd < 0:
                    raise OSError(ctypes.get_errno(), "pidfd_getfd")
            borrowed.append(fd)
            registers[index] = fd
    except OSError:
        _close_all(borrowed)
        raise
    a0, a1, a2, a3, a4, a5 = registers
    return (a0, a1, a2, a3, a4, a5), borrowed


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _own_path(row: Syscall, index: int, data: bytes, tid: int, pid: int) -> bytes:
    """Return a path that leads this process to where *data*, argument *index*, leads the program."""
    if row.args[index].kind is not ArgKind.PATH or not data:
        return data
    if not data.startswith(b"/") and not (index and row.args[index - 1].kind is ArgKind.DIRFD):
        return b"/proc/%d/cwd/%b" % (tid, data)
    if data.startswith(b"/proc/self") and data[10:11] in (b"", b"/"):
        return b"/proc/%d%b" % (pid, data[10:])
    if data.startswith(b"/proc/thread-self") and data[17:18] in (b"", b"/"):
        return b"/proc/%d/task/%d%b" % (pid, tid, data[17:])
    return data


def _take_umask(pid: int) -> None:
    """Give the calling thread the umask of process *pid*, for itself alone."""
    if not getattr(_threads, "is_apart", False):
        _libc.unshare(_CLONE_FS)
        _threads.is_apart = True
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                os.umask(int(line[6:], 8))
                return
