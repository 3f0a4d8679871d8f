"""Who has which page: the directory of a spread program's memory. Pure: messages in, messages out.

A page is with nobody (it is all zeros), with one host that may write it, or with any number that may read it; never
with a writer and another. That is what makes the memory sequentially consistent, and `PageDirectory` is the only
place that decides it.

    holders  a bit per host; writer  the one host that may write, if any

Each page changes hands alone. While one does, it is *busy*: further requests for it wait in its queue, in order. A
request of one host is answered to that host only after every other has given up what it must. Since messages to
one host arrive in order, a page that was granted counts as granted when the message is sent.

Between two hosts that have a connection the content goes *straight*: its source is told to pass it on at once, the
other to expect it as soon as no third one has the page, and that is granted which the other says has arrived. Until
then the page is the source's, which keeps the content; what does not arrive comes from there through the home.

Migratory pages. A page that one host after the other reads and soon afterwards writes (a lock, a counter) costs two
transfers each time. When that has been seen, a reader gets it to itself at once. Now and then it gets it marked
clean, so that its first write is noted; if it is asked to give such a page up before it has written it, the page is
treated as an ordinary one again, for longer each time.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ptserver.spread.messages import AllowWrite, Deny, DropPage, SpreadMessage, TryAgain, ZeroPages
from ptserver.spread.outgoing import Outgoing
from ptserver.spread.page_messages import Access
from ptserver.spread.passing_messages import ExpectPage, PassAgain, PassPage, Settled
from stepping.maps import PAGE_BYTES

#: So many untouched pages are given at the first touch of one, aligned; and to a host that has touched others near it
#: or right before them.
FIRST_TOUCH_PAGES, NEXT_TOUCH_PAGES = 16, 128
#: A migratory page is marked clean one time in so many, more often at first: to note a write costs half a transfer.
_CLEAN_TURNS = 64
#: How soon after it has read a page a host writes one that is migratory.
_SOON_SECONDS = 0.002
#: How often that is not believed of a page of which it was wrong: twice as often each time, until so often.
_MOST_DOUBTS = 256
_READ, _WRITE, _CLEAN = Access
#: How many pages that have arrived straight a source keeps the content of until it is told.
_MOST_UNSETTLED = 32

Send = Callable[[int, SpreadMessage], None]
#: Whether the program may touch the page with this number.
MayTouch = Callable[[int], bool]
#: Whether pages can go straight from the first host to the second, neither of which is host 0.
IsStraight = Callable[[int, int], bool]


@dataclass(slots=True)
class _Transfer:
    """A page that changes hands, for *host*. data: what came, until it can be handed on; start: where in that it is.

    number: of one that goes straight, from host *source*; else 0. queue: (host, whether to write) of who has asked
    since. then: called when it has been granted, or *host* is to expect it; at_rest: called when it has been granted.
    """

    host: int
    write: bool
    upgrade: bool
    drops: int
    alone: bool = False
    source: int = 0
    number: int = 0
    data: bytes | None = None
    start: int = 0
    queue: list[tuple[int, bool]] | None = None
    then: Callable[[], None] | None = None
    at_rest: list[Callable[[], None]] | None = None


@dataclass(slots=True)
class _Habit:
    """How a page is used. reader, at: who got it last to read it, and when; -1 once that is of no matter.

    moves: how often it has moved as a migratory page, -1 if it is none. doubts: how often it is still not to be taken
    for one; wrongs: how many there are the next time.
    """

    reader: int
    at: float
    moves: int = -1
    doubts: int = 0
    wrongs: int = 1


class PageDirectory:
    """The directory; *outgoing* takes what hosts must do. Counts of what happened are in `counts`."""

    def __init__(
        self,
        outgoing: Outgoing,
        may_touch: MayTouch,
        is_straight: IsStraight = lambda source, host: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outgoing = outgoing
        self._send = outgoing.say
        self._may_touch = may_touch
        self._is_straight = is_straight
        self._now = now
        self._last_number = 0
        self._unsettled: dict[int, list[int]] = {}  # by source: transfers that have arrived
        self._holders: dict[int, int] = {}
        self._writer: dict[int, int] = {}
        self._busy: dict[int, _Transfer] = {}
        self._habits: dict[int, _Habit] = {}
        self._touched: dict[
            int, int
        ] = {}  # by number of NEXT_TOUCH_PAGES: the host that touched one of them first
        self._denied: dict[
            int, int
        ] = {}  # by page that nobody may touch: the hosts that wanted to, a bit each
        names = ("first", "read", "write", "upgrade", "again", "denied", "ahead", "straight", "relayed")
        self.counts = dict.fromkeys(names, 0)

    def place(self, host: int, pages: Iterable[int]) -> None:
        """Note that *host* has *pages*, which nobody had, to itself."""
        for page in pages:
            self._holders[page] = 1 << host
            self._writer[page] = host

    def holder(self, page: int) -> int | None:
        """Return a host that has the page, host 0 if it does; None if it is all zeros."""
        holders = self._holders.get(page)
        return None if holders is None else (holders & -holders).bit_length() - 1

    def writer(self, page: int) -> int | None:
        """Return the host that may write the page, unless it changes hands."""
        return self._writer.get(page)

    def has_kept(self, host: int, page: int) -> bool:
        """Whether no other host can have written a page since *host* had it and said what is just taken.

        That it has given it away since it would say after that. But a page that goes straight may be written by
        another, and be granted to *host* anew, before it is known.
        """
        return bool(self._holders.get(page, 0) >> host & 1) and not self.counts["straight"]

    def is_migratory(self, page: int) -> bool:
        """Whether who reads the page gets it to itself, since it will write it next."""
        habit = self._habits.get(page)
        return habit is not None and habit.moves >= 0

    def is_busy(self, pages: range) -> bool:
        """Whether one of *pages* changes hands."""
        return any(page in pages for page in self._busy)

    def comes_straight(self, page: int, host: int) -> bool:
        """Whether *host* is to expect a page from another host, and has not said that it has it."""
        transfer = self._busy.get(page)
        return transfer is not None and transfer.host == host and bool(transfer.number) and not transfer.drops

    def busy(self) -> Iterable[int]:
        """Return the pages that change hands."""
        return self._busy.keys()

    def held(self) -> Iterator[tuple[int, tuple[int, ...], int | None]]:
        """Yield (page, its holders, its writer) for every page that somebody has."""
        for page, holders in self._holders.items():
            yield page, tuple(_bits(holders)), self._writer.get(page)

    def request(self, host: int, page: int, *, write: bool) -> None:
        """Take a fault of *host*."""
        transfer = self._busy.get(page)
        if transfer is not None:
            if transfer.queue is None:
                transfer.queue = []
            transfer.queue.append((host, write))
            return
        holders = self._holders.get(page, 0)
        if not holders:
            self._touch_first(host, page)
        elif holders >> host & 1:
            if not write or self._writer.get(page) == host:
                self.counts["again"] += 1
                self._send(host, TryAgain(page))
            else:
                self._upgrade(host, page, holders)
        else:
            self._fetch(host, page, holders, write)

    def fetch_ahead(
        self, host: int, page: int, *, write: bool, then: Callable[[], None] | None = None
    ) -> bool:
        """Give *host* a page that it has not asked for, if another host has it and it is at rest.

        A page that it may read already becomes its own, with *write*. Returns whether it takes time, and calls *then*
        in that case when the page has been sent to *host*, or that is to expect it: then it can wait for it itself.
        """
        return bool(self.fetch_all_ahead(host, ((page, write),), then))

    def fetch_all_ahead(
        self, host: int, wants: Iterable[tuple[int, bool]], then: Callable[[], None] | None = None
    ) -> int:
        """As `fetch_ahead`, for each of (page, whether to write); returns for how many *then* will be called."""
        known, busy, writers = self._holders, self._busy, self._writer
        mine: list[int] = []
        count = 0
        for page, write in wants:
            holders = known.get(page, 0)
            if not holders or page in busy:
                continue
            if holders >> host & 1:
                if write:
                    mine.append(page)
                continue
            self.counts["ahead"] += 1
            transfer = self._fetch(host, page, holders, write)
            if transfer.drops or not transfer.number:
                transfer.then = then
                count += 1
        for page in mine:  # after the others, which so are asked for in one message
            if page not in busy and page not in writers:
                self.counts["ahead"] += 1
                self._upgrade(host, page, known[page])
                if page in busy:
                    busy[page].then = then
                    count += 1
        return count

    def take_data(self, pages: Iterable[int], dirty: bytes, data: bytes) -> None:
        """Take what pages have, one after the other, from a host that was asked for them.

        dirty: for each whether it was written there.
        """
        busy, start = self._busy, 0
        for page, is_dirty in zip(pages, dirty, strict=True):
            transfer = busy[page]
            transfer.data, transfer.start = data, start
            start += PAGE_BYTES
            if not is_dirty:
                self._is_not_migratory(page)
            if not transfer.drops:
                self._finish(page, transfer)

    def when_at_rest(self, page: int, then: Callable[[], None]) -> bool:
        """Call *then* when a page that changes hands has been granted; return False if it does not change hands."""
        transfer = self._busy.get(page)
        if transfer is None:
            return False
        if transfer.at_rest is None:
            transfer.at_rest = []
        transfer.at_rest.append(then)
        return True

    def take_arrived(self, page: int, number: int, *, dirty: bool) -> None:
        """Take the word of a host that it has the page of transfer *number*. It must have been told to expect it."""
        transfer = self._busy[page]
        assert transfer.number == number
        if not dirty:
            self._is_not_migratory(page)
        unsettled = self._unsettled.setdefault(transfer.source, [])
        unsettled.append(number)
        if len(unsettled) >= _MOST_UNSETTLED:
            del self._unsettled[transfer.source]
            self._send(transfer.source, Settled(tuple(unsettled)))
        self._finish(page, transfer)

    def pass_again(self, source: int, host: int) -> None:
        """Have what is on its way straight from *source* to *host* come through the home: it will not arrive."""
        for transfer in self._busy.values():
            if (
                transfer.number
                and transfer.host == host
                and transfer.source == source
                and transfer.data is None
            ):
                self._send(source, PassAgain(transfer.number))

    def take_dropped(self, page: int) -> None:
        """Take the word of a host that it has dropped the page. It must have been told to."""
        transfer = self._busy[page]
        transfer.drops -= 1
        if transfer.drops:
            return
        if transfer.upgrade or transfer.data is not None:
            self._finish(page, transfer)
        elif transfer.number:
            self._expect(page, transfer)

    def forget(self, pages: range) -> int:
        """Make *pages*, of which none is busy, all zeros; return the hosts that had some, a bit each."""
        assert not self.is_busy(pages)
        known = self._holders
        few = len(pages) < len(known)
        gone = [page for page in pages if page in known] if few else [page for page in known if page in pages]
        hosts = 0
        for page in gone:
            hosts |= known.pop(page)
            self._writer.pop(page, None)
            self._habits.pop(page, None)
        for _, denied in self.take_denied(pages):
            hosts |= denied
        return hosts

    def take_denied(self, pages: range) -> list[tuple[int, int]]:
        """Return those of *pages* that hosts were denied, which have not been told of since: (page, hosts' bits)."""
        return [(page, self._denied.pop(page)) for page in [*self._denied] if page in pages]

    def evict(self, host: int, to: int, limit: int) -> int:
        """Begin to give host *to* what *host* has, *limit* pages at most; return how many it has still."""
        bit = 1 << host
        mine = [page for page, holders in self._holders.items() if holders & bit]
        for page in [page for page in mine if page not in self._busy][:limit]:
            self.request(to, page, write=True)
        due = sum(transfer.host == host for transfer in self._busy.values())
        return len(mine) + due

    def abandon(self, host: int) -> bool:
        """Forget *host*, which is lost; return False if something of the memory is lost with it.

        What another host still has to give for it goes back there.
        """
        bit = 1 << host
        mine = [page for page, holders in self._holders.items() if holders & bit]
        if any(self._holders[page] == bit or page in self._busy for page in mine):
            return False
        if any(transfer.host == host and transfer.number for transfer in self._busy.values()):
            return False
        for transfer in self._busy.values():
            if transfer.host == host:
                transfer.host = transfer.source
            transfer.queue = [each for each in transfer.queue or () if each[0] != host]
        for page in mine:
            self._holders[page] &= ~bit
        self._unsettled.pop(host, None)
        return True

    def _touch_first(self, host: int, page: int) -> None:
        if not self._may_touch(page):
            self.counts["denied"] += 1
            self._denied[page] = self._denied.get(page, 0) | 1 << host
            self._send(host, Deny(page))
            return
        block = page // NEXT_TOUCH_PAGES
        again = host in (self._touched.get(block), self._touched.get(block - 1))
        self._touched.setdefault(block, host)
        count = NEXT_TOUCH_PAGES if again else FIRST_TOUCH_PAGES
        first = page - page % count
        low = high = page
        while low > first and self._is_free(low - 1):
            low -= 1
        while high + 1 < first + count and self._is_free(high + 1):
            high += 1
        self.place(host, range(low, high + 1))
        self.counts["first"] += 1
        self._send(host, ZeroPages(low, high + 1 - low))

    def _is_free(self, page: int) -> bool:
        return page not in self._holders and self._may_touch(page)

    def _upgrade(self, host: int, page: int, holders: int) -> None:
        habit = self._habits.get(page)
        if habit is not None and habit.reader == host:
            habit.reader = -1
            if self._now() - habit.at < _SOON_SECONDS:
                habit.moves = -1 if habit.doubts else max(habit.moves, 0)
                habit.doubts -= bool(habit.doubts)
        others = holders & ~(1 << host)
        if others:
            transfer = _Transfer(host, True, True, others.bit_count())
            self._busy[page] = transfer
            self._drop(page, others)
            return
        self._grant_write(host, page)

    def _fetch(self, host: int, page: int, holders: int, write: bool) -> _Transfer:
        source = self._writer.pop(page, None)
        if source is None:
            source = (holders & -holders).bit_length() - 1
        alone = write or self.is_migratory(page)
        transfer = self._busy[page] = _Transfer(host, write, False, 0, alone, source)
        if alone and (others := holders & ~(1 << source)):
            transfer.drops = others.bit_count()
            self._drop(page, others)
        if not (source and host and self._is_straight(source, host)):
            self._outgoing.ask(source, page, keep=not alone)
            return transfer
        self._last_number += 1
        transfer.number = self._last_number
        self._send(source, PassPage(page, not alone, host, transfer.number))
        if not transfer.drops:
            self._expect(page, transfer)
        return transfer

    def _expect(self, page: int, transfer: _Transfer) -> None:
        """Have a host take a page that comes straight to it: nobody but its source has it, or nobody may write it."""
        reads_alone = transfer.alone and not transfer.write
        clean = reads_alone and self._is_turn(page)
        writable = transfer.alone and not clean
        message = ExpectPage(page, transfer.number, transfer.source, writable, clean, reads_alone)
        self._send(transfer.host, message)
        if transfer.then is not None:
            transfer.then()
            transfer.then = None

    def _drop(self, page: int, hosts: int) -> None:
        for host in _bits(hosts):
            self._send(host, DropPage(page))

    def _finish(self, page: int, transfer: _Transfer) -> None:
        del self._busy[page]
        host, write = transfer.host, transfer.write
        if transfer.upgrade:
            self._grant_write(host, page)
        elif transfer.alone or host != transfer.source:  # else it has kept what was for a host that is lost
            if transfer.alone:
                self._holders[page] = 1 << host
                self._writer[page] = host
            else:
                self._holders[page] |= 1 << host
                self._note_reader(page, host)
            self.counts["write" if write else "read"] += 1
            if transfer.data is None:  # it has arrived
                self.counts["straight"] += 1
            else:
                self.counts["relayed"] += bool(host and transfer.source)
                clean = transfer.alone and not write and self._is_turn(page)
                access = _CLEAN if clean else _WRITE if transfer.alone else _READ
                self._outgoing.put(host, page, transfer.data, transfer.start, access)
        if transfer.then is not None:
            transfer.then()
        for then in transfer.at_rest or ():
            then()
        for next_host, wants_write in transfer.queue or ():
            self.request(next_host, page, write=wants_write)

    def _note_reader(self, page: int, host: int) -> None:
        habit = self._habits.get(page)
        if habit is None:
            self._habits[page] = _Habit(host, self._now())
        else:
            habit.reader, habit.at = host, self._now()

    def _is_not_migratory(self, page: int) -> None:
        habit = self._habits.get(page)
        if habit is not None and habit.moves >= 0:
            habit.moves, habit.doubts = -1, habit.wrongs
            habit.wrongs = min(2 * habit.wrongs, _MOST_DOUBTS)

    def _is_turn(self, page: int) -> bool:
        """Whether a migratory page that goes to a reader is to be marked clean this time."""
        habit = self._habits.get(page)
        if habit is None or habit.moves < 0:
            return True
        moves = habit.moves
        habit.moves += 1
        return moves & (moves - 1) == 0 or moves % _CLEAN_TURNS == 0

    def _grant_write(self, host: int, page: int) -> None:
        self._holders[page] = 1 << host
        self._writer[page] = host
        self.counts["upgrade"] += 1
        self._send(host, AllowWrite(page))


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
