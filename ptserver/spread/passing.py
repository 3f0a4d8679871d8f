"""Pages that go straight from this host to others, and come straight from them: one host's part.

A page that is given away is gone from the program's memory here, and its content is kept until the home says that it
has arrived. One that comes is placed when the home has announced it *and* it is here: so what the home has said
before is done before, and a peer can change nothing but the pages that the home lets it send. What comes before it
is announced waits; there may be so much of that as can be on its way.

Not trusted: the other hosts.
"""

from collections.abc import Callable, Iterable

from ptserver.errors import ProtocolError
from ptserver.spread.message_base import SpreadMessage
from ptserver.spread.page_messages import Access, PagesData
from ptserver.spread.passing_messages import Arrived, ExpectPage, PassAgain, PassedPage, Settled
from ptserver.spread.requests import Later

#: Sends a page to another host; returns whether there is a connection.
PassOn = Callable[[int, PassedPage], bool]

#: How many pages of one peer may wait for their announcement.
MOST_EARLY = 4096
#: How long who needs pages that are announced waits for them at most.
_LATE_SECONDS = 500e-6


class Passing:
    """*place(page, data, access)* puts a page into memory; *emit* tells the home."""

    def __init__(
        self,
        emit: Callable[[SpreadMessage], None],
        place: Callable[[int, bytes, Access], None],
        pass_on: PassOn,
        later: Later,
    ) -> None:
        self._emit = emit
        self._place = place
        self._pass_on = pass_on
        self._later = later
        self._kept: dict[int, PagesData] = {}  # by transfer
        self._expected: dict[int, ExpectPage] = {}  # by page
        self._early: dict[int, dict[int, PassedPage]] = {}  # by peer and transfer
        self._waiting: list[_Waiting] = []
        self.takers: dict[type, Callable[..., None]] = {
            ExpectPage: self._expect,
            PassAgain: self._pass_again,
            Settled: self._settled,
        }

    def give(self, to: int, transfer: int, given: PagesData) -> None:
        """Send a page that is not in memory any more, or may not be written, to host *to*."""
        (page,), (dirty,) = given.pages, given.dirty
        if self._pass_on(to, PassedPage(page, transfer, given.data, bool(dirty))):
            self._kept[transfer] = given
        else:
            self._emit(given)

    def take(self, peer: int, message: PassedPage) -> None:
        """Take what a peer has sent.

        Raises:
            ProtocolError: it sends what nobody has announced.
        """
        expected = self._expected.get(message.page)
        if expected is not None and expected.transfer == message.transfer and expected.source == peer:
            self._arrive(expected, message)
            return
        early = self._early.setdefault(peer, {})
        if len(early) >= MOST_EARLY:
            raise ProtocolError("the peer sends pages that nobody has announced")
        early[message.transfer] = message

    def forget(self, peer: int) -> None:
        """Forget what a peer has sent that is not announced."""
        self._early.pop(peer, None)

    def came_otherwise(self, pages: Iterable[int]) -> None:
        """Expect pages no more, which have come through the home."""
        if self._expected:
            for page in pages:
                if self._expected.pop(page, None) is not None:
                    self._go_on(page)

    def when_here(self, pages: Iterable[int], then: Callable[[], None]) -> None:
        """Call *then* when all of *pages* that are expected have come, or after a while."""
        missing = {page for page in pages if page in self._expected}
        if not missing:
            then()
            return
        waiting = _Waiting(missing, then)
        self._waiting.append(waiting)
        self._later(_LATE_SECONDS, lambda: self._end_wait(waiting))

    def _expect(self, message: ExpectPage) -> None:
        self._expected[message.page] = message
        early = self._early.get(message.source, {}).pop(message.transfer, None)
        if early is not None and early.page == message.page:
            self._arrive(message, early)

    def _arrive(self, expected: ExpectPage, message: PassedPage) -> None:
        page = message.page
        del self._expected[page]
        if expected.clean or (expected.clean_if_unwritten and not message.dirty):
            access = Access.CLEAN
        else:
            access = Access.WRITE if expected.writable else Access.READ
        self._place(page, message.data, access)
        self._emit(Arrived(page, expected.transfer, message.dirty))
        self._go_on(page)

    def _go_on(self, page: int) -> None:
        """Let those go on for whom *page* was the last that was missing."""
        for waiting in [*self._waiting]:
            waiting.missing.discard(page)
            if not waiting.missing:
                self._end_wait(waiting)

    def _end_wait(self, waiting: "_Waiting") -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            waiting.then()

    def _pass_again(self, message: PassAgain) -> None:
        kept = self._kept.pop(message.transfer, None)
        if kept is not None:  # else it has gone through the home, or will
            self._emit(kept)

    def _settled(self, message: Settled) -> None:
        for transfer in message.transfers:
            self._kept.pop(transfer, None)


class _Waiting:
    """missing: the pages without which *then* is not called."""

    def __init__(self, missing: set[int], then: Callable[[], None]) -> None:
        self.missing = missing
        self.then = then
