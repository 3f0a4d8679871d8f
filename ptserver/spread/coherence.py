"""Checks that all hosts of a spread program have the same memory: what they keep, against what the directory says.

Every host is asked at one moment of the home's. Since messages to a host arrive in order, each answer tells of that
moment, and nothing has to be stopped for it: pages that change hands just then are left out, a page of a writer has
no second copy, and no reader's copy changes before it is told to give it up.
"""

from collections.abc import Callable

from ptserver.errors import PtServerError
from ptserver.spread.members import Members
from ptserver.spread.messages import Inventory, SpreadMessage, TakeInventory
from ptserver.spread.pages import PageDirectory
from ptserver.spread.requests import Later


class MemoryDiffersError(PtServerError):
    """Hosts of a spread program have different memory: a mistake in ptserver. The program has been killed."""

    exit_status = 70


class CoherenceChecker:
    """Checks whenever `check` is called and, from `begin` on, every *seconds*."""

    def __init__(
        self,
        members: Members,
        pages: PageDirectory,
        send: Callable[[int, SpreadMessage], None],
        later: Later,
        seconds: float,
    ) -> None:
        self._members = members
        self._pages = pages
        self._send = send
        self._later = later
        self._seconds = seconds
        self._missing: set[int] = set()
        self._expected: dict[int, set[int]] = {}
        self._uncertain: set[int] = set()
        self._seen: dict[int, tuple[int, int]] = {}
        self._then: list[Callable[[], None]] = []
        self.checks = 0

    def begin(self) -> None:
        """Check now and then from now on."""
        self._later(self._seconds, lambda: self.check(self.begin))

    def check(self, then: Callable[[], None]) -> None:
        """Check all that is at rest; call *then*. While a check is under way, it counts for this one as well."""
        self._then.append(then)
        if len(self._then) > 1:
            return
        hosts = [host for host in self._members.present if self._members.is_ready(host)]
        self._missing = set(hosts)
        self._seen = {}
        self._uncertain = set(self._pages.busy())
        self._expected = {host: set() for host in hosts}
        for page, holders, writer in self._pages.held():
            if writer is not None and len(holders) > 1:
                raise MemoryDiffersError(f"page {page:#x} has a writer, host {writer}, among {holders}")
            for host in holders:
                if host in self._expected:
                    self._expected[host].add(page)
        for host in hosts:
            self._send(host, TakeInventory())

    def take(self, host: int, message: Inventory) -> None:
        """Take what a host has.

        Raises:
            MemoryDiffersError: it is not what it must be.
        """
        if host not in self._missing:
            return
        self._missing.discard(host)
        found = dict(message.pages)
        wrong = (found.keys() ^ self._expected[host]) - self._uncertain
        if wrong:
            page = min(wrong)
            has = "has" if page in found else "does not have"
            raise MemoryDiffersError(f"host {host} {has} page {page:#x}, unlike what the home knows")
        for page, checksum in found.items():
            before = self._seen.setdefault(page, (host, checksum))
            if before[1] != checksum and page not in self._uncertain:
                raise MemoryDiffersError(f"hosts {before[0]} and {host} differ in page {page:#x}")
        if not self._missing:
            self.checks += 1
            then, self._then = self._then, []
            for each in then:
                each()

    def forget_host(self, host: int) -> None:
        """Expect nothing of a host that is gone."""
        if host in self._missing:
            self._expected[host] = set()
            self.take(host, Inventory(()))
