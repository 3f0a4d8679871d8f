"""Checks of a host that waits for programs: the suite is the server, with tiny programs of its own (amd64).

program = an ELF file of one segment, with these instructions: getuid, and exit with what it gives
|                                                     getuid, and an endless loop
"""

import contextlib
import hashlib
import os
import struct
import time
from collections.abc import Iterator

import msgspec

from ptserver.conformance.checks import Check, Server, check, fail, require
from ptserver.errors import ConnectionLostError, RefusedError
from ptserver.messages import (
    CODECS,
    PROTOCOL_VERSION,
    Chunk,
    Executable,
    Exited,
    Fetch,
    Goodbye,
    Hello,
    Message,
    Offer,
    Refused,
    Result,
    Signal,
    Stopped,
    Syscall,
    ToServer,
    Welcome,
)
from ptserver.net.connection import Connection, answer_hello, receive_hello
from ptserver.net.transport import connect
from ptserver.offered.handshake import send_offer

_GROUP = "host"
_SIGTERM, _SIGCONT, _SIGTSTP = 15, 18, 20
#: mov eax, 102; syscall; mov edi, eax; mov eax, 231; syscall: exit_group(getuid())
_EXITS = bytes.fromhex("b8660000000f0589c7b8e70000000f05")
#: mov eax, 102; syscall; and a jump to itself
_LOOPS = bytes.fromhex("b8660000000f05ebfe")


def _program(code: bytes) -> bytes:
    """Return an ELF file that executes *code*; no two calls give the same. Source: elf(5)."""
    image = code + os.urandom(16)
    at = 0x400000
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, at + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, at, at, 120 + len(image), 120 + len(image), 0x1000)
    return header + segment + image


def _offer(server: Server, program: bytes) -> Offer:
    digest = hashlib.sha256(program).hexdigest()
    executable = Executable("conformance", "amd64", len(program), digest)
    return Offer((PROTOCOL_VERSION,), CODECS, "conformance", executable, server.token)


class _Session:
    """A session in which the suite is the server. seen: what the host said, but for calls and wishes for the file."""

    def __init__(self, server: Server, offer: Offer, program: bytes) -> None:
        self.fetched = 0
        self._timeout = server.timeout
        self._program = program
        sock = connect(server.address, server.timeout)
        send_offer(sock, offer, server.timeout)
        hello = receive_hello(sock, server.timeout)
        if not isinstance(hello, Hello):
            fail("the host says another hello than a host's")
        self.hello: Hello = hello
        self.connection: Connection[ToServer]
        _, self.connection = answer_hello(sock, hello, server.timeout, self._welcome)

    def _welcome(self, hello: Hello, version: int, codec: str) -> Welcome:
        return Welcome(
            version=version,
            codec=codec,
            server="conformance",
            software="conformance",
            session="1",
            host="conformance",
            resources="server",
            interest={},
            default_interest="serve",
            environment=(),
            argv=(b"conformance",),
        )

    def send(self, message: Message) -> None:
        self.connection.send(message)
        self.connection.drain(self._timeout)

    def wait_for(self, kind: type[Message]) -> Message:
        """Return the next message of *kind*; serve the file and calls meanwhile, getuid with 42."""
        deadline = time.monotonic() + self._timeout
        while True:
            require(
                time.monotonic() < deadline, f"no {kind.__name__.lower()} came within {self._timeout:g} s"
            )
            for message in self.connection.receive():
                if isinstance(message, kind):
                    return message
                if isinstance(message, Fetch):
                    self.fetched += 1
                    data = self._program[message.offset : message.offset + message.size]
                    self.send(Chunk(message.sha256, message.offset, data))
                elif isinstance(message, Syscall):
                    self.send(Result(message.id, 42 if message.name == "getuid" else 0))
            time.sleep(0.001)


@contextlib.contextmanager
def _session(server: Server, program: bytes, sent: bytes | None = None) -> Iterator[_Session]:
    session = _Session(server, _offer(server, program), program if sent is None else sent)
    with contextlib.closing(session.connection):
        yield session


def _require_refused(server: Server, offer: Offer, code: str) -> None:
    try:
        session = _Session(server, offer, b"")
    except RefusedError as error:
        require(error.code == code, f"expected code {code!r}, got {error.code!r}")
        return
    session.connection.close()
    fail(f"expected a refusal with code {code!r}, got a hello")


@check(_GROUP, "an offer is answered by a hello without streams")
def _hello(server: Server) -> None:
    with _session(server, _program(_EXITS)) as session:
        require(session.hello.streams == (), f"the hello has the streams {session.hello.streams}")
        require(PROTOCOL_VERSION in session.hello.versions, "the hello does not have the offer's version")
        require({*session.hello.codecs} <= {*CODECS}, "the hello has a codec that was not offered")


@check(_GROUP, "a program is fetched, executed, and served by the server")
def _runs(server: Server) -> None:
    with _session(server, _program(_EXITS)) as session:
        exited = session.wait_for(Exited)
        require(exited == Exited(42), f"the program ended with {exited}, not with what getuid gave")
        require(session.fetched, "the host did not fetch the program")
        session.send(Goodbye())


@check(_GROUP, "a program that was sent once is not fetched again")
def _keeps(server: Server) -> None:
    program = _program(_EXITS)
    for wanted in (True, False):
        with _session(server, program) as session:
            session.wait_for(Exited)
            require(
                bool(session.fetched) == wanted, "the host fetched it again" if not wanted else "not fetched"
            )
            session.send(Goodbye())


@check(_GROUP, "what is not the program that was offered is not executed")
def _checks(server: Server) -> None:
    program = _program(_EXITS)
    with _session(server, program, program[:-1] + bytes([program[-1] ^ 1])) as session:
        refused = session.wait_for(Refused)
        require(isinstance(refused, Refused) and refused.code == "launch", f"the host says {refused}")


@check(_GROUP, "signals are delivered, and a stop is told")
def _signals(server: Server) -> None:
    with _session(server, _program(_LOOPS)) as session:
        session.wait_for(Syscall)  # it runs
        session.send(Signal(_SIGTSTP))
        stopped = session.wait_for(Stopped)
        require(stopped == Stopped(_SIGTSTP), f"the host says {stopped}")
        session.send(Signal(_SIGCONT))
        session.send(Signal(_SIGTERM))
        exited = session.wait_for(Exited)
        require(exited == Exited(None, _SIGTERM), f"the program ended with {exited}")


@check(_GROUP, "offers that cannot be taken are refused with a code")
def _refuses(server: Server) -> None:
    offer = _offer(server, _program(_EXITS))
    replace = msgspec.structs.replace
    _require_refused(server, replace(offer, versions=(9999,)), "version")
    _require_refused(server, replace(offer, purpose="nothing that is known"), "purpose")
    other = replace(offer.executable, arch="arm64")
    _require_refused(server, replace(offer, executable=other), "launch")
    if server.token:
        _require_refused(server, replace(offer, token=server.token + "x"), "token")


@check(_GROUP, "many programs are executed at once, and each ends alone")
def _many(server: Server) -> None:
    with _session(server, _program(_LOOPS)) as other:
        other.wait_for(Syscall)
        with _session(server, _program(_EXITS)) as session:
            session.wait_for(Exited)
        with contextlib.suppress(ConnectionLostError):
            other.send(Signal(_SIGTERM))
            require(other.wait_for(Exited) == Exited(None, _SIGTERM), "the other program ended otherwise")


CHECKS: tuple[Check, ...] = (_hello, _runs, _keeps, _checks, _signals, _refuses, _many)
