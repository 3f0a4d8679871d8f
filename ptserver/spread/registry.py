"""Where running spread programs can be found by their user's commands: a folder that only this user can enter."""

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ptserver.errors import PtServerError
from ptserver.messages import SessionFacts
from ptserver.sessions.registry import SessionRegistry


class UnsafeFolderError(PtServerError):
    """Somebody else has made, or can enter, the folder of this user's running programs."""

    exit_status = 77


@contextlib.contextmanager
def registered(path: str) -> Iterator[tuple[SessionRegistry, str]]:
    """Have the program *path* on the list while this lasts; give the list, and its name there: the home's pid."""
    registry = spread_registry()
    name = f"{os.getpid()}-0"
    registry.remove(name)  # of an earlier process of that number
    registry.describe(SessionFacts(name, path, os.uname().nodename, time.time_ns()))
    try:
        yield registry, name
    finally:
        registry.remove(name)


def spread_registry() -> SessionRegistry:
    """Return the list of this user's spread programs on this machine.

    Raises:
        UnsafeFolderError: its folder is not this user's alone.
    """
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"ptserver-spread-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077 or not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolderError(f"{folder} is not a folder of this user alone: remove it")
    return SessionRegistry(os.fspath(folder))
