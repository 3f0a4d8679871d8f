"""Runs a program on another host, with everything that it asks for from here.

This process is the session: the runtime server's instance and the program's shadow. So what a program has of its
process is this one's: descriptors, standard streams, terminal, working directory, environment, limits, and its place
in a shell's job. Signals that this process gets are the program's; when the program is stopped, this process stops.

Not trusted: the host, as far as its messages go; it does execute the program.
"""

import contextlib
import os
import stat
import sys
import time
from typing import NoReturn

import msgspec

from goabi.elf_header import ElfHeader
from ptserver.errors import ConnectionLostError, LaunchError, ProtocolError, RefusedError
from ptserver.hosts.endings import die_by
from ptserver.machine import native_arch, version
from ptserver.messages import CODECS, PROTOCOL_VERSION, Hello, Offer, Welcome
from ptserver.messages import Program as ProgramFacts
from ptserver.net.connection import server_handshake
from ptserver.net.messenger import Messenger
from ptserver.net.reach import reach
from ptserver.net.transport import is_address
from ptserver.offered.file_transfer import OfferedFile
from ptserver.offered.handshake import send_offer
from ptserver.running.await_host import LISTEN, await_host
from ptserver.running.here import instance, say
from ptserver.running.remotely import read_token
from ptserver.running.run import RunOptions
from ptserver.servers import load
from ptserver.sessions.log import Log
from ptserver.sessions.process import SessionLoop
from ptserver.sessions.start import SessionConfig, keep_printing, welcome
from ptserver.sessions.stdio import OwnStdio
from ptserver.shadow.descriptors import Descriptors
from ptserver.stub.hypercalls import DEFAULT_GOOSREMOTE
from ptserver.stub.marker import StubInfo

#: From when on a transfer shows how far it is.
_PROGRESS_SECONDS = 1.0


def run_elsewhere(
    options: RunOptions, path: str, header: ElfHeader, stub: StubInfo | None, present: tuple[int, ...]
) -> NoReturn:
    """Run on the host `options.on`, and end this process as the program ends.

    It ends at once, since threads of the shadow may be stuck in calls. *present* are the standard streams that this
    process has.
    """
    assert options.on is not None
    if is_address(options.server):
        raise LaunchError(
            "with --on the program's resources are here: --server names a server of this process, not an address"
        )
    server_class = load(options.server)
    facts = ProgramFacts.shown(
        os.path.abspath(path),
        options.argv,
        abstraction=stub.goosremote if stub else DEFAULT_GOOSREMOTE,
        stub=stub is not None,
    )
    descriptors = Descriptors()
    keep_printing(descriptors)
    for number in {0, 1, 2} - {*present}:
        os.close(number)
    offered = OfferedFile(path, header, descriptors.keep, _Progress(os.path.basename(path), options.on))
    session_id = str(os.getpid())
    config = SessionConfig(server_class, f"ptserver {version()}", Log(sys.stderr.fileno()))

    offer = Offer(
        (PROTOCOL_VERSION,), CODECS, config.software, offered.executable, wait_seconds=options.wait_seconds
    )

    def choose(hello: Hello, version: int, codec: str) -> Welcome:
        if hello.machine.arch != native_arch():
            raise LaunchError(f"{options.on} is {hello.machine.arch}, this machine is {native_arch()}")
        answer = welcome(msgspec.structs.replace(hello, program=facts), version, codec, session_id, config)
        return msgspec.structs.replace(
            answer,
            argv=tuple(options.argv),
            ahead=answer.ahead and not options.sync,
            streams=tuple(number for number in (0, 1, 2) if number in present and _is_stream(number)),
        )

    messenger: Messenger | None = None
    if options.wait_seconds:
        messenger = Messenger(options.on, options.keys, descriptors.keep)
    if options.on.startswith(LISTEN):
        hello, answer, connection, token = await_host(options, descriptors.keep, offer, choose)
    else:
        stream, token_of_keys = reach(options.on, options.keys, descriptors.keep)
        token = read_token(options.token_file) or token_of_keys
        send_offer(stream, msgspec.structs.replace(offer, token=token))
        try:
            hello, answer, connection = server_handshake(stream, 10.0, choose)
        except ConnectionLostError as error:
            raise ConnectionLostError(f"{options.on} does not take programs, or is gone: {error}") from error
    if messenger is not None:
        if not hello.ticket:
            raise RefusedError("session", f"{options.on} keeps no session whose connection is lost")
        messenger.ticket, messenger.token = hello.ticket, token
    hello = msgspec.structs.replace(hello, program=facts)
    loop = SessionLoop(
        connection,
        hello,
        instance(server_class),
        session_id,
        descriptors,
        say,
        OwnStdio(),
        offered,
        keepalive_seconds=options.keepalive_seconds,
        ahead=answer.ahead,
        wait_seconds=hello.wait_seconds,
        source=messenger,
    )
    try:
        exited = loop.run()
    except ConnectionLostError as error:
        raise ConnectionLostError(f"lost connection to host {options.on}: {error}") from error
    except ProtocolError as error:
        raise ProtocolError(f"host {options.on}: {error}") from error
    finally:
        connection.finish()
    sys.stdout.flush()
    sys.stderr.flush()
    if exited.status is None:
        die_by(exited.signo)
    os._exit(128 + exited.signo if exited.status is None else exited.status)


def _is_stream(fd: int) -> bool:
    """Whether writing to a descriptor changes no file."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


class _Progress:
    """Shows at the user's terminal how much of the program has been sent, once that takes long."""

    def __init__(self, name: str, where: str) -> None:
        self._name = name
        self._where = where
        self._started = time.monotonic()

    def __call__(self, sent: int, total: int) -> None:
        """Say that *sent* of *total* bytes are on their way."""
        if time.monotonic() - self._started < _PROGRESS_SECONDS or not sys.stderr.isatty():
            return
        text = f"ptserver: sending {self._name} to {self._where}: {sent >> 20} of {total >> 20} MiB"
        if sent >= total:
            text = ""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
