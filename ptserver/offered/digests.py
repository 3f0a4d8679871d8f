"""The SHA-256 of files that were hashed before, so that a large program that is offered again is not read again.

    folder = file*                    $XDG_CACHE_HOME/ptserver/digests, or ~/.cache/ptserver/digests
    file   = "DEV-INO"                its first line: size, times of modification and of change in ns, SHA-256

A file is taken for the one that was hashed if its device, number, size and both times are the same; the time of
change is the kernel's and cannot be set. One that has changed within the last second before it was hashed is not
remembered, since it could change again without having another time.
"""

import contextlib
import hashlib
import os
import stat
import time
from pathlib import Path

_MIN_BYTES = 4 << 20
_SETTLED_NS = 1_000_000_000
_SHA256_DIGITS = 64


def default_folder() -> Path:
    """Return where digests are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "ptserver" / "digests"


def sha256_of(fd: int, folder: Path) -> str:
    """Return the SHA-256 of the file that *fd* is open on, in hexadecimal; remember in *folder* that of a large one.

    Raises:
        OSError: it cannot be read.
    """
    facts = os.fstat(fd)
    if facts.st_size < _MIN_BYTES or not stat.S_ISREG(facts.st_mode):
        return _hashed(fd)
    entry = folder / f"{facts.st_dev}-{facts.st_ino}"
    known = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} "
    with contextlib.suppress(OSError, UnicodeDecodeError):
        line = entry.read_text("ascii")
        digest = line.removeprefix(known)
        if digest != line and len(digest) == _SHA256_DIGITS and _is_private(entry):
            return digest
    began = time.time_ns()
    digest = _hashed(fd)
    after = os.fstat(fd)
    is_same = known == f"{after.st_size} {after.st_mtime_ns} {after.st_ctime_ns} "
    if is_same and began - facts.st_ctime_ns > _SETTLED_NS:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = entry.with_name(f"{entry.name}.{os.getpid()}")
            new.touch(0o600)
            new.write_text(known + digest, "ascii")
            new.rename(entry)
    return digest


def _hashed(fd: int) -> str:
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_private(entry: Path) -> bool:
    """Whether only this user may have written what is there."""
    facts = entry.stat()
    return facts.st_uid == os.geteuid() and not facts.st_mode & 0o022
