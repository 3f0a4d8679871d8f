"""What calls mean for what is known of files. Pure.

Four kinds are distinguished:

    quiet        change nothing, and tell of nothing else       everything stays known
    receiving    bring word of others when they return          contents are forgotten then
    changing     change files, but no offset of a descriptor    contents are forgotten at once, and when they return
    all others                                                  descriptors are forgotten too
"""

import errno
import os
from collections.abc import Container

from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import Result

_QUIET = frozenset(
    "newfstatat fstat stat lstat statx readlinkat readlink access faccessat faccessat2 getdents64 lseek pread64 close"
    " getcwd uname getuid geteuid getgid getegid getgroups getrlimit prlimit64 umask epoll_create1 epoll_ctl"
    " statfs fstatfs getrandom socket listen setsockopt getsockname getpeername shutdown pipe2 eventfd2"
    " timerfd_create timerfd_settime inotify_init1".split()
)
_POLLING = frozenset("epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6".split())
RECEIVING = _POLLING | frozenset(
    "read recvfrom recvmsg recvmmsg accept accept4 wait4 waitid getsockopt connect".split()
)
CHANGING = frozenset(
    "write pwrite64 writev pwritev pwritev2 openat open creat mkdirat mkdir unlinkat unlink rmdir renameat2 renameat"
    " rename linkat link symlinkat symlink fchmodat fchmod chmod fchownat fchown chown lchown utimensat ftruncate"
    " truncate fallocate fsync fdatasync sync setxattr fsetxattr lsetxattr removexattr chdir fchdir mknodat flock"
    " bind sendto inotify_add_watch inotify_rm_watch".split()
)
LEADS_ELSEWHERE = frozenset({"chdir", "fchdir"})
#: Calls of these that take or give numbers of descriptors, or change how many there are.
_NUMBERING = frozenset(
    "openat open creat close socket accept accept4 recvmsg recvmmsg epoll_create1 pipe2 eventfd2 timerfd_create"
    " inotify_init1 prlimit64".split()
)
KEEPS_NUMBERS = (_QUIET | RECEIVING | CHANGING | {"sendfile"}) - _NUMBERING
REPLACES_DESCRIPTORS = frozenset({"dup2", "dup3", "close_range"})
#: Calls that return a descriptor of no file, and those that are about no file if they are about such a descriptor.
MAKES_STREAM = frozenset({"socket", "accept", "accept4", "eventfd2", "epoll_create1"})
_WRITES_STREAM = frozenset({"write", "writev", "sendto", "sendfile", "ioctl"})
_NOTHING_CAME = frozenset({errno.EAGAIN, errno.EINTR, errno.EINPROGRESS})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_QUIET_FCNTL = frozenset({1, 2, 3})  # F_GETFD, F_SETFD, F_GETFL


def is_quiet(call: PendingCall, streams: Container[int]) -> bool:
    """Whether *call* changes nothing and tells of nothing else; streams: descriptors of no files."""
    assert call.row is not None
    name = call.row.name
    if name in _QUIET:
        return True
    if name == "openat":
        return not call.args[2] & _WRITING
    if name in _WRITES_STREAM:
        return call.args[0] & 0xFFFFFFFF in streams
    return name == "fcntl" and call.args[1] & 0xFFFFFFFF in _QUIET_FCNTL


def is_known(call: PendingCall, streams: Container[int]) -> bool:
    """Whether *call* leaves descriptors alone."""
    assert call.row is not None
    return call.row.name in CHANGING or call.row.name in RECEIVING or is_quiet(call, streams)


def tells_of_others(name: str, result: Result) -> bool:
    """Whether the program learns of others by what a call has given."""
    if name not in RECEIVING or result.errno in _NOTHING_CAME:
        return False
    return bool(result.value) or name not in _POLLING
