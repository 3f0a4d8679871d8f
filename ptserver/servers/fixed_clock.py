"""A clock that stands still, and another host name: for builds that must come out the same."""

import struct

from ptserver.server import Call, Done, Outcome, RuntimeServer

_WALL_CLOCKS = frozenset({0, 5, 11})  # CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_TAI
_HOSTNAME = slice(65, 130)  # of struct utsname


class FixedClock(RuntimeServer):
    """The time of day is `seconds` since 1970, the machine is called `hostname`; timers run as ever."""

    name = "fixed_clock"
    seconds = 1_000_000_000  # 2001-09-09 01:46:40 UTC
    hostname = b"fixed"

    def clock_gettime(self, call: Call) -> Outcome:
        """Tell the time of day; other clocks go on."""
        if call.clockid not in _WALL_CLOCKS:
            return call.proceed()
        return call.answer(tp=struct.pack("=qq", self.seconds, 0))

    def gettimeofday(self, call: Call) -> Outcome:
        """Tell the time of day as C programs ask for it."""
        return call.answer(tv=struct.pack("=qq", self.seconds, 0), tz=bytes(8))

    def time(self, call: Call) -> Outcome:
        """Tell the time of day as old C programs ask for it."""
        return call.answer(self.seconds, tloc=struct.pack("=q", self.seconds))

    def uname(self, call: Call) -> Outcome:
        """Tell the true system, but for its name."""

        def rename(done: Done) -> Outcome | None:
            buf = bytearray(done.outs.get("buf", b""))
            if done.errno or not buf:
                return None
            buf[_HOSTNAME] = self.hostname.ljust(65, b"\0")
            return call.answer(buf=bytes(buf))

        return call.proceed(rename)
