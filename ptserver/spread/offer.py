"""How a spread program gets its hosts: the home offers it to one that waits, which executes a blank instance of it.

home                                                       host
|--- offer, purpose "spread" (`ptserver.offered.handshake`) --->|
|<-- hello, --- welcome ------------------------------------->|
|<-- fetch, --- chunk, as often as needed ------------------->|   the program, if it is not kept there
|<-- obtained ------------------------------------------------|
|<============= `ptserver.spread.messages` ==================>|
"""

import os
import select

from goabi.elf_header import read_elf_header
from ptserver.errors import ConnectionLostError, ProtocolError, RefusedError
from ptserver.machine import native_arch, version
from ptserver.messages import (
    CODECS,
    PROTOCOL_VERSION,
    Fetch,
    Hello,
    Obtained,
    Offer,
    Refused,
    ToServer,
    Welcome,
)
from ptserver.net.connection import Connection, Stream, server_handshake
from ptserver.net.reach import reach
from ptserver.offered.file_transfer import OfferedFile
from ptserver.offered.handshake import SPREAD, send_offer
from ptserver.running.remotely import read_token

_HANDSHAKE_SECONDS = 10.0
#: How long a host may say nothing while it takes the program.
_PATIENCE_SECONDS = 30.0


def offer_spread(
    path: str, address: str, keys: str | None, token_file: str | None
) -> tuple[Stream, tuple[str, ...]]:
    """Have the host at *address* ready for an instance of the program *path*.

    Returns the connection to it, and what its processor can do, as in /proc/cpuinfo.

    keys: the folder of keys for TLS, if any; token_file: whose first line is the host's token, if any.

    Raises:
        ConnectError, ConnectionLostError, RefusedError, ProtocolError, UntrustedError: it does not take the program.
        LaunchError: the program cannot be read.
    """
    software = f"ptserver {version()}"
    offered = OfferedFile(path, read_elf_header(path), lambda fd: fd)

    def choose(hello: Hello, version: int, codec: str) -> Welcome:
        if hello.software != software:
            raise RefusedError("version", f"{address} runs {hello.software}, this machine {software}")
        if hello.machine.arch != native_arch():
            raise RefusedError(
                "launch", f"{address} is {hello.machine.arch}, this machine is {native_arch()}"
            )
        return Welcome(
            version=version,
            codec=codec,
            server=SPREAD,
            software=software,
            session=str(os.getpid()),
            host=os.uname().nodename,
            resources="host",
            interest={},
            argv=(),
        )

    stream, token_of_keys = reach(address, keys)
    token = read_token(token_file) or token_of_keys
    send_offer(stream, Offer((PROTOCOL_VERSION,), CODECS, software, offered.executable, token, SPREAD))
    try:
        hello, _, connection = server_handshake(stream, _HANDSHAKE_SECONDS, choose)
        _deliver(offered, connection)
    except ConnectionLostError as error:
        raise ConnectionLostError(f"{address} does not take programs, or is gone: {error}") from error
    return stream, hello.machine.cpu_features


def _deliver(offered: OfferedFile, connection: Connection[ToServer]) -> None:
    """Send what the host asks for, until it has the program."""
    poll = select.poll()
    while True:
        events = select.POLLIN if connection.flush() else select.POLLIN | select.POLLOUT
        poll.register(connection.fileno(), events)
        if not connection.has_received and not poll.poll(_PATIENCE_SECONDS * 1000):
            raise ConnectionLostError(f"it said nothing for {_PATIENCE_SECONDS:g} s")
        for message in connection.receive():
            match message:
                case Fetch():
                    connection.send(offered.answer(message))
                case Obtained():
                    return
                case Refused():
                    raise RefusedError(message.code, f"the host refuses: {message.message}")
                case _:
                    raise ProtocolError(f"the host sent {type(message).__name__} before it had the program")
