"""Keeps the accounts of a program's goroutines: samples it in time, and counts the calls that it is told of.

The program is not stopped, and does not notice; this process is kept busy for a few per cent of its time at most,
whatever the program's size, because what takes long is done less often.
"""

import random
import time

from ptserver.inspection.blocked_time import BlockedTime
from ptserver.inspection.goroutine_sampler import Sampler
from ptserver.inspection.goroutine_stats import Accounts

#: How long it is between samples of the threads, on average, and between lists of the goroutines, at least. A program
#: may be over soon, so the first lists come one after the other.
SAMPLE_SECONDS = 0.01
LISTING_SECONDS = 0.5
_FIRST_LISTING_SECONDS = 0.03
#: The part of this process's time that samples, and that listings, may take.
_SHARE = 0.05


class Meter:
    """The accounts of process *pid*; of 0, or without a program of Go's, only calls are counted. To be closed.

    listings: whether to list goroutines, too. threads: how many there were in the last sample.
    blocked: measures how long goroutines are blocked, once `measure_blocked` was called; before, it is estimated.
    """

    def __init__(self, pid: int, *, listings: bool = True) -> None:
        self.accounts = Accounts()
        self.blocked: BlockedTime | None = None
        self.threads = 0
        self._sampler = Sampler.open(pid) if pid else None
        self._listings = listings
        self._next_sample = self._next_listing = 0.0
        self._listing_seconds = _FIRST_LISTING_SECONDS

    def measure_blocked(self, since_ns: int) -> BlockedTime:
        """Make no more estimates of the time blocked; return whom to tell of waits, from *since_ns* on."""
        if self.blocked is None:
            self.accounts.estimate_blocked = False
            self.blocked = BlockedTime(self.accounts, since_ns)
        return self.blocked

    @property
    def is_go(self) -> bool:
        """Whether processor time and goroutines can be told."""
        return self._sampler is not None

    def sample_if_due(self) -> None:
        """Take a sample if the time has come; to be called as often as is convenient, after the calls so far."""
        if self._sampler is not None and time.monotonic() >= self._next_sample:
            self.sample()

    def sample(self) -> None:
        """Take a sample now, and a listing if the time for one has come."""
        sampler = self._sampler
        if sampler is None:
            return
        began = time.monotonic()
        threads = sampler.threads()
        self.accounts.take_threads(time.monotonic_ns(), threads)
        self.threads = len(threads)
        sampled = time.monotonic()
        # Not in step with what the program does in steps of its own.
        pause = max(SAMPLE_SECONDS, (sampled - began) / _SHARE) * random.uniform(0.5, 1.5)
        self._next_sample = sampled + pause
        if self._listings and sampled >= self._next_listing:
            (self.blocked or self.accounts).take_listing(time.monotonic_ns(), sampler.goroutines())
            listed = time.monotonic()
            self._next_listing = listed + max(self._listing_seconds, (listed - sampled) / _SHARE)
            self._listing_seconds = min(2 * self._listing_seconds, LISTING_SECONDS)

    def finish(self) -> None:
        """Take the last sample, with a listing, so that every goroutine that is left has its name."""
        self._next_listing = 0.0
        self.sample()

    def close(self) -> None:
        """Give up all descriptors; the accounts remain."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
