"""What the home asks of hosts, and what goes on when they have answered."""

from collections.abc import Callable, Sequence

from ptserver.spread.messages import Done, ReadWords, SpreadMessage, Words
from ptserver.spread.pages import PageDirectory, Send
from stepping.maps import PAGE_BYTES

#: Returns what a host's memory holds (host, address, size), if that can be had without asking it.
Peek = Callable[[int, int, int], bytes | None]
Later = Callable[[float, Callable[[], None]], None]


class HostFailedError(Exception):
    """A host could not do what the program needs. `host`, `message`."""

    def __init__(self, host: int, message: str) -> None:
        super().__init__(f"host {host}: {message}")
        self.host = host


class Requests:
    """Questions under way. *peek* reads the memory of hosts that need not be asked."""

    def __init__(
        self, send: Send, pages: PageDirectory, peek: Peek = lambda host, address, size: None
    ) -> None:
        self._send = send
        self._pages = pages
        self._peek = peek
        self._last = 0
        self._words: dict[
            int, tuple[int, Callable[[bytes], None]]
        ] = {}  # by request: the host, and what goes on
        self._done: dict[int, tuple[int, Callable[[], None]]] = {}

    def take_words(self, _host: int, message: Words) -> None:
        """Take the answer to a read."""
        self._words.pop(message.request)[1](message.data)

    def take_done(self, host: int, message: Done) -> None:
        """Take the word of a host that it has done what it was told.

        Raises:
            HostFailedError: it could not.
        """
        if message.error:
            raise HostFailedError(host, message.error)
        self._done.pop(message.request)[1]()

    def is_asked(self, host: int) -> bool:
        """Whether *host* owes an answer."""
        return any(asked == host for asked, _ in (*self._words.values(), *self._done.values()))

    def abandon(self, host: int) -> bool:
        """Wait no more for *host*, which is lost; return False if what it was to say is needed."""
        if any(asked == host for asked, _ in self._words.values()):
            return False
        for request in [request for request, (asked, _) in self._done.items() if asked == host]:
            self._done.pop(request)[1]()
        return True

    def read(
        self, address: int, size: int, then: Callable[[bytes], None], told: tuple[int, bytes] = (0, b"")
    ) -> None:
        """Call *then* with what the program's memory holds, which may lie on two pages.

        told: a host, and what that has said just now that it is, if anything.
        """
        here = min(size, PAGE_BYTES - address % PAGE_BYTES)
        if here < size:
            rest = address + here, size - here
            self.read(address, here, lambda low: self.read(*rest, lambda high: then(low + high)))
            return
        page = address // PAGE_BYTES
        if told[1] and self._pages.has_kept(told[0], page):
            then(told[1])
            return
        if self._pages.when_at_rest(page, lambda: self.read(address, size, then)):
            return
        holder = self._pages.holder(page)
        if holder is None:
            then(bytes(size))
            return
        data = self._peek(holder, address, size)
        if data is not None:
            then(data)
            return
        self._last += 1
        self._words[self._last] = holder, then
        self._send(holder, ReadWords(self._last, address, size))

    def on_each(
        self, hosts: Sequence[int], make: Callable[[int], SpreadMessage], then: Callable[[], None]
    ) -> None:
        """Send each of *hosts* the message that *make* gives for a request number; call *then* when all are done."""
        hosts = tuple(hosts)  # those of now
        missing = len(hosts)
        if not missing:
            then()
            return

        def done() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                then()

        for host in hosts:
            self._last += 1
            self._done[self._last] = host, done
            self._send(host, make(self._last))
