"""`python -m bench.spread_service [--json] [--quick] [--repeat N]`: what Python's code takes to serve one fault of a
spread program.

A goroutine reads every third page of an array that another host has, so each is waited for, alone. Both hosts are
kept by the home's process. Counted is, for each fault, the time by the clock from before the fault is read to when
its page has been placed, without what calls of the kernel took meanwhile. Those are timed one by one; that takes some
microseconds, which are counted as Python's. Not counted is how the home's process and the thread come to run. With an
agent, messages are encoded and decoded besides, twice each.
"""

import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import cli
from bench.figures import options
from bench.measure import BenchError
from stepping import page_taker
from stepping.userfault import UserFault
from tests.gofixtures import build

#: How many faults, and what is asked of their median.
SERVICES, SERVICE_ASKED = 2_000, "at most 0.02 ms"
_SECONDS = 60
_KERNEL = "read pread splice lseek open close waitpid".split()


class _Clock:
    """kernel_ns: how long calls of the kernel have taken so far; services: of each fault, what is counted."""

    def __init__(self) -> None:
        self.kernel_ns = 0
        self.services: list[int] = []
        self._began: tuple[int, int] | None = None

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return *call*, which counts as one of the kernel."""

        def timed(*args: Any, **named: Any) -> Any:
            before = time.perf_counter_ns()
            try:
                return call(*args, **named)
            finally:
                self.kernel_ns += time.perf_counter_ns() - before

        return timed

    def begins(self, read: Callable[..., Any]) -> Callable[..., Any]:
        """Return *read*, with whose call the service of a fault begins if it gives one."""

        def begins(*args: Any) -> Any:
            began = time.perf_counter_ns(), self.kernel_ns
            faults = read(*args)
            self._began = began if len(faults) == 1 else None
            return faults

        return begins

    def ends(self, place: Callable[..., Any]) -> Callable[..., Any]:
        """Return *place*, with whose end the service of a fault is over."""

        def ends(*args: Any, **named: Any) -> Any:
            result = place(*args, **named)
            if self._began is not None:
                began, kernel_ns = self._began
                self.services.append(time.perf_counter_ns() - began - (self.kernel_ns - kernel_ns))
                self._began = None
            return result

        return ends


def _serve(count: int) -> None:
    """Run the program in this process; print the median, in seconds."""
    clock = _Clock()
    for name in _KERNEL:
        setattr(os, name, clock.timed(getattr(os, name)))
    fcntl.ioctl = clock.timed(fcntl.ioctl)
    page_taker._fallocate = clock.timed(page_taker._fallocate)  # type: ignore[assignment]
    UserFault.read = clock.begins(UserFault.read)  # type: ignore[method-assign]
    UserFault.copy = clock.ends(UserFault.copy)  # type: ignore[method-assign]
    program = str(build("spread_speed", stub=True))
    sys.argv = ["ptserver", "run", "--spread", "local", "--place", "stay", program, "scatter", str(count)]
    try:
        cli.main()
    finally:
        print(statistics.median(clock.services[len(clock.services) // 4 :]) / 1e9)


def service_seconds(count: int = SERVICES) -> float:
    """Return what Python's code took for the median fault of *count*, without the first quarter.

    Raises:
        BenchError: the program failed.
    """
    command = [sys.executable, "-m", "bench.spread_service", "--inside", str(count)]
    environment = os.environ | {"GOMAXPROCS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SECONDS)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
    return float(done.stdout.split()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the median of the rounds, or with ``--json`` in seconds."""
    parser = options("spread_service", "Measure what Python's code takes to serve a fault.", rounds=5)
    parser.add_argument("--inside", type=int, help="run the program in this process, for so many faults")
    given = parser.parse_args(argv)
    if given.inside:
        _serve(given.inside)
        return
    rounds = [
        service_seconds(SERVICES // (10 if given.quick else 1))
        for _ in range(1 if given.quick else given.repeat)
    ]
    median = statistics.median(rounds)
    if given.json:
        print(json.dumps({"service": median}))
    else:
        print(f"service of a fault in Python: {median * 1e3:.4f} ms  {SERVICE_ASKED}")


if __name__ == "__main__":
    main()
