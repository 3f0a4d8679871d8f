"""The copy here of a file that a program maps and that lives at a server: a memfd, filled by chunks.

All mappings of one file (device and inode) are of the same memfd, so they agree with each other as they would
natively. Where the program may write through a shared mapping, what each chunk was like when it was last the same as
the server's is kept as well: the difference is what has to be written back.

Thread rules: the host's thread; the program changes the memfd at any time.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from ptserver.hosts.pending_call import Process

CHUNK_BYTES = 256 << 10
_PAGE_BYTES = 4096


class FileFacts(NamedTuple):
    """What fstat says of a file: whether it is another than before shows in these."""

    dev: int
    ino: int
    mode: int
    rdev: int
    size: int
    changed: tuple[int, int, int, int]

    @property
    def key(self) -> tuple[int, int]:
        """What tells the file from all others at its server."""
        return self.dev, self.ino


class MappedFile:
    """See the module's text.

    handle: the server's descriptor for it, or -1; process: the one that has it. is_watched: calls that change it
    matter; is_written: a shared mapping may be written. users: how many are just fetching it. name:
    what mappings of it show.
    """

    def __init__(self, facts: FileFacts) -> None:
        """*facts*: what the server says of it.

        Raises:
            OSError: there is no memory or descriptor for it.
        """
        self.facts = facts
        self.handle = -1
        self.process: Process | None = None
        self.is_watched = False
        self.is_written = False
        self.users = 0
        self.name = f"ptserver-{facts.dev:x}-{facts.ino:x}"
        self._filled: set[int] = set()
        self._originals: dict[int, bytes] = {}
        self.fd = os.memfd_create(self.name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, facts.size)
            self._read_only = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self.fd)
            raise

    @property
    def size_bytes(self) -> int:
        """How much of it is here."""
        return len(self._filled) * CHUNK_BYTES

    def fd_to_map(self, *, writable: bool) -> int:
        """Return the descriptor that the program may map: one that is read-only unless *writable*."""
        return self.fd if writable else self._read_only

    def take_facts(self, facts: FileFacts) -> None:
        """Take over what the server says now: the size, and that what is here is no longer its content."""
        if facts.size != self.facts.size:
            os.ftruncate(self.fd, facts.size)
        if facts.changed != self.facts.changed:
            self._filled.clear()
            self._originals.clear()
        self.facts = facts

    def take_own_change(self, facts: FileFacts) -> None:
        """Take over what the server says after a change that has been made here too; it has grown by zeros."""
        before = self.facts.size
        if facts.size != before:
            os.ftruncate(self.fd, facts.size)
        self.facts = facts
        if self.is_written and facts.size > before:  # a mapping may reach there already
            for number in range(before // CHUNK_BYTES, (facts.size - 1) // CHUNK_BYTES + 1):
                if number not in self._filled:
                    self._filled.add(number)
                    self._originals[number] = b""

    def missing(self, offset: int, size: int) -> list[int]:
        """Return the chunks of that range, as far as the file goes, that are not here."""
        end = min(offset + size, self.facts.size)
        if end <= offset:
            return []
        return [
            n for n in range(offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1) if n not in self._filled
        ]

    def fill(self, number: int, data: bytes) -> None:
        """Put the content of a chunk here, unless it has come meanwhile.

        Raises:
            OSError: there is no memory for it.
        """
        if number in self._filled:
            return
        room = self.facts.size - number * CHUNK_BYTES
        data = data[: max(min(room, CHUNK_BYTES), 0)]
        write_all(self.fd, data, number * CHUNK_BYTES)
        self._filled.add(number)

    def begin_writing(self) -> None:
        """Remember the content as the server has it, before the program may change it."""
        self.is_written = True
        for number in self._filled - self._originals.keys():
            self._originals[number] = os.pread(self.fd, CHUNK_BYTES, number * CHUNK_BYTES)

    def present(self) -> list[int]:
        """Return the chunks that are here."""
        return sorted(self._filled)

    def write(self, offset: int, data: bytes) -> None:
        """Put here what the program has written to the file by a call. Raises: OSError, as `fill`."""
        write_all(self.fd, data, offset)
        end = offset + len(data)
        for number in range(offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1) if data else ():
            if number in self._originals:
                original, start = self._originals[number], number * CHUNK_BYTES
                first, last = max(offset, start), min(end, start + CHUNK_BYTES)
                self._originals[number] = (
                    original[: first - start].ljust(first - start, b"\0")
                    + data[first - offset : last - offset]
                    + original[last - start :]
                )

    def take_changes(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of what the program has changed in memory since the last time."""
        for number, original in list(self._originals.items()):
            start = number * CHUNK_BYTES
            current = os.pread(self.fd, min(CHUNK_BYTES, max(self.facts.size - start, 0)), start)
            if current == original:
                continue
            self._originals[number] = current
            for at, data in _differences(original, current):
                yield start + at, data

    def close(self) -> None:
        """Give up the memory; mappings of it remain."""
        os.close(self.fd)
        os.close(self._read_only)


def _differences(original: bytes, current: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of *current* where it differs, by pages, without what is the same at their ends."""
    for start in range(0, len(current), _PAGE_BYTES):
        before, after = original[start : start + _PAGE_BYTES], current[start : start + _PAGE_BYTES]
        if before == after:
            continue
        bits = int.from_bytes(before, "little") ^ int.from_bytes(after, "little")
        first, last = ((bits & -bits).bit_length() - 1) // 8, (bits.bit_length() + 7) // 8
        if bits:
            yield start + first, after[first:last]


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of *data* at *offset* of the file. Raises: OSError."""
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
