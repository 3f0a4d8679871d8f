"""What the home says to hosts, in order. Pages that a host is to give, or is given, one after the other, go together.

A thread that is woken has a dozen pages sent ahead of it. To say so of each alone costs more than to move it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ptserver.spread.messages import SpreadMessage
from ptserver.spread.page_messages import Access, PutPages, SendPages

#: How many pages go in one message; of those messages, many go together.
MOST_PAGES = 32


@dataclass(slots=True)
class _Pages:
    """Pages for one host, with a number for each. data: what they have, if it is given them."""

    data: list[bytes] | None
    pages: list[int] = field(default_factory=list)
    numbers: bytearray = field(default_factory=bytearray)


class Outgoing:
    """*send(host, message)* takes what is said. Pages wait for `flush`, or for something else that is said to their
    host.
    """

    def __init__(self, send: Callable[[int, SpreadMessage], None]) -> None:
        self._send = send
        self._waiting: dict[int, _Pages] = {}

    def say(self, host: int, message: SpreadMessage) -> None:
        """Say any other message."""
        if host in self._waiting:
            self._close(host)
        self._send(host, message)

    def ask(self, host: int, page: int, *, keep: bool) -> None:
        """Have *host* give a page, as `SendPages` says."""
        waiting = self._waiting.get(host)
        if waiting is None or waiting.data is not None:
            waiting = self._begin(host, None)
        waiting.pages.append(page)
        waiting.numbers.append(keep)
        if len(waiting.pages) == MOST_PAGES:
            self._close(host)

    def put(self, host: int, page: int, data: bytes, access: Access) -> None:
        """Give *host* a page, as `PutPages` says."""
        waiting = self._waiting.get(host)
        if waiting is None or waiting.data is None:
            waiting = self._begin(host, [])
        assert waiting.data is not None
        waiting.pages.append(page)
        waiting.numbers.append(access)
        waiting.data.append(data)
        if len(waiting.pages) == MOST_PAGES:
            self._close(host)

    @property
    def waits(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._waiting)

    def flush(self) -> None:
        """Send what waits."""
        for host in [*self._waiting]:
            self._close(host)

    def _begin(self, host: int, data: list[bytes] | None) -> _Pages:
        if host in self._waiting:
            self._close(host)
        waiting = self._waiting[host] = _Pages(data)
        return waiting

    def _close(self, host: int) -> None:
        waiting = self._waiting.pop(host)
        pages, numbers, data = tuple(waiting.pages), bytes(waiting.numbers), waiting.data
        if data is None:
            self._send(host, SendPages(pages, numbers))
        else:
            self._send(host, PutPages(pages, numbers, data[0] if len(data) == 1 else b"".join(data)))
