"""Pages are taken away from a memfd, and from whoever has it mapped, together with what they have last.

    splice   the pages themselves go into a pipe, not what they have
    punch    they leave the file and every page table; a processor that runs the program is told to forget them
    read     what they have, which nobody can change any more

To protect them against writes first, and to read and drop them then, tells those processors twice, which for a
program that runs takes longer than all else. One call can drop several pages, and tell only once.

This needs a kernel that puts pages into a pipe without a copy, and pages that are not part of a larger one, which
would be cleared in the place where it is. Both are tried with a page of the file that no program has.

Source: splice(2), fallocate(2); mm/shmem.c, mm/truncate.c.
"""

import ctypes
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stepping.maps import PAGE_BYTES

_PUNCH_HOLE_KEEP_SIZE = 3
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_NO_HUGE_PAGES = "[never]", "[deny]"
#: How many pages the pipe has room for.
_PIPE_PAGES = 64
#: How far apart pages may be that are dropped by one call.
_NEAR_PAGES = 512

_fallocate = ctypes.PyDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def neighbours(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first page, how many) of those that follow each other."""
    first, count = pages[0], 0
    for page in pages:
        if page != first + count:
            yield first, count
            first, count = page, 0
        count += 1
    yield first, count


class PageTaker:
    """Takes pages away from *memfd*, in which a page's place is its address. can_take: whether `take` can be used."""

    def __init__(self, memfd: int) -> None:
        self._memfd = memfd
        self._out, self._in = os.pipe2(os.O_CLOEXEC)
        self.can_take = self._try()

    def close(self) -> None:
        """Give up the descriptors of its own."""
        os.close(self._out)
        os.close(self._in)

    def take(self, pages: Sequence[int]) -> bytes:
        """Take pages, by number, away; return what they have, one after the other, the last that was written."""
        if len(pages) > _PIPE_PAGES:
            return self.take(pages[:_PIPE_PAGES]) + self.take(pages[_PIPE_PAGES:])
        if len(pages) == 1:
            os.splice(self._memfd, self._in, PAGE_BYTES, offset_src=pages[0] * PAGE_BYTES)
            self.drop(pages[0] * PAGE_BYTES, PAGE_BYTES)
            return os.read(self._out, PAGE_BYTES)
        for page, count in neighbours(pages):
            at, end = page * PAGE_BYTES, (page + count) * PAGE_BYTES
            while at < end:
                at += os.splice(self._memfd, self._in, end - at, offset_src=at)
        self.drop_pages(pages)
        return os.read(self._out, len(pages) * PAGE_BYTES)

    def drop_pages(self, pages: Sequence[int]) -> None:
        """Take pages away, by number, best in ascending order.

        With two that are near each other goes what lies between them, if that is nothing: the call takes longer than
        to look.
        """
        first, end = pages[0], pages[0] + 1
        for page in pages[1:]:
            if page != end and not (0 < page - end < _NEAR_PAGES and self._has_nothing(end, page)):
                self.drop(first * PAGE_BYTES, (end - first) * PAGE_BYTES)
                first = page
            end = page + 1
        self.drop(first * PAGE_BYTES, (end - first) * PAGE_BYTES)

    def drop(self, address: int, size: int) -> None:
        """Take away all of [address, address + size), whole pages."""
        if _fallocate(self._memfd, _PUNCH_HOLE_KEEP_SIZE, address, size) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _has_nothing(self, start: int, page: int) -> bool:
        """Whether *page*, which the file has, is the first that it has from page *start* on."""
        return os.lseek(self._memfd, start * PAGE_BYTES, os.SEEK_DATA) == page * PAGE_BYTES

    def _try(self) -> bool:
        """Whether what is written into a page of a pipe comes out of that, though it is no page of the file then."""
        try:
            if not any(word in _HUGE_PAGES.read_text(encoding="ascii") for word in _NO_HUGE_PAGES):
                return False
        except OSError:
            pass  # a kernel without huge pages
        try:
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE_PAGES * PAGE_BYTES)
            os.pwrite(self._memfd, bytes(PAGE_BYTES), 0)
            os.splice(self._memfd, self._in, PAGE_BYTES, offset_src=0)
        except OSError:
            return False
        last = b"\1" * PAGE_BYTES
        os.pwrite(self._memfd, last, 0)
        self.drop(0, PAGE_BYTES)
        return os.read(self._out, PAGE_BYTES) == last
