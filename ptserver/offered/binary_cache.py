"""The programs that a host has been sent, kept so that none is sent twice.

    folder  = file*                   $XDG_CACHE_HOME/ptserver/programs, or ~/.cache/ptserver/programs, by default
    file    = SHA256                  a program, named by its contents, mode 0500
            | SHA256 "." random       one that is arriving

A file counts only after all of it has come and has the SHA-256 that was announced. It is checked again whenever it
is used: 90 MB take 0.15 s. The programs that were not used for the longest time make room for new ones; one that is
being executed may be among them, which does it no harm.

Several processes may use a folder at once. Not trusted: who offers programs; all names here are made from digits.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptserver.errors import PtServerError
from ptserver.messages import Executable

DEFAULT_LIMIT_BYTES = 2 << 30


class CacheError(PtServerError):
    """A program cannot be kept, or is not what it was said to be."""

    exit_status = 73


@dataclass(frozen=True)
class BinaryCache:
    """A folder of programs. limit_bytes: how much all of them may take."""

    folder: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES

    def find(self, executable: Executable) -> Path | None:
        """Return the file of *executable*, None if it has not been kept, or not well."""
        path = self.folder / executable.sha256
        try:
            with path.open("rb") as file:
                os.utime(path)  # used now
                if hashlib.file_digest(file, "sha256").hexdigest() == executable.sha256:
                    return path
        except OSError:
            return None
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    @contextlib.contextmanager
    def arriving(self, executable: Executable) -> Iterator["Arriving"]:
        """Give what takes the bytes of *executable*; what is not finished at the end is removed.

        Raises:
            CacheError: it is larger than the folder may be, or cannot be written.
        """
        if executable.size_bytes > self.limit_bytes:
            raise CacheError(
                f"the program has {executable.size_bytes} bytes, this host keeps {self.limit_bytes} at most"
            )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(executable.size_bytes)
            fd, name = tempfile.mkstemp(prefix=f"{executable.sha256}.", dir=self.folder)
        except OSError as error:
            raise CacheError(f"cannot keep programs in {self.folder}: {error.strerror}") from error
        try:
            yield Arriving(fd, Path(name), executable)
        finally:
            os.close(fd)
            Path(name).unlink(missing_ok=True)

    def keep(self, arrived: "Arriving") -> Path:
        """Return the file of a program all of which has arrived.

        Raises:
            CacheError: it is not what was announced, or there is no room.
        """
        arrived.check()
        path = self.folder / arrived.executable.sha256
        try:
            os.fchmod(arrived.fd, 0o500)
            arrived.path.rename(path)
        except OSError as error:
            raise CacheError(f"cannot keep a program in {self.folder}: {error.strerror}") from error
        return path

    def _make_room(self, size_bytes: int) -> None:
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                entries.append((facts.st_mtime_ns, facts.st_size, path))
        total = size_bytes + sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


class Arriving:
    """A program that arrives in pieces, in order. fd: open for writing on the file *path*."""

    def __init__(self, fd: int, path: Path, executable: Executable) -> None:
        self.fd = fd
        self.path = path
        self.executable = executable
        self.size_bytes = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            CacheError: they are more than were announced, or the disk is full.
        """
        self.size_bytes += len(data)
        if self.size_bytes > self.executable.size_bytes:
            raise CacheError("more of the program came than was announced")
        self._hash.update(data)
        try:
            os.write(self.fd, data)
        except OSError as error:
            raise CacheError(f"cannot write the program: {error.strerror}") from error

    def check(self) -> None:
        """Raise CacheError if this is not all of the program that was announced."""
        if self._hash.hexdigest() != self.executable.sha256:
            raise CacheError(
                "the program that came is another than was announced; did its file change meanwhile?"
            )


def default_folder() -> Path:
    """Return where programs are kept if nobody says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "ptserver" / "programs"
