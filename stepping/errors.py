"""The errors of this package: one root, facts as attributes, one line that a user can act on.

A tracee can die at any time, so every function that touches one may raise `TraceeGoneError`.
"""

import errno
import os


class SteppingError(Exception):
    """The root of all that this package raises."""


class TraceeGoneError(SteppingError):
    """The thread is no longer there, or no longer this process's tracee. `tid`: the thread.

    It is raised instead of ESRCH. It says nothing about the other threads of its process.
    """

    def __init__(self, tid: int) -> None:
        super().__init__(f"thread {tid} is gone; it exited or was killed while it was being traced")
        self.tid = tid


class PtraceRefusedError(SteppingError):
    """The kernel does not let this process trace that one. `tid`: the thread; `missing`: what is missing."""

    def __init__(self, tid: int, missing: str) -> None:
        super().__init__(f"cannot trace process {tid}: {missing}")
        self.tid = tid
        self.missing = missing


class SeccompRefusedError(SteppingError):
    """The kernel does not accept the seccomp filter. `errno`: why; the text says what is missing."""

    def __init__(self, errno: int) -> None:
        super().__init__(
            f"cannot install a seccomp filter: {_SECCOMP_MISSING.get(errno, os.strerror(errno))}"
        )
        self.errno = errno


class LandlockRefusedError(SteppingError):
    """The kernel does not accept a Landlock ruleset. `errno`: why."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"cannot restrict files and signals by Landlock: {os.strerror(errno)}")
        self.errno = errno


class NotificationGoneError(SteppingError):
    """A thread no longer waits for the answer to its call: a signal interrupted it, or it died."""

    def __init__(self) -> None:
        super().__init__("the thread no longer waits for this call")


class MemoryFaultError(SteppingError):
    """The program's memory cannot be read or written there. `address`: the first byte wanted."""

    def __init__(self, address: int) -> None:
        super().__init__(f"no memory at {address:#x}")
        self.address = address


_SECCOMP_MISSING = {
    errno.EACCES: "it needs no_new_privs or CAP_SYS_ADMIN, and the kernel denies both",
    errno.EBUSY: "the program already runs under a filter with a listener; run it outside that sandbox",
    errno.EINVAL: "this kernel lacks a feature; Linux 5.9 or later with CONFIG_SECCOMP_FILTER is needed",
    errno.ENOSYS: "this kernel has no seccomp; CONFIG_SECCOMP_FILTER is needed",
    errno.EPERM: "it is forbidden here; a container must allow seccomp(2) (--security-opt seccomp=unconfined)",
}
