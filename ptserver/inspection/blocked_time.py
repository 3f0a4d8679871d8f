"""How long each goroutine was blocked, to the nanosecond: from what the ring's probes tell of each wait.

    blocked = BlockedTime(accounts, since_ns)
    blocked.take(waits)               in their order, as they are read
    blocked.take_listing(...)         from time to time
    blocked.settle(now_ns)            before the accounts are looked at

A wait that began before *since_ns* counts from then on. Of a goroutine that waits all the time no probe tells; one
that waits in two lists, with nothing heard of it, has done so since the beginning.

Pure. Bounded by the number of goroutines that there are at a time: one that ends is forgotten.
"""

from collections.abc import Iterable

from ptserver.inspection.goroutine_stats import Accounts, Listed
from ptserver.tracelog.batch import Wait


class BlockedTime:
    """Adds waits to *accounts*, which make no estimates; since_ns: when the probes were put in."""

    def __init__(self, accounts: Accounts, since_ns: int) -> None:
        self._accounts = accounts
        self._since_ns = since_ns
        #: Since when those wait that do; and of whom something was heard.
        self._waiting: dict[int, int] = {}
        self._heard: set[int] = set()
        self._silent: set[int] = set()

    def take(self, waits: Iterable[Wait]) -> None:
        """Take the beginnings and ends of waits."""
        waiting, heard = self._waiting, self._heard
        for goid, at_ns, waits_now, ended in waits:
            if waits_now:
                waiting[goid] = at_ns
            else:
                began_ns = waiting.pop(goid, None)
                if began_ns is None and goid not in heard and not ended:
                    began_ns = self._since_ns
                if began_ns is not None and at_ns > began_ns:
                    self._accounts.take_blocked(goid, at_ns - began_ns, at_ns)
            if ended:
                heard.discard(goid)
            else:
                heard.add(goid)

    def take_listing(self, now_ns: int, listed: Iterable[Listed]) -> list[Listed]:
        """Take a list of all goroutines, give it to the accounts, and return it."""
        goroutines = list(listed)
        self.take_waiting(goid for goid, waits, _ in goroutines if waits)
        self._accounts.take_listing(now_ns, goroutines)
        return goroutines

    def take_waiting(self, goids: Iterable[int]) -> None:
        """Take the goroutines that a list has seen waiting, when the accounts are not to have the list."""
        silent = {goid for goid in goids if goid not in self._heard}
        for goid in silent & self._silent:
            self._waiting.setdefault(goid, self._since_ns)
        self._silent = silent

    def lose(self, now_ns: int) -> None:
        """Hear that waits are missing: what is known begins anew at this moment."""
        self._waiting.clear()
        self._heard.clear()
        self._silent.clear()
        self._since_ns = now_ns

    def settle(self, now_ns: int) -> None:
        """Add what has passed of the waits that go on."""
        for goid, began_ns in self._waiting.items():
            if now_ns > began_ns:
                self._accounts.take_blocked(goid, now_ns - began_ns, now_ns)
                self._waiting[goid] = now_ns
