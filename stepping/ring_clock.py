"""The processor's time stamp counter in nanoseconds of CLOCK_MONOTONIC.

The ring's records carry raw counts. A count is related to the clock by reading both together, now and later;
the longer the time between the first and the last reading, the better the rate is known (a reading is good to
some 200 ns, so after 10 ms the rate is good to 0.002 %).

The counter must run at one rate on all processors and in all sleep states (`constant_tsc nonstop_tsc`), as it
does on every amd64 machine since about 2008; a processor without is refused.

Source: Intel SDM volume 3, "Time-Stamp Counter".
"""

import ctypes
import mmap
import time

from stepping.errors import SteppingError

# rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")
_TRIES = 5
_MIN_SPAN_NS = 1_000_000


class TscClock:
    """Converts counts; gets better with each `calibrate`."""

    def __init__(self) -> None:
        """Read both clocks for the first time.

        Raises:
            SteppingError: this machine's counter, or this process's memory policy, does not allow it.
        """
        _check_counter()
        try:
            self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError as error:
            raise SteppingError(f"cannot map code to read the processor's clock: {error.strerror}") from error
        self._page[: len(_RDTSC)] = _RDTSC
        self._anchor = ctypes.c_char.from_buffer(self._page)
        self._read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(self._anchor))
        self._first_count, self._first_ns = self._sample()
        self._ns_per_count = 0.0

    def read_count(self) -> int:
        """Return the counter now."""
        return int(self._read())

    def calibrate(self) -> None:
        """Read both clocks again; waits until a millisecond has passed since the first time."""
        while True:
            count, now_ns = self._sample()
            if now_ns - self._first_ns >= _MIN_SPAN_NS:
                break
            time.sleep((_MIN_SPAN_NS - (now_ns - self._first_ns)) / 1e9)
        self._ns_per_count = (now_ns - self._first_ns) / (count - self._first_count)

    @property
    def ns_per_count(self) -> float:
        """How long a count takes."""
        if not self._ns_per_count:
            self.calibrate()
        return self._ns_per_count

    def monotonic_ns(self, count: int) -> int:
        """Return the CLOCK_MONOTONIC time at which the counter had that value."""
        return self._first_ns + round((count - self._first_count) * self.ns_per_count)

    def close(self) -> None:
        """Unmap the code; the clock can still convert."""
        del self._read, self._anchor
        self._page.close()

    def _sample(self) -> tuple[int, int]:
        best: tuple[int, int, int] | None = None
        for _ in range(_TRIES):
            before = time.monotonic_ns()
            count = self._read()
            after = time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, count, (before + after) // 2)
        assert best is not None
        return best[1], best[2]


def _check_counter() -> None:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                if {"constant_tsc", "tsc"} <= set(line.split()):
                    return
                break
    raise SteppingError("this processor's time stamp counter does not run at a constant rate")
