"""What a check is, what it is given, and what came of it."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Never

import msgspec

from ptserver.conformance.caller import Caller
from ptserver.conformance.client import HELLO, RawClient
from ptserver.errors import PtServerError
from ptserver.messages import CODECS, Hello, Message, StreamId, Terminal, Welcome

Outcome = Literal["ok", "fail", "skip"]


class CheckFailedError(PtServerError):
    """The server does not do what the protocol says; the text is what it did."""


class CheckSkippedError(PtServerError):
    """The check has no meaning for this server; the text is why."""


def require(condition: object, text: str) -> None:
    """Fail the check with `text` unless `condition` is true."""
    if not condition:
        raise CheckFailedError(text)


def fail(text: str) -> Never:
    """Fail the check."""
    raise CheckFailedError(text)


def skip(text: str) -> Never:
    """Skip the check."""
    raise CheckSkippedError(text)


@dataclass(frozen=True, slots=True)
class Server:
    """The server to check.

    address: as `ptserver.net.transport` writes it; scratch: a folder at the server that the checks may fill, or
    empty; token: the secret that it wants, or empty; timeout: how many seconds it may take to answer.
    """

    address: str
    scratch: bytes = b""
    token: str = ""
    timeout: float = 10.0
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def hello(self) -> Hello:
        """Return a hello that this server should welcome."""
        return msgspec.structs.replace(HELLO, token=self.token)

    @contextlib.contextmanager
    def session(
        self,
        *,
        codecs: tuple[str, ...] = CODECS,
        streams: tuple[StreamId, ...] = (),
        terminal: Terminal | None = None,
    ) -> Iterator[Caller]:
        """Open a session and close its connection at the end."""
        hello = msgspec.structs.replace(self.hello(), codecs=codecs, streams=streams, terminal=terminal)
        client = Caller(self.address, hello, self.timeout)
        with contextlib.closing(client):
            yield client

    @contextlib.contextmanager
    def own_session(self, *, streams: tuple[StreamId, ...] = ()) -> Iterator[Caller]:
        """Open a session with a server that has the program's resources; skip the check for any other."""
        with self.session(streams=streams) as client:
            if client.welcome.resources != "server":
                skip("the program's resources are the host's")
            yield client

    @contextlib.contextmanager
    def raw(self) -> Iterator[RawClient]:
        """Connect, and say nothing yet."""
        with contextlib.closing(RawClient(self.address, self.timeout)) as client:
            yield client

    @contextlib.contextmanager
    def folder(self, client: Caller) -> Iterator[bytes]:
        """Make a new folder in the scratch folder, for one check, and remove it with the files in it."""
        if not self.scratch:
            skip("no --scratch folder")
        path = b"%s/conformance-%d-%d" % (self.scratch, os.getpid(), next(self._numbers))
        client.mkdir(path)
        try:
            yield path
        finally:
            client.remove_tree(path)

    def require_alive(self, bystander: Caller) -> None:
        """Fail unless an older session still works and a new one can be opened."""
        bystander.ping()
        with self.session() as client:
            client.ping()

    @contextlib.contextmanager
    def dropped(self) -> Iterator[Caller]:
        """Open a session that misbehaves in the block; fail unless the server drops it, and it alone."""
        with self.session() as bystander, self.session() as client:
            yield client
            client.require_dropped()
            self.require_alive(bystander)


@dataclass(frozen=True, slots=True)
class Check:
    """One check: a function that returns if the server does what `title` says."""

    group: str
    title: str
    run: Callable[[Server], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a check. detail: why it failed or was skipped, in a line."""

    group: str
    title: str
    outcome: Outcome
    detail: str
    seconds: float

    def __str__(self) -> str:
        tail = f": {self.detail}" if self.detail else ""
        return f"{self.outcome:4}  {self.group:9}  {self.title}{tail}"


def check(group: str, title: str) -> Callable[[Callable[[Server], None]], Check]:
    """Make a function a check."""
    return lambda run: Check(group, title, run)


def run_checks(checks: Iterable[Check], server: Server) -> Iterator[Finding]:
    """Run the checks one after the other and give what came of each as soon as it is known."""
    for each in checks:
        start = time.perf_counter()
        outcome: Outcome = "ok"
        detail = ""
        try:
            each.run(server)
        except CheckSkippedError as error:
            outcome, detail = "skip", str(error)
        except (PtServerError, OSError) as error:
            outcome, detail = "fail", " ".join(str(error).split())
        yield Finding(each.group, each.title, outcome, detail, time.perf_counter() - start)


def interest_in(welcome: Welcome, name: str) -> str:
    """Return what the server wants of the calls of that name."""
    return welcome.interest.get(name, welcome.default_interest)


def kinds(messages: Iterable[Message]) -> str:
    """Return the types of some messages, to be shown."""
    return ", ".join(type(message).__name__ for message in messages) or "nothing"
