"""Syscalls on clocks, sleep and randomness of an emulated program.

Timers that send signals are not there: timer_create fails with ENOSYS, and Go's profiler does without then.

Source: clock_gettime(2), clock_nanosleep(2), getrandom(2), setitimer(2).
"""

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from stepping.emulation.address_space import PROT_READ, PROT_WRITE
from stepping.emulation.clock import CLOCK_MONOTONIC, CLOCK_REALTIME
from stepping.emulation.threads import Result, Thread, Wait

if TYPE_CHECKING:
    from stepping.emulation.machine import Machine

_TIMESPEC = struct.Struct("<qq")
_SECOND = 1_000_000_000
_TIMER_ABSTIME = 1
_MAX_RANDOM_BYTES = 32 << 20


class _Time:
    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self._space = machine.space
        self._clock = machine.clock

    def clock_gettime(self, _thread: Thread, args: list[int]) -> Result:
        now = self._clock.read(_signed(args[0]))
        if now is None:
            return -errno.EINVAL
        return self._put(args[1], *divmod(now, _SECOND))

    def clock_getres(self, _thread: Thread, args: list[int]) -> Result:
        if self._clock.read(_signed(args[0])) is None:
            return -errno.EINVAL
        return self._put(args[1], 0, 1) if args[1] else 0

    def gettimeofday(self, _thread: Thread, args: list[int]) -> Result:
        seconds, rest = divmod(self._clock.read(CLOCK_REALTIME) or 0, _SECOND)
        return self._put(args[0], seconds, rest // 1000) if args[0] else 0

    def time(self, _thread: Thread, args: list[int]) -> Result:
        seconds = (self._clock.read(CLOCK_REALTIME) or 0) // _SECOND
        if args[0]:
            if not self._space.allows(args[0], 8, PROT_WRITE):
                return -errno.EFAULT
            struct.pack_into("<q", self._space.view, args[0], seconds)
        return seconds

    def nanosleep(self, thread: Thread, args: list[int]) -> Result:
        return self._sleep(thread, args[0], CLOCK_MONOTONIC, False)

    def clock_nanosleep(self, thread: Thread, args: list[int]) -> Result:
        return self._sleep(thread, args[2], _signed(args[0]), bool(args[1] & _TIMER_ABSTIME))

    def _sleep(self, thread: Thread, address: int, clock_id: int, absolute: bool) -> Result:
        if not self._space.allows(address, 16, PROT_READ):
            return -errno.EFAULT
        seconds, rest = _TIMESPEC.unpack_from(self._space.view, address)
        if seconds < 0 or not 0 <= rest < _SECOND:
            return -errno.EINVAL
        span = seconds * _SECOND + rest
        if absolute:
            now = self._clock.read(clock_id)
            if now is None:
                return -errno.EINVAL
            span = max(span - now, 0)
        return self._machine.scheduler.block(thread, Wait(timeout_result=0), self._clock.now() + span)

    def getrandom(self, _thread: Thread, args: list[int]) -> Result:
        size = min(args[1], _MAX_RANDOM_BYTES)
        if not self._space.allows(args[0], size, PROT_WRITE):
            return -errno.EFAULT
        self._space.view[args[0] : args[0] + size] = self._machine.random.randbytes(size)
        return size

    def _put(self, address: int, first: int, second: int) -> Result:
        if not self._space.allows(address, 16, PROT_WRITE):
            return -errno.EFAULT
        _TIMESPEC.pack_into(self._space.view, address, first, second)
        return 0


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def handlers(machine: "Machine") -> dict[str, Callable[[Thread, list[int]], Result]]:
    """Return what answers each call, by name."""
    time = _Time(machine)
    return {
        "clock_gettime": time.clock_gettime,
        "clock_getres": time.clock_getres,
        "gettimeofday": time.gettimeofday,
        "time": time.time,
        "nanosleep": time.nanosleep,
        "clock_nanosleep": time.clock_nanosleep,
        "getrandom": time.getrandom,
        "setitimer": lambda _thread, _args: -errno.ENOSYS,
        "timer_create": lambda _thread, _args: -errno.ENOSYS,
    }
