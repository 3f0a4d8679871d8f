"""The program's resource limits, as getrlimit, setrlimit and prlimit64 show and change them.

They are not this process's own, which lives by its own limits: a small address space or a few seconds of
processor time, asked for by the program, must not end its shadow. The limits on descriptors and on the size of
files are applied here; the others are remembered.

Thread rules: one thread.
"""

import contextlib
import errno
import os
import resource
import struct

from ptserver.shadow.descriptors import Descriptors
from ptserver.shadow.execute import Executed, execute
from stepping.syscalls import SYSCALLS

_RLIMIT = struct.Struct("=QQ")
_INFINITY = (1 << 64) - 1
_COUNT = 16  # RLIM_NLIMITS
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_CAP_SYS_RESOURCE = 24


def is_own_program(pid: int) -> bool:
    """Whether a process is a child of this one that has executed a program, and so is no shadow with its own limits.

    A child's number stays its own until it is waited for.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        return parent == os.getpid() and os.readlink(f"/proc/{pid}/exe") != os.readlink("/proc/self/exe")
    except (OSError, ValueError):
        return False


class Limits:
    """The limits of one program, at first those of this process."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._limits: list[tuple[int, int]] = []
        self._own: list[tuple[int, int]] = []
        for number in range(_COUNT):
            soft, hard = resource.getrlimit(number)
            self._limits.append((soft & _INFINITY, hard & _INFINITY))
        self._limits[resource.RLIMIT_NOFILE] = (descriptors.soft_limit, descriptors.program_limit)

    def serve(
        self, name: str, args: tuple[int, ...], ins: dict[int, bytes], outs: dict[int, int]
    ) -> Executed:
        """Answer a call of the three on the own process's limits, as `ptserver.shadow.execute` does."""
        if name == "prlimit64":
            args, new, old = args[1:], 2, 3
        else:
            new = old = 1
        number = args[0] & 0xFFFFFFFF
        if number >= _COUNT:
            return 0, errno.EINVAL, {}
        before = _RLIMIT.pack(*self._limits[number])
        if name != "getrlimit" and (name == "setrlimit" or args[1]):
            data = ins.get(new, b"")
            if len(data) < _RLIMIT.size:
                return 0, errno.EFAULT, {}
            failure = self._set(number, *_RLIMIT.unpack_from(data))
            if failure:
                return 0, failure, {}
        return 0, 0, {old: before[: outs[old]]} if old in outs else {}

    def apply(self) -> None:
        """Make the program's limits this process's, for an exec; what may not be changed stays as it is."""
        self._own = [resource.getrlimit(number) for number in range(_COUNT)]
        can_raise = _can_raise_limits()
        for number, (soft, hard) in enumerate(self._limits):
            keeps_hard = number == resource.RLIMIT_NOFILE and not can_raise  # it could not be undone
            new_hard = self._own[number][1] if keeps_hard else _to_python(hard)
            _try_to_set(number, (_to_python(soft), new_hard))

    def withdraw(self) -> None:
        """Undo `apply`, after an exec that failed."""
        for number, limit in enumerate(self._own):
            _try_to_set(number, limit)

    def _set(self, number: int, soft: int, hard: int) -> int:
        """Set a limit; return 0 or the errno."""
        if soft > hard:
            return errno.EINVAL
        is_descriptors = number == resource.RLIMIT_NOFILE
        if hard > self._limits[number][1] and (os.geteuid() or is_descriptors):
            return errno.EPERM
        if is_descriptors:
            self._descriptors.set_soft_limit(soft)
        elif number == resource.RLIMIT_FSIZE:
            resource.setrlimit(number, (_to_python(soft), _to_python(hard)))
        self._limits[number] = (soft, hard)
        return 0


def _can_raise_limits() -> bool:
    """Whether this process may raise what it has lowered: it has CAP_SYS_RESOURCE, which root may lack."""
    header = _CAPABILITY_VERSION.to_bytes(4, "little") + bytes(4)
    _, failure, outs = execute(
        SYSCALLS["capget"], (1, 1, 0, 0, 0, 0), {0: header, 1: bytes(24)}, {0: 8, 1: 24}
    )
    return not failure and bool(int.from_bytes(outs[1][:4], "little") >> _CAP_SYS_RESOURCE & 1)


def _try_to_set(number: int, limit: tuple[int, int]) -> None:
    with contextlib.suppress(ValueError, PermissionError):
        resource.setrlimit(number, limit)


def _to_python(limit: int) -> int:
    return resource.RLIM_INFINITY if limit == _INFINITY else min(limit, (1 << 63) - 1)
