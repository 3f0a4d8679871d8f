"""Numbers of processes that depend on nothing but the program, for a run that is to be repeatable.

The program's own process is `REPEATABLE_PID`, and its children are numbered in the order of their births. What other
programs see (a child after execve(2), a file of /proc) are the kernel's numbers. What processes have used of the
machine, which calls tell along with their numbers, is nothing.

All processes of the program write down who is born, in a file without a name: a process may become the parent of its
children's children (PR_SET_CHILD_SUBREAPER).
"""

import fcntl
import os
import struct
from collections.abc import Mapping

from stepping.emulation.threads import keep_descriptor
from stepping.syscalls.marshal import Args

#: What a program whose run shall be repeatable takes for its process id.
REPEATABLE_PID = 2

_FACTOR, _FIRST = 100, 100
_LAST = 1 << 22
#: Which arguments are a process, or a group by the number of its first process; negative ones are groups, too.
_ARGUMENTS: Mapping[str, tuple[int, ...]] = {
    "kill": (0,),
    "wait4": (0,),
    "waitid": (1,),
    "pidfd_open": (0,),
    "setpgid": (0, 1),
    "getpgid": (0,),
    "getsid": (0,),
    "prlimit64": (0,),
    "rt_sigqueueinfo": (0,),
}
_RESULTS = frozenset("wait4 getppid getpgid getpgrp getsid setsid".split())
_P_PIDFD = 3
#: waitid's siginfo, and where that has a child's number.
_INFO, _INFO_PID = 2, 16
#: Where a call tells what a process has used of this machine: nothing, then.
_USAGE: Mapping[str, int] = {"wait4": 3, "waitid": 4, "getrusage": 1}
_I32 = struct.Struct("<i")
_BIRTH = struct.Struct("<ii")  # a process's number, and the kernel's


class ChildNumbers:
    """The numbers of the processes that this one knows. real: its own."""

    def __init__(self, real: int) -> None:
        self._own = REPEATABLE_PID
        self._births = 0
        self._real = {REPEATABLE_PID: real}
        self._shown = {real: REPEATABLE_PID}
        self._births_file: int | None = None
        self._births_read = 0

    def close(self) -> None:
        """Give up the file."""
        if self._births_file is not None:
            os.close(self._births_file)
            self._births_file = None

    def next(self) -> int:
        """Return the number of the child that is about to be born."""
        if self._births_file is None:
            self._births_file = keep_descriptor(os.memfd_create("births"))
            fcntl.fcntl(self._births_file, fcntl.F_SETFL, os.O_APPEND)
        self._births += 1
        number = (self._own if self._own != REPEATABLE_PID else _FIRST) * _FACTOR + self._births
        return number if number < _LAST else _LAST + self._births

    def add(self, number: int, real: int) -> None:
        """Take note that the child *number* is *real* to the kernel."""
        self._real[number] = real
        self._shown[real] = number
        if self._births_file is not None:
            os.write(self._births_file, _BIRTH.pack(number, real))

    def real(self, number: int) -> int:
        """Return what the kernel calls process *number*."""
        return self._real.get(number, number)

    def become(self, number: int, real: int) -> None:
        """Be the child."""
        self.add(number, real)
        self._own = number
        self._births = 0

    def to_host(self, name: str, args: Args) -> Args:
        """Return the arguments of a call as the kernel knows processes."""
        indexes = _ARGUMENTS.get(name)
        if indexes is None or (name == "waitid" and args[0] & 0xFFFFFFFF == _P_PIDFD):
            return args
        changed = [self._to_real(arg) if index in indexes else arg for index, arg in enumerate(args)]
        a0, a1, a2, a3, a4, a5 = changed
        return a0, a1, a2, a3, a4, a5

    def to_program(self, name: str, value: int, outs: dict[int, bytes]) -> tuple[int, dict[int, bytes]]:
        """Return what a call that succeeded comes to as the program knows processes."""
        usage = outs.get(_USAGE.get(name, -1))
        if usage is not None:
            outs = {**outs, _USAGE[name]: bytes(len(usage))}
        if name in _RESULTS:
            return self._number(value), outs
        info = outs.get(_INFO, b"")
        if name == "waitid" and len(info) >= _INFO_PID + _I32.size:
            (real,) = _I32.unpack_from(info, _INFO_PID)
            shown = _I32.pack(self._number(real))
            return value, {**outs, _INFO: info[:_INFO_PID] + shown + info[_INFO_PID + _I32.size :]}
        return value, outs

    def _number(self, real: int) -> int:
        """Return what the program calls process *real*."""
        if real not in self._shown and self._births_file is not None:
            size = os.fstat(self._births_file).st_size
            news = os.pread(self._births_file, size - self._births_read, self._births_read)
            self._births_read = size
            for number, born in _BIRTH.iter_unpack(news):
                self._real.setdefault(number, born)
                self._shown.setdefault(born, number)
        return self._shown.get(real, real)

    def _to_real(self, arg: int) -> int:
        number = arg & 0xFFFFFFFF
        if number >> 31:
            number = (1 << 32) - number
            real = self._real.get(number)
            return arg if real is None else (1 << 64) - real
        return self._real.get(number, arg)
