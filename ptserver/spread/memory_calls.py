"""The calls of a spread program on its address space, decided by the home for all hosts alike."""

from collections.abc import Callable, Sequence
from functools import partial

from ptserver.spread.address_space import MAP_ANONYMOUS, MAP_FIXED, PROT_NONE, AddressSpace, MapError
from ptserver.spread.messages import AddRegion, Called, Discard, Protect
from ptserver.spread.pages import PageDirectory
from ptserver.spread.requests import Later, Requests
from stepping.maps import PAGE_BYTES

#: Lets the thread of a call return a result.
Return = Callable[[Called, int], None]
#: Has a call made at host 0.
Make = Callable[[int, Called], None]

_MADV_DONTNEED, _MADV_FREE = 4, 8


class MemoryCalls:
    """The calls by name, in `handlers`: each takes the host of the thread and the call.

    hosts: those there are; the list lives. protections: every mprotect(2) of watched memory so far, [start, size,
    protection], for hosts that join later.
    """

    def __init__(
        self,
        hosts: Sequence[int],
        space: AddressSpace,
        pages: PageDirectory,
        requests: Requests,
        later: Later,
        answer: Return,
        make: Make,
    ) -> None:
        self._hosts = hosts
        self._space = space
        self._pages = pages
        self._requests = requests
        self._later = later
        self._return = answer
        self._make = make
        self.protections: list[tuple[int, int, int]] = []
        self.handlers: dict[str, Callable[[int, Called], None]] = {
            "mmap": self._mmap,
            "munmap": self._munmap,
            "mprotect": self._mprotect,
            "madvise": self._madvise,
        }

    def _mmap(self, host: int, call: Called) -> None:
        address, size, protection, flags = call.args[:4]
        own = flags & MAP_FIXED and not self._space.is_watched(address, size)  # in a file, as linkers do
        if not flags & MAP_ANONYMOUS or own:
            self._make(host, call)  # only host 0 has it; who touches it elsewhere goes there
            return
        try:
            mapped = self._space.map(address, size, protection, flags)
        except MapError as error:
            self._return(call, -error.errno)
            return
        start, end = mapped.address, mapped.address + mapped.size

        def finish() -> None:
            self._forget(start, end, lambda: self._return(call, start))

        if mapped.new_region is None:
            finish()
            return
        region_start, region_size = mapped.new_region
        self._requests.on_each(
            self._hosts,
            lambda request: AddRegion(request, call.tid, region_start, region_size),
            finish,
        )

    def _munmap(self, host: int, call: Called) -> None:
        start, size = call.args[:2]
        if not self._space.is_watched(start, size):
            self._make(host, call)
            return
        self._space.unmap(start, size)
        self._forget(start, start + size, lambda: self._return(call, 0))

    def _mprotect(self, host: int, call: Called) -> None:
        start, size, protection = call.args[:3]
        if not self._space.is_watched(start, size):
            self._make(host, call)
            return
        self._space.protect(start, size, protection)
        covered = range(start, start + size)
        self.protections[:] = [
            each for each in self.protections if each[0] not in covered or each[0] + each[1] > covered.stop
        ]
        self.protections.append((start, size, protection))
        if protection != PROT_NONE:
            self._allow(range(start // PAGE_BYTES, (start + size) // PAGE_BYTES))
        self._requests.on_each(
            self._hosts,
            lambda request: Protect(request, call.tid, start, size, protection),
            lambda: self._return(call, 0),
        )

    def _allow(self, pages: range) -> None:
        """Have hosts forget that they were denied some of *pages*, which are empty."""
        for page, denied in self._pages.take_denied(pages):
            at = page * PAGE_BYTES
            self._requests.on_each(
                [host for host in self._hosts if denied >> host & 1],
                partial(Discard, start=at, end=at + PAGE_BYTES),
                lambda: None,
            )

    def _madvise(self, host: int, call: Called) -> None:
        start, size, advice = call.args[:3]
        if not self._space.is_watched(start, size):
            self._make(host, call)
        elif advice in (_MADV_DONTNEED, _MADV_FREE):
            self._forget(start, start + size, lambda: self._return(call, 0))
        else:
            self._return(call, 0)

    def _forget(self, start: int, end: int, then: Callable[[], None]) -> None:
        """Make the whole pages of [start, end) all zeros everywhere, then go on."""
        pages = range(-(-start // PAGE_BYTES), -(-end // PAGE_BYTES))
        if self._pages.is_busy(pages):
            self._later(0.0, lambda: self._forget(start, end, then))
            return
        holders = self._pages.forget(pages)
        hosts = [host for host in self._hosts if holders >> host & 1]
        self._requests.on_each(
            hosts,
            lambda request: Discard(request, pages.start * PAGE_BYTES, pages.stop * PAGE_BYTES),
            then,
        )
