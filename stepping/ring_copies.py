"""What the ring copies of each call's arguments, derived from the syscall table.

The routine runs in the program and reads its memory with plain loads, so it reads only what the kernel has just
read or written itself. After a success that is every argument. After an error it is the first name of a call
that failed for reasons found after reading it (no such file, no permission...), and the address given to
connect(2). A pointer that the kernel refused is never touched, so the program gets its EFAULT and no crash. What
remains is a buffer that the kernel accepts unseen (a write to /dev/null) at an address where no memory is: no
slice of Go's leads there.

Source: fs/namei.c, net/socket.c (the order in which calls look at their arguments).
"""

import errno
from collections.abc import Iterable
from typing import NamedTuple

from stepping.ring_layout import MAX_SYSNO, Copy, Source, encode_copies
from stepping.syscalls.model import RESULT, Arch, Arg, ArgKind, Length, ResultKind, Syscall

#: The calls of which arguments are copied: those that read and fill all of what the table says, whenever they
#: succeed. Others may ignore a pointer (epoll_ctl when it deletes, wait4 when nothing has happened, setsockopt
#: beyond the option's own size), so that what it leads to need not even be mapped.
COPIED_CALLS = frozenset(
    (
        "open openat openat2 creat access faccessat faccessat2 stat lstat fstat newfstatat statx statfs fstatfs "
        "readlink readlinkat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink "
        "symlinkat mknod mknodat chmod fchmodat fchmodat2 chown lchown fchownat truncate utimensat chdir chroot "
        "getcwd getdents64 getxattr lgetxattr setxattr lsetxattr listxattr llistxattr removexattr lremovexattr "
        "inotify_add_watch execve memfd_create read write pread64 pwrite64 getrandom pipe pipe2 socketpair "
        "bind connect sendto recvfrom uname timerfd_settime prlimit64 getrlimit setrlimit"
    ).split()
)

#: A call that failed with one of these has read its first name (or connect's address) in full.
READ_ERRNOS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EEXIST,
        errno.EXDEV,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EROFS,
        errno.ENOTEMPTY,
        errno.ELOOP,
        errno.EADDRNOTAVAIL,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.EALREADY,
        errno.EINPROGRESS,
    }
)

_SIZES = frozenset({ArgKind.INT, ArgKind.UINT, ArgKind.SIZE, ArgKind.LONG})


class CopiedArg(NamedTuple):
    """An argument whose bytes a record holds. arg: its index; filled: the call writes it (else reads it)."""

    arg: int
    filled: bool


def read_errnos_mask() -> int:
    """Return `READ_ERRNOS` as a bitmap."""
    return sum(1 << number for number in READ_ERRNOS)


def copies_of(row: Syscall) -> tuple[tuple[CopiedArg, Copy], ...]:
    """Return what is copied of a call: at most two arguments, names before buffers."""
    known = _copies.get(row.name)
    if known is None:
        found: list[tuple[CopiedArg, Copy]] = []
        for index, arg in enumerate(row.args if row.name in COPIED_CALLS else ()):
            names = sum(copy.source is Source.STRING for _, copy in found)
            copy = _copy_of(row, index, arg, first_name=names == 0)
            if copy is not None:
                found.append((CopiedArg(index, arg.kind is ArgKind.OUT), copy))
        found.sort(key=lambda item: item[1].source is not Source.STRING)
        known = _copies[row.name] = tuple(found[:2])
    return known


_copies: dict[str, tuple[tuple[CopiedArg, Copy], ...]] = {}


def descriptors(rows: Iterable[Syscall], arch: Arch) -> dict[int, int]:
    """Return the page's descriptors by number."""
    return {
        row.numbers[arch]: encode_copies(tuple(copy for _, copy in copies_of(row)))
        for row in rows
        if arch in row.numbers and row.numbers[arch] < MAX_SYSNO
    }


def _copy_of(row: Syscall, index: int, arg: Arg, *, first_name: bool) -> Copy | None:
    if arg.kind is ArgKind.PATH:
        return Copy(index, Source.STRING, after_error=first_name)
    if arg.kind is ArgKind.STR:
        return Copy(index, Source.STRING)
    if arg.kind not in (ArgKind.IN, ArgKind.OUT) or arg.length is None:
        return None
    length, valid = arg.length, arg.valid
    if length.arg is None:
        return Copy(index, Source.CONSTANT, size_bytes=length.scale) if valid is None else None
    if not _is_plain(length) or length.arg == RESULT or row.args[length.arg].kind not in _SIZES:
        return None
    if valid is not None:
        by_result = valid.arg == RESULT and _is_plain(valid)
        return Copy(index, Source.RESULT, length_arg=length.arg) if by_result else None
    if arg.kind is ArgKind.OUT:
        return None  # how much of it was filled is not known
    if row.result is ResultKind.BYTES and all(one.kind is not ArgKind.IN for one in row.args[:index]):
        # It may take less than it was given: then only so much is known to be readable.
        return Copy(index, Source.RESULT, length_arg=length.arg)
    return Copy(index, Source.ARGUMENT, length_arg=length.arg, after_error=row.name == "connect")


def _is_plain(length: Length) -> bool:
    return length.scale == 1 and not (length.indirect or length.bits or length.base)
