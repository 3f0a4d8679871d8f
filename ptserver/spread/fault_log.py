"""A log of what threads of a spread program wait for, and when they get it, for the simulator of `bench`.

    log   = line*                    one JSON object each, in order
    fault = {"at", "host", "tid", "page", "write"}    a thread at a host waits for a page
    grant = {"at", "host", "page", "count"}           a host is given pages, or told to try again

*at* is in seconds, of the home's monotonic clock, when the home took the fault, sent the pages, or heard that one
came from another host. A page that is
fetched ahead is granted without a fault.
"""

import json
import time
from types import TracebackType

from ptserver.spread.messages import AllowWrite, Fault, SpreadMessage, TryAgain, ZeroPages
from ptserver.spread.page_messages import PutPages
from ptserver.spread.passing_messages import Arrived


class FaultLog:
    """Writes to the file *path*, which is made anew. A context manager."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", encoding="ascii")  # noqa: SIM115 - closed by `__exit__`

    def __enter__(self) -> "FaultLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def taken(self, host: int, message: SpreadMessage) -> None:
        """Note what the home takes from a host, if it is a fault, or ends a wait."""
        if isinstance(message, Fault):
            self._write(host=host, tid=message.tid, page=message.page, write=message.write)
        elif isinstance(message, Arrived):
            self._write(host=host, page=message.page, count=1)

    def sent(self, host: int, message: SpreadMessage) -> None:
        """Note what the home sends to a host, if that ends a wait."""
        if isinstance(message, PutPages):
            for page in message.pages:
                self._write(host=host, page=page, count=1)
        elif isinstance(message, AllowWrite | TryAgain | ZeroPages):
            self._write(
                host=host, page=message.page, count=message.count if isinstance(message, ZeroPages) else 1
            )

    def _write(self, **values: int) -> None:
        self._file.write(json.dumps({"at": time.monotonic(), **values}) + "\n")
