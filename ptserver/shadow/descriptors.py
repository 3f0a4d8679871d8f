"""Divides this process's descriptor numbers: the low ones are the program's, the high ones our own.

The program sees the limit that it would have natively; the kernel enforces it, so that its new descriptors get
the lowest free numbers and it runs out of them at the right moment. Our own live above it, between the
program's hard limit and this process's.

Thread rules: one thread.
"""

import contextlib
import fcntl
import os
import resource
from collections.abc import Collection, Iterator

#: How many numbers above the program's are ours: some for a session, and one for each of its processes.
RESERVED = 1024


def is_open(fd: int) -> bool:
    """Whether this process has a descriptor *fd*."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def free_above(fd: int, most: int) -> int:
    """Return how many numbers right above *fd*, *most* at most, are free and below the soft limit."""
    end = min(fd + 1 + most, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return next((number - fd - 1 for number in range(fd + 1, end) if is_open(number)), max(end - fd - 1, 0))


class Descriptors:
    """program_limit: numbers from here on are ours; soft_limit: the program's current RLIMIT_NOFILE."""

    def __init__(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + RESERVED))
            self._own_limit = hard + RESERVED
        except (ValueError, PermissionError):  # not privileged, or at fs.nr_open
            self._own_limit = hard
        self.program_limit = self._own_limit - RESERVED
        self.soft_limit = min(soft, self.program_limit)
        self.set_soft_limit(self.soft_limit)

    def set_soft_limit(self, soft_limit: int) -> None:
        """Let the program have numbers below *soft_limit*, which is at most `program_limit`."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft_limit, self._own_limit))
        self.soft_limit = soft_limit

    def keep(self, fd: int) -> int:
        """Return a descriptor of our own for what *fd* is open on, and close *fd*. Raises: as `copy`."""
        kept = self.copy(fd)
        os.close(fd)
        return kept

    def copy(self, fd: int) -> int:
        """Return a descriptor of our own for what *fd* is open on.

        Raises:
            OSError: EBADF, or EMFILE if all our numbers are taken.
        """
        with self.unlimited():
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self.program_limit)

    @contextlib.contextmanager
    def unlimited(self) -> Iterator[None]:
        """Have descriptors although the program may have all that it can have; it must not run meanwhile."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._own_limit, self._own_limit))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.soft_limit, self._own_limit))

    def close_own(self, spared: Collection[int]) -> None:
        """Close all of our own descriptors but those *spared*."""
        first = self.program_limit
        for fd in sorted(fd for fd in spared if fd >= first):
            os.closerange(first, fd)
            first = fd + 1
        os.closerange(first, self._own_limit)

    def close_programs(self, first: int = 0) -> None:
        """Close all of the program's descriptors from *first* on."""
        os.closerange(first, self.program_limit)
