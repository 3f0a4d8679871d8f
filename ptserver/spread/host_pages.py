"""The memory of one host of a spread program: which pages are here, and who waits for others. It does what the home
says.
"""

import contextlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ptserver.spread.holding import Holdings, ProcessorUse
from ptserver.spread.messages import (
    AllowWrite,
    Deny,
    Discard,
    Done,
    DropPage,
    Dropped,
    Fault,
    Inventory,
    ReadWords,
    SpreadMessage,
    TakeInventory,
    TryAgain,
    Watch,
    Watched,
    Words,
    ZeroPages,
)
from ptserver.spread.page_messages import Access, PagesData, PutPages, SendPages
from ptserver.spread.passing import Passing, PassOn
from ptserver.spread.passing_messages import PassPage
from ptserver.spread.requests import Later
from stepping.instance import Instance
from stepping.maps import PAGE_BYTES

Emit = Callable[[SpreadMessage], None]

_ZERO_PAGE = bytes(PAGE_BYTES)
_WRITE, _CLEAN = int(Access.WRITE), int(Access.CLEAN)
#: How long pages are watched for a write: who works with them writes more often.
_WATCH_SECONDS = 300e-6


class HostPages:
    """The pages of *instance*. name: the program's thread that a kernel thread is, 0 if none.

    later: calls a function after so many seconds. segfault: sends SIGSEGV for the touch of an address to a kernel
    thread. use: says what threads have had of processors. pass_on: sends a page to another host, if there is a
    connection. goes_on: called when a thread is let go on. takers: what to do for each message. passing: the pages
    that go and come straight. holdings: how long pages are kept.
    """

    def __init__(
        self,
        instance: Instance,
        emit: Emit,
        name: Callable[[int], int],
        segfault: Callable[[int, int], None],
        later: Later,
        use: ProcessorUse,
        pass_on: PassOn = lambda to, page: False,
        goes_on: Callable[[], None] = lambda: None,
    ) -> None:
        self.instance = instance
        self._later = later
        self.holdings = Holdings(use)
        self._emit = emit
        self._name = name
        self._segfault = segfault
        self._goes_on = goes_on
        self._faults = instance.faults
        self._waiting: dict[int, list[tuple[int, int]]] = {}  # by page: kernel threads and addresses
        self._waits: dict[int, int] = {}  # by kernel thread: the page that it has waited for last
        self._asked: dict[int, bool] = {}  # by page: whether it was asked for to write
        self._quiet: dict[
            int, bool
        ] = {}  # pages that may be written, when that has been noted; whether they were, before that
        self._watched: Watch | None = None
        self._poisoned: set[int] = set()  # pages whose touch fails
        self.passing = Passing(emit, self._place, pass_on, later)
        self.takers: dict[type, Callable[..., None]] = {
            **self.passing.takers,
            SendPages: lambda message: self._send_pages(message.pages, message.keep),
            PassPage: partial(self._give, self._pass_page),
            PutPages: self._put_pages,
            ZeroPages: self._zero_pages,
            AllowWrite: self._allow_write,
            TryAgain: self._try_again,
            Deny: self._deny,
            DropPage: partial(self._give, self._drop_page),
            Watch: self._watch,
            ReadWords: self._read_words,
            Discard: self._discard,
            TakeInventory: self._take_inventory,
        }

    def fails(self, address: int) -> bool:
        """Whether the touch of *address* fails, for it is denied."""
        return address // PAGE_BYTES in self._poisoned

    def is_waiting(self, kernel_tid: int) -> bool:
        """Whether a thread waits for a page, so that it neither computes nor should be moved: it would wait again."""
        return kernel_tid in self._waits

    def forget_thread(self, kernel_tid: int) -> None:
        """Forget what a thread waits for: it has ended, goes elsewhere, or does something else first."""
        self._waits.pop(kernel_tid, None)

    def look(self, address: int, size: int) -> bytes:
        """Return what is at [address, address + size), on one page, if that is here; else nothing."""
        here = self.instance.has(address - address % PAGE_BYTES)
        return self.instance.read(address, size) if here else b""

    def take_faults(self) -> None:
        """Report the faults that wait."""
        for address, write, tid in self._faults.read():
            page = address // PAGE_BYTES
            if write and self._quiet.pop(page, None) is not None:
                self._faults.unprotect(page * PAGE_BYTES)
                if self._watched is not None and page in self._watched.pages:
                    self._end_watch(self._watched, written=True)
                continue
            self._waiting.setdefault(page, []).append((tid, address))
            self._waits[tid] = page
            asked = self._asked.get(page)
            if write is not asked:  # who reads may get it before who writes
                self._asked[page] = write
                self._emit(Fault(page, write, address, self._name(tid)))

    def _send_pages(self, pages: Sequence[int], keep: bytes) -> None:
        """Give those of *pages* that may go; the others later.

        The home says nothing else about a page until it is gone.
        """
        late = self.holdings.wait_for_any(pages, time.monotonic())
        if late:
            then = [(page, kept) for page, kept in zip(pages, keep, strict=True) if page in late]
            self._later(min(late.values()), lambda: self._send_pages(*_columns(then)))
            if len(then) == len(pages):
                return
            pages, keep = _columns(
                [(page, kept) for page, kept in zip(pages, keep, strict=True) if page not in late]
            )
        try:
            if keep.count(keep[0]) == len(keep):
                self._emit(self._take_pages(pages, bool(keep[0])))
                return
            for kept in (0, 1):
                some = [page for page, each in zip(pages, keep, strict=True) if each == kept]
                self._emit(self._take_pages(some, bool(kept)))
        except ProcessLookupError:  # it may be later, and the process has ended
            pass

    def _give(self, do: Callable[..., None], message: PassPage | DropPage) -> None:
        """Do what gives a page away, when it may go."""
        seconds = self.holdings.wait(message.page, time.monotonic())
        if seconds:
            self._later(seconds, lambda: self._give(do, message))
            return
        with contextlib.suppress(ProcessLookupError):
            do(message)

    def _pass_page(self, message: PassPage) -> None:
        given = self._take_pages((message.page,), message.keep)
        self.passing.give(message.to, message.transfer, given)

    def _take_pages(self, pages: Sequence[int], keep: bool) -> PagesData:
        """Return what pages have, which change here no more; without *keep* they are not here any more."""
        quiet = self._quiet
        dirty = bytes([quiet.pop(page, True) for page in pages])
        instance = self.instance
        data = instance.copy_pages(pages) if keep else instance.take_pages(pages)
        return PagesData(tuple(pages), dirty, data)

    def _put_pages(self, message: PutPages) -> None:
        pages, data, start = message.pages, message.data, 0
        self._come(pages, message.access)
        if len(pages) == 1:
            self._put(pages[0], data, protected=message.access[0] != _WRITE)
        else:
            view = memoryview(data)
            for page, count, access in _runs(pages, message.access):
                end = start + count * PAGE_BYTES
                self._put(page, view[start:end], protected=access != _WRITE)
                start = end
        self.passing.came_otherwise(pages)

    def _place(self, page: int, data: bytes, access: Access) -> None:
        self._come((page,), bytes((access,)))
        self._put(page, data, protected=access is not Access.WRITE)

    def _come(self, pages: Sequence[int], access: bytes) -> None:
        if self._asked:  # mostly they come ahead
            for page in pages:
                self._granted(page)
        self.holdings.came(pages, time.monotonic())
        if _CLEAN in access:
            clean = [page for page, may in zip(pages, access, strict=True) if may == _CLEAN]
            self._quiet.update(dict.fromkeys(clean, False))

    def _zero_pages(self, message: ZeroPages) -> None:
        pages = range(message.page, message.page + message.count)
        for page in [page for page in self._asked if page in pages]:
            self._granted(page)
        self._put(message.page, _ZERO_PAGE * message.count, protected=False)

    def _put(self, page: int, data: bytes | memoryview, *, protected: bool) -> None:
        try:
            self._faults.copy(page * PAGE_BYTES, data, protected=protected)
        except ProcessLookupError:  # the process has ended; what it had is there for others
            self.instance.write(page * PAGE_BYTES, data)

    def _allow_write(self, message: AllowWrite) -> None:
        self._granted(message.page)
        self._faults.unprotect(message.page * PAGE_BYTES)

    def _try_again(self, message: TryAgain) -> None:
        self._granted(message.page)
        self._faults.wake(message.page * PAGE_BYTES)

    def _granted(self, page: int) -> None:
        self._asked.pop(page, None)
        waiting = self._waiting.pop(page, None)
        if waiting:
            self._goes_on()
            known: list[int] = []
            for tid, _ in waiting:
                if self._waits.get(tid) == page:
                    del self._waits[tid]
                # A child that shares the memory until it executes something is soon gone, with nobody to say so.
                if self._name(tid):
                    known.append(tid)
            self.holdings.begin(page, known)

    def _deny(self, message: Deny) -> None:
        """Let nobody have the page: a call that touches it fails, a thread of the program gets SIGSEGV."""
        page = message.page
        self._asked.pop(page, None)
        for kernel_tid, address in dict(self._waiting.pop(page, ())).items():
            if self._waits.get(kernel_tid) != page:  # it has been interrupted, and does something else
                continue
            del self._waits[kernel_tid]
            if is_in_call(self.instance.pid, kernel_tid) and page not in self._poisoned:
                if self._faults.poison(page * PAGE_BYTES):
                    self._poisoned.add(page)
            else:
                self._segfault(kernel_tid, address)

    def _cure(self, pages: range) -> None:
        """Have those of *pages* that fail be missing again."""
        for page in [page for page in self._poisoned if page in pages]:
            self._poisoned.discard(page)
            self._faults.copy(page * PAGE_BYTES, _ZERO_PAGE, protected=False)
            self.instance.drop(page * PAGE_BYTES)

    def _drop_page(self, message: DropPage) -> None:
        self._quiet.pop(message.page, None)
        self.instance.drop(message.page * PAGE_BYTES)
        self._emit(Dropped(message.page))

    def _watch(self, message: Watch) -> None:
        watch = self._watched = message
        for page in message.pages:
            if page not in self._quiet:
                self._quiet[page] = True
                self._faults.protect(page * PAGE_BYTES)
        self._later(_WATCH_SECONDS, lambda: self._end_watch(watch, written=False))

    def _end_watch(self, watch: Watch, *, written: bool) -> None:
        if self._watched is not watch:
            return
        self._watched = None
        for page in watch.pages if written else ():
            if self._quiet.get(page):
                del self._quiet[page]
                self._faults.unprotect(page * PAGE_BYTES)
        self._emit(Watched(watch.turn, written))

    def _read_words(self, message: ReadWords) -> None:
        self._emit(Words(message.request, self.instance.read(message.address, message.size)))

    def _discard(self, message: Discard) -> None:
        pages = range(message.start // PAGE_BYTES, message.end // PAGE_BYTES)
        for page in [page for page in self._quiet if page in pages]:
            del self._quiet[page]
        self._cure(pages)
        self.instance.drop(message.start, message.end - message.start)
        self._emit(Done(message.request))

    def _take_inventory(self, _message: TakeInventory) -> None:
        read = self.instance.read
        self._emit(
            Inventory(
                tuple(
                    (address // PAGE_BYTES, zlib.crc32(read(address, PAGE_BYTES)))
                    for address in self.instance.iter_pages()
                )
            )
        )


def _columns(pages: list[tuple[int, int]]) -> tuple[list[int], bytes]:
    return [page for page, _ in pages], bytes(number for _, number in pages)


def _runs(pages: Sequence[int], numbers: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (first page, how many, number) of those that follow each other and have the same of *numbers*."""
    first, count, number = pages[0], 0, numbers[0]
    for page, each in zip(pages, numbers, strict=True):
        if page == first + count and each == number:
            count += 1
        else:
            yield first, count, number
            first, count, number = page, 1, each
    yield first, count, number


def is_in_call(pid: int, tid: int) -> bool:
    """Whether a thread that waits for a page does so in the midst of a call. Source: proc(5), /proc/PID/syscall."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall", encoding="ascii") as file:
            return not file.read().startswith(("-1", "running"))
    except OSError:  # a thread of another process that has the same memory, or the kernel's own
        return True
