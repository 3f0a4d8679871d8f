"""The log of a server and its sessions: one line per entry, in text or JSON.

    text   ptserver: [SESSION] TEXT
    JSON   {"time": seconds since 1970, "session": "...", "text": "...", more members}

What is refused has a member ``refused``: ``session``, with the ``code`` that the host was told, or the name of a
call, with its ``target`` and ``errno``.

Every entry is one write(2), so that processes which share the file do not mix their lines. An entry that cannot
be written is lost: a full disk must not end sessions.
"""

import json
import os
import time


class Log:
    """Writes to *fd*. as_json: which of the two forms; session: whom the entries are about, or empty."""

    def __init__(self, fd: int, *, as_json: bool = False, session: str = "") -> None:
        self.fd = fd
        self._as_json = as_json
        self._session = session

    def __call__(self, text: str, **facts: str) -> None:
        """Write *text*, made one line; what a terminal would act on is escaped. facts: further members in JSON."""
        if not text.isprintable():
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        if self._as_json:
            entry: dict[str, object] = {"time": round(time.time(), 6)}
            if self._session:
                entry["session"] = self._session
            line = json.dumps(entry | {"text": text} | facts, ensure_ascii=False)
        else:
            line = f"ptserver: [{self._session}] {text}" if self._session else f"ptserver: {text}"
        try:
            os.write(self.fd, line.encode("utf-8", "replace") + b"\n")
        except OSError:
            pass

    def of_session(self, session: str, fd: int) -> "Log":
        """Return a log of the same form about *session* that writes to *fd*."""
        return Log(fd, as_json=self._as_json, session=session)
