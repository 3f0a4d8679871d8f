r"""The mappings of a process, from /proc/PID/maps.

    line = START "-" END " " PERMS " " OFFSET " " DEVICE " " INODE [spaces NAME]

START, END and OFFSET are hexadecimal; END is the first address after the mapping. NAME may hold spaces and
ends with " (deleted)" when the file is gone; the kernel writes a newline in it as \012.

Source: proc(5); fs/proc/task_mmu.c. What is read is true only while the process is stopped.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from stepping.errors import SteppingError, TraceeGoneError

PAGE_BYTES = 4096
#: Where user addresses end with four-level page tables (amd64) or 48-bit addresses (arm64).
USER_END = 0x7FFF_FFFF_F000
#: No mapping of ours goes below this: vm.mmap_min_addr and the usual place of null pointer accesses.
USER_START = 0x1_0000


class Vma(NamedTuple):
    """One mapping, [start, end). perms: four letters, such as ``r-xp``; path: file, ``[stack]``, or empty."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def size_bytes(self) -> int:
        """How many bytes it spans."""
        return self.end - self.start

    @property
    def is_executable(self) -> bool:
        """Whether code can run there."""
        return self.perms[2] == "x"

    @property
    def is_shared(self) -> bool:
        """Whether writes reach others (MAP_SHARED)."""
        return self.perms[3] == "s"

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end


class Maps:
    """The mappings of one process at one moment, by address."""

    def __init__(self, vmas: Iterable[Vma]) -> None:
        self._vmas = sorted(vmas)
        self._starts = [vma.start for vma in self._vmas]

    def __iter__(self) -> Iterator[Vma]:
        return iter(self._vmas)

    def __len__(self) -> int:
        return len(self._vmas)

    def find(self, address: int) -> Vma | None:
        """Return the mapping that holds *address*."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._vmas[index].end:
            return self._vmas[index]
        return None

    def find_span(self, address: int, accepts: Callable[[Vma], bool]) -> range:
        """Return the addresses around *address* of mappings that *accepts* and that have no gap between them."""
        index = bisect.bisect_right(self._starts, address) - 1
        vmas = self._vmas
        if index < 0 or address >= vmas[index].end or not accepts(vmas[index]):
            return range(0)
        first = last = index
        while first and vmas[first - 1].end == vmas[first].start and accepts(vmas[first - 1]):
            first -= 1
        while last + 1 < len(vmas) and vmas[last].end == vmas[last + 1].start and accepts(vmas[last + 1]):
            last += 1
        return range(vmas[first].start, vmas[last].end)

    def by_path(self, path: str) -> list[Vma]:
        """Return the mappings of a file, or of a kernel's name such as ``[vdso]``, lowest first."""
        return [vma for vma in self._vmas if vma.path == path]

    def find_gap(self, size: int, near: int, reach: int) -> int | None:
        """Return a page-aligned address where *size* bytes are free, entirely within *reach* of *near*.

        The nearest such gap is chosen; a guard page is left on both sides.
        """
        size = -(-size // PAGE_BYTES) * PAGE_BYTES
        best: int | None = None
        previous = USER_START
        for start, end in [*((vma.start, vma.end) for vma in self._vmas), (USER_END, USER_END)]:
            low = max(previous + PAGE_BYTES, -(-(near - reach) // PAGE_BYTES) * PAGE_BYTES)
            high = min(start - PAGE_BYTES - size, (near + reach - size) & -PAGE_BYTES)
            previous = max(previous, end)
            if low > high:
                continue
            candidate = min(max(low, near & -PAGE_BYTES), high)
            if best is None or abs(candidate - near) < abs(best - near):
                best = candidate
        return best


def decode_maps(text: str) -> Maps:
    """Return the mappings that *text*, the content of a maps file, lists.

    Raises:
        SteppingError: a line does not follow the grammar.
    """
    return Maps(_decode_line(line) for line in text.split("\n") if line)


def read_maps(pid: int) -> Maps:
    """Return the mappings of process *pid* now.

    Raises:
        TraceeGoneError: there is no such process.
        SteppingError: it may not be looked at.
    """
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return decode_maps(file.read())
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error
    except PermissionError as error:
        raise SteppingError(f"cannot read the mappings of process {pid}: {error.strerror}") from error


def _decode_line(line: str) -> Vma:
    try:
        span, perms, offset, device, inode, *name = line.split(" ", 5)
        start, end = span.split("-")
        vma = Vma(
            int(start, 16),
            int(end, 16),
            perms,
            int(offset, 16),
            device,
            int(inode),
            name[0].lstrip(" ") if name else "",
        )
    except ValueError:
        raise SteppingError(f"not a line of a maps file: {line[:200]!r}") from None
    if len(perms) != 4 or vma.start >= vma.end:
        raise SteppingError(f"not a line of a maps file: {line[:200]!r}")
    return vma
