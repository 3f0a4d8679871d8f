"""Where a server's sessions can be found by those who watch them: a folder that only this user can enter.

Each session listens at a Unix socket ID.sock there, and says in ID.json what it is; at ID.back it gets a connection
in the place of one that was lost (`ptserver.sessions.kept`). A session that has ended, however it did, does not
listen any more; what it left is removed by the server when that hears of it. A server holds a lock on its folder; so
the next one of that user can remove what one has left that was killed.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ptserver.messages import MAX_LISTED_SESSIONS, SessionFacts

#: How session ids look; nothing else is ever made a part of a path.
_ID = re.compile(r"[0-9a-f]+-[0-9]+")

_PREFIX, _LOCK = "ptserver-sessions-", "lock"

#: The sockets of a session: where it is watched, and where connections are brought back to.
WATCHED, BACK = "sock", "back"


@contextlib.contextmanager
def registry_folder() -> Iterator[str]:
    """Make the folder of a server's registry; at the end it is removed.

    What servers of this user have left that were killed is removed first: nobody holds their locks any more.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            facts = left.lstat()
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
                _remove_if_left(left)
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # this process's alone: those that it forks do not hold it
        os.rename(lock.name, os.path.join(folder, _LOCK))  # not to be seen before it is held
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove *folder* if its server is gone. Raises: OSError if it is not, or has no lock yet."""
    with open(folder / _LOCK, "r+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


class SessionRegistry:
    """The sessions of one server, in *folder*."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def listen(self, session_id: str, what: str = WATCHED) -> socket.socket:
        """Return a socket at which a session can be reached; *what*: for which purpose.

        Raises:
            OSError: it cannot be made.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(os.fspath(self._path(session_id, what)))
            sock.listen()
        except OSError:
            sock.close()
            raise
        return sock

    def describe(self, facts: SessionFacts) -> None:
        """Say what a session is; it is on the list from now on."""
        path = self._path(facts.id, "json")
        path.with_suffix(".new").write_bytes(msgspec.json.encode(facts))
        path.with_suffix(".new").rename(path)

    def sessions(self) -> tuple[list[SessionFacts], int]:
        """Return what sessions there are, the oldest first, and how many more than can be told of."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                facts = msgspec.json.decode(path.read_bytes(), type=SessionFacts)
            except (OSError, msgspec.DecodeError):
                continue
            probe = self.connect(facts.id)
            if probe is not None:
                probe.close()
                found.append(facts)
        found.sort(key=lambda facts: (facts.started_ns, facts.id))
        return found[:MAX_LISTED_SESSIONS], max(0, len(found) - MAX_LISTED_SESSIONS)

    def connect(self, session_id: str, what: str = WATCHED) -> socket.socket | None:
        """Return a connection to a session, None if there is none of that name."""
        if not _ID.fullmatch(session_id):
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(os.fspath(self._path(session_id, what)))
        except OSError as error:
            sock.close()
            if error.errno == errno.ECONNREFUSED:
                self.remove(session_id)
            return None
        return sock

    def remove(self, session_id: str) -> None:
        """Take a session off the list."""
        for suffix in ("json", WATCHED, BACK):
            with contextlib.suppress(OSError):  # gone already, or the session has given up the right to
                self._path(session_id, suffix).unlink()

    def _path(self, session_id: str, suffix: str) -> Path:
        return self._folder / f"{session_id}.{suffix}"
