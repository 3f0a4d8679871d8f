"""Descriptors of timers that run by the program's clock, for a run that is to be repeatable.

Each is an eventfd(2), which is read as a timerfd is, and to which expiries are written. A timer ends with the number
that it was made under, even if a copy of its descriptor is left.

Source: timerfd_create(2), eventfd(2).
"""

import errno
import os
import select
import struct
from typing import NamedTuple

from ptserver.shadow.execute import Executed
from stepping.emulation.clock import CLOCK_MONOTONIC, CLOCK_REALTIME, Clock
from stepping.emulation.threads import Scheduler
from stepping.syscalls.marshal import Args

TIMERS = frozenset({"timerfd_create", "timerfd_settime", "timerfd_gettime"})

_SECOND = 1_000_000_000
_CLOCKS = frozenset({0, 1, 7, 8, 9})
_REALTIME = frozenset({0, 8})
_FLAGS = os.EFD_NONBLOCK | os.EFD_CLOEXEC  # the same numbers as TFD_NONBLOCK and TFD_CLOEXEC
_ABSOLUTE, _CANCEL_ON_SET = 1, 2
_SPEC = struct.Struct("<4q")  # interval, then value: seconds and nanoseconds
_SETTIME_OLD, _GETTIME_SPEC = 3, 1


class _Setting(NamedTuple):
    deadline: int
    interval: int


class RepeatableTimers:
    """The timers of one program."""

    def __init__(self, scheduler: Scheduler, clock: Clock) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._clocks: dict[int, int] = {}
        self._settings: dict[int, _Setting] = {}

    def execute(self, name: str, args: Args, ins: dict[int, bytes]) -> Executed:
        """Make a call of `TIMERS`; see `ptserver.shadow.execute.execute`."""
        if name == "timerfd_create":
            return self._create(args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF)
        fd = args[0] & 0xFFFFFFFF
        if fd not in self._clocks:
            try:
                os.fstat(fd)
            except OSError:
                return 0, errno.EBADF, {}
            return 0, errno.EINVAL, {}
        if name == "timerfd_gettime":
            return 0, 0, {_GETTIME_SPEC: self._shown(fd)}
        return self._set(fd, args, ins)

    def closed(self, first: int, last: int) -> None:
        """Take note that the descriptors from *first* to *last* are something else now, or nothing."""
        for fd in [fd for fd in self._clocks if first <= fd <= last]:
            del self._clocks[fd]
            self._settings.pop(fd, None)

    def _create(self, clock: int, flags: int) -> Executed:
        if clock not in _CLOCKS or flags & ~_FLAGS:
            return 0, errno.EINVAL, {}
        try:
            fd = os.eventfd(0, flags)
        except OSError as error:
            return 0, error.errno or errno.EMFILE, {}
        self._clocks[fd] = CLOCK_REALTIME if clock in _REALTIME else CLOCK_MONOTONIC
        return fd, 0, {}

    def _set(self, fd: int, args: Args, ins: dict[int, bytes]) -> Executed:
        if args[1] & 0xFFFFFFFF & ~(_ABSOLUTE | _CANCEL_ON_SET):
            return 0, errno.EINVAL, {}
        fields = _SPEC.unpack(ins[2])
        if min(fields) < 0 or fields[1] >= _SECOND or fields[3] >= _SECOND:
            return 0, errno.EINVAL, {}
        old = self._shown(fd)
        interval, value = fields[0] * _SECOND + fields[1], fields[2] * _SECOND + fields[3]
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if poll.poll(0):
            os.eventfd_read(fd)  # expiries that nobody has read are forgotten
        self._settings.pop(fd, None)
        if value:
            now = self._clock.now()
            if args[1] & _ABSOLUTE:
                value = max(value - (self._clock.read(self._clocks[fd]) or 0), 0)
            self._arm(fd, _Setting(now + value, interval))
        return 0, 0, {_SETTIME_OLD: old} if args[_SETTIME_OLD] else {}

    def _arm(self, fd: int, setting: _Setting) -> None:
        self._settings[fd] = setting

        def expire() -> None:
            if self._settings.get(fd) is not setting:
                return
            os.eventfd_write(fd, 1)
            if setting.interval:
                self._arm(fd, _Setting(setting.deadline + setting.interval, setting.interval))
            else:
                del self._settings[fd]

        self._scheduler.call_at(setting.deadline, expire)

    def _shown(self, fd: int) -> bytes:
        setting = self._settings.get(fd)
        if setting is None:
            return bytes(_SPEC.size)
        left = max(setting.deadline - self._clock.now(), 1)
        return _SPEC.pack(*divmod(setting.interval, _SECOND), *divmod(left, _SECOND))
