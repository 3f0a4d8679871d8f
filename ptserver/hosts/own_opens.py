"""Lasting files that a program opens, closes and looks at itself: what the host must know of that, and when.

While nobody asks for anything else, the program does it all (`stepping.direct_opens`). The host *lets* it after a
call about such a file that was taken, if all follows from what is known: which numbers are free (`known_numbers`),
which files lie there (`local_files`), and what there is by a path (`known_lasting`). It *hears* what the program has
done, and lets it no more, before anything in which the number of a descriptor matters, or who has it: a call that
goes to the session, one about such a descriptor, the revocation of a file; and when nothing has come of the session
for a while.

    taken call  -> let       |  the program opens, looks, reads, closes  |  hear -> anything else

Not trusted: the program. It could write into its table; it has nothing there that it could not have by calls.
Thread rules: the host's thread.
"""

import contextlib
import time
from collections.abc import Callable

from ptserver.hosts.known_file import FRESH_SECONDS, KnownFile
from ptserver.hosts.known_numbers import KnownNumbers
from ptserver.hosts.local_files import LocalFiles
from ptserver.messages import Ahead
from stepping.direct_calls import TABLE_DESCRIPTORS
from stepping.direct_opens import MAX_PATH_BYTES, MAX_SLOTS, STAT_BYTES, DirectOpens, Slot, place_of
from stepping.errors import MemoryFaultError, SteppingError
from stepping.maps import Vma, read_maps

_LOOK_SECONDS = FRESH_SECONDS / 4
_MAPS_SECONDS = 0.1


class OwnOpens:
    """Of the process *pid*. files, unmade: of `KnownFiles` and `KnownLasting`, by descriptor.

    since: when all was as it is known; later: calls back in so many seconds.
    """

    def __init__(
        self,
        pid: int,
        opens: DirectOpens,
        local: LocalFiles,
        numbers: KnownNumbers,
        files: dict[int, KnownFile],
        unmade: dict[int, int],
        since: Callable[[], float],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._pid = pid
        self._opens = opens
        self._local = local
        self._numbers = numbers
        self._files = files
        self._unmade = unmade
        self._since = since
        self._later = later
        self._known: dict[int, tuple[bytes, int, Ahead]] = {}  # path, flags and file, by place
        self._places: dict[int, int] = {}  # by the file's number
        self._pointers = range(0)
        self._looked = 0.0
        self._slots: list[Slot] = []
        self._lets = False
        self._is_armed = False

    # What may be opened.

    def learn(self, path: bytes, flags: int, ahead: Ahead, *pointers: int) -> None:
        """Hear that the program was told of a file by *path*, and of addresses that it used for that."""
        place = place_of(path)
        known = self._known.get(place)
        if known is None or known[0] != path or known[1] != flags or known[2] is not ahead:
            if not path or len(path) > MAX_PATH_BYTES or len(ahead.stat) != STAT_BYTES or not ahead.lasting:
                return
            self.hear()
            self._forget(place)
            with contextlib.suppress(MemoryFaultError):
                self._opens.know(path, flags, ahead.stat)
                self._known[place] = path, flags, ahead
                self._places[ahead.lasting] = place
        if any(pointer not in self._pointers for pointer in pointers):
            self._look(pointers[0])

    def forget(self, number: int) -> None:
        """Hear that a file is not known any more."""
        for place in [place for place, known in self._known.items() if known[2].lasting == number]:
            self.hear()
            self._forget(place)

    def forget_all(self) -> None:
        """Hear that none is."""
        self.hear()
        for place in list(self._known):
            self._forget(place)

    def unmapped(self) -> None:
        """Hear that the program may give memory up."""
        self.hear()
        self._pointers = range(0)

    def _forget(self, place: int) -> None:
        known = self._known.pop(place, None)
        if known is not None:
            self._places.pop(known[2].lasting, None)
            with contextlib.suppress(MemoryFaultError):
                self._opens.forget(place)

    def _look(self, pointer: int) -> None:
        """Look which memory there is around an address."""
        now = time.monotonic()
        if now - self._looked < _MAPS_SECONDS:
            return
        self._looked = now
        try:
            pointers = read_maps(self._pid).find_span(pointer, _is_plain)
        except (SteppingError, OSError):
            return
        if pointers:
            self.hear()
            self._pointers = pointers

    # Who has which number.

    def let(self) -> None:
        """Let the program open, close and look at files itself, as far as all that is known."""
        if self._lets or not self._known or not self._pointers or not self._local.may():
            return
        if time.monotonic() - self._since() > FRESH_SECONDS / 2:
            return
        slots = self._find_slots()
        try:
            self._opens.begin(slots, self._pointers)
        except MemoryFaultError:
            return
        for slot in slots:
            if slot.is_open:
                self._local.lent(slot.number)
        self._slots = slots
        self._lets = True
        if not self._is_armed:
            self._is_armed = True
            self._later(_LOOK_SECONDS, self._look_at_time)

    def _find_slots(self) -> list[Slot]:
        free, bound = self._numbers.free()
        found = []
        bound = min(bound, TABLE_DESCRIPTORS)
        for fd in free:
            number = self._local.there(fd)
            if not number or fd >= bound:
                bound = min(fd, bound)
                break
            found.append(Slot(fd, self._places.get(number), is_open=False))
        for fd, file in self._local.lend().items():
            place = self._places.get(file.lasting)
            if fd < bound and fd in self._unmade and place is not None and file.flags == file.told_flags:
                found.append(Slot(fd, place, is_open=True))
        return sorted(found)[:MAX_SLOTS]

    def concerns(self, fd: int) -> bool:
        """Whether the program may close *fd*, or open something there."""
        return self._lets and any(slot.number == fd for slot in self._slots)

    def hear(self) -> None:
        """Know what the program has done itself; it does no more of that."""
        if not self._lets:
            return
        self._lets = False
        for slot, is_open in zip(self._slots, self._opens.end(), strict=True):
            fd = slot.number
            if not is_open:
                if slot.is_open:
                    del self._unmade[fd], self._files[fd]
                    self._numbers.closed(fd)
                continue
            assert slot.place is not None  # only such are opened
            ahead = self._known[slot.place][2]
            if not slot.is_open:
                self._numbers.opened(fd)
            self._unmade[fd] = ahead.lasting
            self._files[fd] = file = KnownFile(ahead, since=self._since())
            self._local.take_back(fd, file)

    def _look_at_time(self) -> None:
        """Have the program know nothing that is too old before the next look."""
        self._is_armed = False
        if self._lets and time.monotonic() - self._since() > FRESH_SECONDS / 2:
            self.hear()
        if self._lets:
            self._is_armed = True
            self._later(_LOOK_SECONDS, self._look_at_time)


def _is_plain(vma: Vma) -> bool:
    """Whether that is memory as Go's heap is, which advice about huge pages divides into several mappings."""
    return vma.perms == "rw-p" and not vma.inode and (not vma.path or vma.path.startswith("[anon:"))
