"""Tells a server from time to time what the program's goroutines use: the host's own counts of calls, and samples.

Calls are those that the host takes; what nobody serves is not seen. The program is not stopped for samples, and the
host takes them when it has nothing else to do, some 20 times a second. Thread rules: those of the host.
"""

import heapq
import time
from collections.abc import Callable

from ptserver.inspection.goroutine_meter import Meter
from ptserver.inspection.goroutine_stats import Account, Totals
from ptserver.messages import MAX_STATISTICS, GoroutineStatistics, GoroutineUse, Use
from ptserver.net.poll_loop import PollLoop
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, LossEvent, SyscallEvent

_SAMPLE_SECONDS = 0.05
_MAX_SITE = 4096


class HostStatistics:
    """A `TraceSink` that counts the calls of process *pid*, and every so many seconds gives all accounts."""

    def __init__(
        self, pid: int, loop: PollLoop, seconds: float, give: Callable[[GoroutineStatistics], None]
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._give = give
        self._meter = Meter(pid)
        self._before: dict[int, tuple[int, int]] = {}
        self._closed = False
        loop.later(_SAMPLE_SECONDS, self._sample)
        loop.later(seconds, self._tell)

    def event(self, event: Event) -> None:
        """Count a call."""
        if type(event) is SyscallEvent:
            self._meter.accounts.take_call(event)

    def calls(self, batch: CallBatch) -> None:
        """Take what a ring tells of waits, and of losses; calls a host answers one by one."""
        blocked = self._meter.blocked
        if blocked is not None:
            blocked.take(batch.waits)
            for _, event in batch.others:
                if type(event) is LossEvent:
                    blocked.lose(event.start_ns)

    def measure_blocked(self, since_ns: int) -> None:
        """Measure how long goroutines are blocked, by the waits that `calls` is told of."""
        self._meter.measure_blocked(since_ns)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Take no more samples."""
        self._closed = True
        self._meter.close()

    def _sample(self) -> None:
        if not self._closed:
            self._meter.sample()
            self._loop.later(_SAMPLE_SECONDS, self._sample)

    def _tell(self) -> None:
        if self._closed:
            return
        if self._meter.blocked is not None:
            self._meter.blocked.settle(time.monotonic_ns())
        accounts = self._meter.accounts.by_goroutine()
        chosen = heapq.nlargest(MAX_STATISTICS, accounts, key=self._used_since)
        self._before = {account.goid: (account.cpu_ns, account.calls) for account in accounts}
        self._loop.later(self._seconds, self._tell)
        self._give(
            GoroutineStatistics(
                time.monotonic_ns(),
                tuple(GoroutineUse(each.goid, use_of(each), each.site[:_MAX_SITE]) for each in chosen),
                len(accounts) - len(chosen),
            )
        )

    def _used_since(self, account: Account) -> tuple[int, int]:
        cpu_ns, calls = self._before.get(account.goid, (0, 0))
        return account.cpu_ns - cpu_ns, account.calls - calls


def use_of(totals: Totals) -> Use:
    """Return sums as a part of messages."""
    return Use(*[getattr(totals, name) for name in Use.__struct_fields__])
