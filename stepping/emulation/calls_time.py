"""Syscalls on clocks, sleep and randomness of an emulated program.

Interval timers (setitimer, alarm) run by the clock, those of processor time too. POSIX timers are not there:
timer_create fails with ENOSYS, and Go's profiler uses setitimer then.

Source: clock_gettime(2), clock_nanosleep(2), getrandom(2), setitimer(2).
"""

import errno
import struct
from collections.abc import Callable
from signal import SIGALRM, SIGPROF, SIGVTALRM
from typing import TYPE_CHECKING

from stepping.emulation.address_space import PROT_READ, PROT_WRITE
from stepping.emulation.clock import CLOCK_MONOTONIC, CLOCK_REALTIME
from stepping.emulation.signals import SI_KERNEL, make_info
from stepping.emulation.threads import Result, Thread, Wait

if TYPE_CHECKING:
    from stepping.emulation.machine import Machine

_TIMESPEC = struct.Struct("<qq")
_SECOND = 1_000_000_000
_TIMER_ABSTIME = 1
_ITIMER_REAL = 0
_ITIMER_SIGNALS = {_ITIMER_REAL: SIGALRM, 1: SIGVTALRM, 2: SIGPROF}
_MAX_RANDOM_BYTES = 32 << 20


class _Time:
    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self._space = machine.space
        self._clock = machine.clock
        #: By number: the deadline, the interval, and what makes this setting different from all others.
        self._timers: dict[int, tuple[int, int, object]] = {}

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

    def getitimer(self, _thread: Thread, args: list[int]) -> Result:
        if not self._space.allows(args[1], 32, PROT_WRITE):
            return -errno.EFAULT
        if args[0] & 0xFFFFFFFF not in _ITIMER_SIGNALS:
            return -errno.EINVAL
        self._space.write(args[1], self._shown(args[0] & 0xFFFFFFFF))
        return 0

    def setitimer(self, _thread: Thread, args: list[int]) -> Result:
        which, new, old = args[0] & 0xFFFFFFFF, args[1], args[2]
        if which not in _ITIMER_SIGNALS:
            return -errno.EINVAL
        if (new and not self._space.allows(new, 32, PROT_READ)) or (
            old and not self._space.allows(old, 32, PROT_WRITE)
        ):
            return -errno.EFAULT
        shown = self._shown(which)
        fields = struct.unpack("<4q", self._space.read(new, 32)) if new else (0, 0, 0, 0)
        if min(fields) < 0 or fields[1] >= 1_000_000 or fields[3] >= 1_000_000:
            return -errno.EINVAL
        self._arm(which, fields[2] * _SECOND + fields[3] * 1000, fields[0] * _SECOND + fields[1] * 1000)
        if old:
            self._space.write(old, shown)
        return 0

    def alarm(self, _thread: Thread, args: list[int]) -> Result:
        left = -(-self._left(_ITIMER_REAL) // _SECOND)
        self._arm(_ITIMER_REAL, (args[0] & 0xFFFFFFFF) * _SECOND, 0)
        return left

    def _left(self, which: int) -> int:
        timer = self._timers.get(which)
        return max(timer[0] - self._clock.now(), 1) if timer else 0

    def _shown(self, which: int) -> bytes:
        left, timer = self._left(which), self._timers.get(which)
        interval = timer[1] if timer else 0
        return struct.pack(
            "<4q", interval // _SECOND, interval % _SECOND // 1000, left // _SECOND, left % _SECOND // 1000
        )

    def _arm(self, which: int, delay: int, interval: int) -> None:
        self._timers.pop(which, None)
        if not delay:
            return
        timer = self._timers[which] = (self._clock.now() + delay, interval, object())

        def expire() -> None:
            if self._timers.get(which) is timer:
                self._arm(which, interval, interval)
                number = _ITIMER_SIGNALS[which]
                machine = self._machine
                machine.signals.send_to_process(
                    machine.threads.values(), number, make_info(number, SI_KERNEL)
                )

        self._machine.scheduler.call_at(timer[0], expire)

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
        "getitimer": time.getitimer,
        "setitimer": time.setitimer,
        "alarm": time.alarm,
        "timer_create": lambda _thread, _args: -errno.ENOSYS,
    }
