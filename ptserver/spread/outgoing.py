"""What the home says to hosts, in order. Pages that a host is to give, or is given, one after the other, go together.

A thread that is woken has a dozen pages sent ahead of it. To say so of each alone costs more than to move it.
"""

from collections.abc import Callable

from ptserver.spread.messages import SpreadMessage
from ptserver.spread.page_messages import Access, PutPages, SendPages
from stepping.maps import PAGE_BYTES

#: How many pages go in one message; of those messages, many go together.
MOST_PAGES = 32


class _Pages:
    """Pages for one host, with a number for each. parts: what they have, if it is given them, as parts of what has
    come: (bytes, first, last + 1). What has come together is mostly given together, and then is not copied.
    """

    __slots__ = ("numbers", "pages", "parts")

    def __init__(self, parts: list[tuple[bytes, int, int]] | None) -> None:
        self.parts = parts
        self.pages: list[int] = []
        self.numbers: list[int] = []


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
        if waiting is None:
            waiting = self._waiting[host] = _Pages(None)
        elif waiting.parts is not None:
            waiting = self._begin(host, None)
        waiting.pages.append(page)
        waiting.numbers.append(keep)
        if len(waiting.pages) == MOST_PAGES:
            self._close(host)

    def put(self, host: int, page: int, data: bytes, start: int, access: Access) -> None:
        """Give *host* a page, as `PutPages` says. data: has its content at *start*."""
        waiting = self._waiting.get(host)
        if waiting is None:
            waiting = self._waiting[host] = _Pages([])
        elif waiting.parts is None:
            waiting = self._begin(host, [])
        parts = waiting.parts
        assert parts is not None
        waiting.pages.append(page)
        waiting.numbers.append(access)
        if parts and parts[-1][0] is data and parts[-1][2] == start:
            parts[-1] = data, parts[-1][1], start + PAGE_BYTES
        else:
            parts.append((data, start, start + PAGE_BYTES))
        if len(waiting.pages) == MOST_PAGES:
            self._close(host)

    @property
    def waits(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._waiting)

    def waits_for(self, host: int) -> bool:
        """Whether something for *host* waits for `flush`."""
        return host in self._waiting

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting:
            for host in [*self._waiting]:
                self._close(host)

    def _begin(self, host: int, parts: list[tuple[bytes, int, int]] | None) -> _Pages:
        self._close(host)
        waiting = self._waiting[host] = _Pages(parts)
        return waiting

    def _close(self, host: int) -> None:
        waiting = self._waiting.pop(host)
        pages, numbers, parts = tuple(waiting.pages), bytes(waiting.numbers), waiting.parts
        if parts is None:
            self._send(host, SendPages(pages, numbers))
        else:
            data, start, end = parts[0]
            content = data[start:end]
            if len(parts) > 1:
                content = b"".join([data[start:end] for data, start, end in parts])
            self._send(host, PutPages(pages, numbers, content))
