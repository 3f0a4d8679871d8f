"""A regular file that is read ahead: which of its bytes are here, and which have been asked for.

`KnownFile` is what the host knows of one descriptor that the program has opened for reading. It decides, and does
nothing: what is to be asked for comes from `wanted`, what came goes to `arrived`.

    pieces    |=======|=======|.......|.......|        here; asked for
              ^position                       ^window

Thread rules: one thread.
"""

import collections
import os
import time

from ptserver.messages import Ahead

#: How old what is known may be.
FRESH_SECONDS = 1.0

_PIECE_BYTES = 512 << 10
_F_GETFL, _F_SETFL = 3, 4
_SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC | os.O_DIRECT | os.O_NOATIME
_MIN_WINDOW_BYTES, _MAX_WINDOW_BYTES = 64 << 10, 16 << 20


class KnownFile:
    """flags: of F_GETFL; stat: of fstat; position: the program's offset. told_position, told_flags: the
    session's.

    folder: a folder, of which *listing* has what getdents64 gives, by offset, as (room, entries, offset after them).
    lasting: its number if it is known until the session says otherwise, else 0. since: when it was as it is known,
    if not now.
    """

    __slots__ = (
        "_asked_from",
        "_end",
        "_end_time",
        "_in_flight",
        "_opened",
        "_pieces",
        "_window_bytes",
        "flags",
        "folder",
        "lasting",
        "listing",
        "position",
        "stat",
        "told_flags",
        "told_position",
    )

    def __init__(self, ahead: Ahead, *, since: float = 0.0) -> None:
        self.flags = self.told_flags = ahead.flags
        self.stat = ahead.stat
        self.folder = ahead.folder
        self.position = self.told_position = 0
        self.listing: dict[int, tuple[int, bytes, int]] = {}
        self.lasting = ahead.lasting
        self._opened = since or time.monotonic()
        self._pieces: collections.deque[tuple[int, bytes, float]] = collections.deque()  # offset, data, when
        self._in_flight: collections.deque[tuple[int, int, int]] = collections.deque()  # id, offset, size
        self._asked_from = 0  # the offset after all that is here or asked for
        self._end: int | None = None
        self._end_time = 0.0
        self._window_bytes = _MIN_WINDOW_BYTES
        position = 0
        for listed in ahead.listing:
            self.listing[position] = (listed.size, listed.data, listed.position)
            position = listed.position
        if not self.folder:
            self.begin(ahead.data, end=ahead.end)

    @property
    def size(self) -> int:
        """What st_size was. Source: stat(2), the layout of x86-64 and arm64."""
        return int.from_bytes(self.stat[48:56], "little")

    @property
    def since(self) -> float:
        """When it was as it is known, by time.monotonic()."""
        return self._opened

    @property
    def is_fresh(self) -> bool:
        """Whether attributes and listing may be used."""
        return time.monotonic() - self._opened < FRESH_SECONDS

    def take(self, size: int) -> bytes | None:
        """Return the next *size* bytes, fewer at the end of the file, or None if they are not here; move on."""
        data = self.look(self.position, size)
        if data is not None:
            self.position += len(data)
            pieces = self._pieces
            while pieces and pieces[0][0] + len(pieces[0][1]) <= self.position:
                pieces.popleft()
                self._window_bytes = min(2 * self._window_bytes, _MAX_WINDOW_BYTES)
        return data

    def look(self, offset: int, size: int) -> bytes | None:
        """Return the *size* bytes at *offset*, fewer at the end of the file, or None if they are not here."""
        now = time.monotonic()
        if self._pieces and now - self._pieces[0][2] > FRESH_SECONDS:
            self.forget()
        stop = offset + size
        if self._end is not None and stop > self._end:
            if now - self._end_time > FRESH_SECONDS:
                self.forget()
                return None
            stop = self._end
            if offset >= stop:
                return b""
        parts = []
        for start, piece, _ in self._pieces:
            after = start + len(piece)
            if after <= offset:
                continue
            if start > offset:
                return None
            parts.append(piece[offset - start : stop - start])
            offset = after
            if offset >= stop:
                return parts[0] if len(parts) == 1 else b"".join(parts)
        return None

    def wanted(self, size: int, *, urgent: bool) -> list[tuple[int, int]]:
        """Return what to ask for, as (offset, size), for a program that reads *size* bytes at a time.

        urgent: it waits for what is not here.
        """
        if self._end is not None:
            return []
        window = max(self._window_bytes, size)
        if self._asked_from - self.position >= window // 2 and not urgent:
            return []
        wanted: list[tuple[int, int]] = []
        limit = min(self.position + window, self.size)
        while self._asked_from < limit or (urgent and not self._in_flight and not wanted):
            piece = min(_PIECE_BYTES, max(_MIN_WINDOW_BYTES, window // 4))
            wanted.append((self._asked_from, piece))
            self._asked_from += piece
        return wanted

    def asked(self, call_id: int, offset: int, size: int) -> None:
        """Note that the *size* bytes at *offset* were asked for by call *call_id*."""
        self._in_flight.append((call_id, offset, size))

    def arrived(self, call_id: int, data: bytes) -> bool:
        """Take what call *call_id* brought, in the order in which it was asked for; return whether it is wanted."""
        if not self._in_flight or self._in_flight[0][0] != call_id:
            return False
        _, offset, size = self._in_flight.popleft()
        self._add(offset, data, time.monotonic(), is_end=len(data) < size)
        return True

    def begin(self, data: bytes, *, end: bool) -> None:
        """Take the beginning of the file, and whether that is all."""
        self._asked_from = len(data)
        self._add(0, data, self._opened, is_end=end)

    def _add(self, offset: int, data: bytes, now: float, *, is_end: bool) -> None:
        if data:
            self._pieces.append((offset, data, now))
        if is_end:
            self._end = offset + len(data)
            self._end_time = now
            self._in_flight.clear()

    def control(self, command: int, argument: int) -> int | None:
        """Do what fcntl does about flags; return its value, None if that is not for here."""
        if command == _F_GETFL:
            return self.flags
        changed = (argument ^ self.flags) & _SETTABLE
        if command != _F_SETFL or changed & ~os.O_NONBLOCK:
            return None
        self.flags ^= changed
        return 0

    def seek(self, offset: int, whence: int) -> int | None:
        """Do what lseek does, with its second register; return the offset, None if that is not known."""
        offset -= (offset >> 63) << 64
        match whence:
            case os.SEEK_SET:
                position = offset
            case os.SEEK_CUR:
                position = self.position + offset
            case os.SEEK_END if self.is_fresh:
                position = self.size + offset
            case _:
                return None
        if not 0 <= position < 1 << 40:
            return None
        self.move(position)
        return position

    def move(self, position: int) -> None:
        """Note that the program reads on at *position*."""
        self.position = position
        first = self._pieces[0][0] if self._pieces else self._asked_from
        if not first <= position <= self._asked_from:
            self.forget()

    def forget_all(self) -> None:
        """Know nothing any more but the descriptor's flags and offset."""
        self._opened = -FRESH_SECONDS
        self.listing.clear()
        self.forget()

    def forget(self) -> None:
        """Forget all contents, also what is on its way."""
        self._pieces.clear()
        self._in_flight.clear()
        self._asked_from = self.position
        self._end = None
        self._window_bytes = _MIN_WINDOW_BYTES
