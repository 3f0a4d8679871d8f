"""One session of a host that waits for programs: the process that executes what a server offers, and ends with it.

It is forked for one connection (`ptserver.sessions.spawner`), so a program that crashes, or a hostile server, ends
this process alone.

Not trusted: the server, until its offer is accepted; afterwards it has the program's memory and processor time,
within the limits, and nothing else of this machine: see `ptserver.hosts.remote`.
Thread rules: the main thread of that process.
"""

import contextlib
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from goabi.elf_header import read_elf_header
from goabi.errors import GoAbiError
from ptserver.errors import ConnectionLostError, ProtocolError, PtServerError, RefusedError, UntrustedError
from ptserver.hosts.endings import exit_of
from ptserver.hosts.launch import launch_host
from ptserver.machine import native_arch, this_machine, version
from ptserver.messages import (
    CODECS,
    PROTOCOL_VERSION,
    Exited,
    Hello,
    Obtained,
    Offer,
    Program,
    Refused,
    Resume,
    ToHost,
    Welcome,
)
from ptserver.net.connection import Connection, Stream, client_handshake
from ptserver.net.keepalive import DEFAULT_SECONDS
from ptserver.net.reach import secure
from ptserver.net.tls import Keys, accept_tls
from ptserver.offered.binary_cache import BinaryCache
from ptserver.offered.file_transfer import EndedEarlyError, obtain
from ptserver.offered.handshake import SPREAD, read_offer
from ptserver.offered.host import OfferedHost
from ptserver.sessions.kept import KeptSession, bring_back
from ptserver.sessions.log import Log
from ptserver.sessions.registry import SessionRegistry
from ptserver.sessions.start import ask_for_room
from ptserver.stub.marker import find_stub_marker
from stepping.errors import SteppingError

#: How long a host that has connected waits for an offer before it connects anew.
_OFFER_TO_COME_SECONDS = 86400.0


@dataclass(frozen=True)
class HostConfig:
    """What all sessions of a host have in common.

    token: the secret that an offer must bring, if any; keys: for TLS, which is spoken if there are any; memory_bytes:
    how much a program may have, if limited; offer_seconds: how long the offer may take, after a TLS handshake that
    may take as long; keepalive_seconds: how long a server may be silent, 0 for ever. max_wait_seconds:
    how long a session may be kept at most when its connection is lost, to be found by *registry*. server: the address
    that connections were made to, if they were made; then the token is the one that the server wants.
    """

    log: Log
    cache: BinaryCache
    token: str | None = None
    keys: Keys | None = None
    memory_bytes: int | None = None
    offer_seconds: float = 5.0
    keepalive_seconds: float = DEFAULT_SECONDS
    max_wait_seconds: int = 0
    registry: SessionRegistry | None = None
    server: str | None = None

    def run(self, sock: socket.socket, session_id: str, admission: socket.socket) -> NoReturn:
        """Execute what is offered on *sock*, which was accepted, or connected to `server`; end this process."""
        log = self.log.of_session(session_id, self.log.fd)
        try:
            with _logged(log):
                offer_seconds, wanted = self.offer_seconds, self.token
                if self.server is not None:
                    stream = secure(sock, self.server, self.keys)
                    offer_seconds, wanted = _OFFER_TO_COME_SECONDS, None
                else:
                    stream = sock if self.keys is None else accept_tls(sock, self.keys, offer_seconds)
                offer = read_offer(
                    stream, native_arch(), wanted, offer_seconds, lambda: ask_for_room(admission)
                )
                if isinstance(offer, Resume):
                    admission.close()
                    bring_back(stream, offer, self.token, self.registry)
                else:
                    self._serve(stream, offer, session_id, log)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _serve(self, stream: Stream, offer: Offer, session_id: str, log: Log) -> None:
        wait_seconds = min(offer.wait_seconds, self.max_wait_seconds)
        kept = KeptSession(self.registry, session_id) if wait_seconds and self.registry is not None else None
        hello = msgspec.structs.replace(_hello(offer), token=(self.token or "") if self.server else "")
        if kept is not None:
            hello = msgspec.structs.replace(hello, wait_seconds=wait_seconds, ticket=kept.ticket)
        welcome, connection = client_handshake(stream, hello)
        if offer.purpose == SPREAD:
            self._take_part(stream, offer, connection, log)
            return
        started = time.monotonic()
        try:
            host = self._start(offer, welcome, connection, log)
        except EndedEarlyError as error:
            connection.send(Exited(None, error.signo))
            connection.finish()
            raise
        except (PtServerError, SteppingError, GoAbiError) as error:
            if not isinstance(error, ConnectionLostError):
                connection.send(Refused("launch", str(error)[:4096]))
                connection.finish()
            raise
        if kept is not None:
            host.survive_losses(kept, wait_seconds, log)
        with contextlib.closing(host):
            status, signo = exit_of(host.run())
        if host.lost is not None:
            raise ConnectionLostError(host.lost)
        how = f"with status {status}" if status is not None else f"by signal {signo}"
        log(f"ended {how} after {time.monotonic() - started:.3f} s")

    def _take_part(self, stream: Stream, offer: Offer, connection: Connection[ToHost], log: Log) -> None:
        """Execute an instance of a program that is spread over several hosts."""
        from ptserver.spread.agent import run_agent

        path, _ = obtain(offer.executable, self.cache, connection)
        connection.send(Obtained())
        if not connection.drain(self.offer_seconds):
            raise ConnectionLostError("the home does not read")
        log(f"is a host of {offer.executable.name}")
        run_agent(stream, str(path))

    def _start(self, offer: Offer, welcome: Welcome, connection: Connection[ToHost], log: Log) -> OfferedHost:
        if welcome.argv is None:
            raise ProtocolError("the server does not say with which arguments its program is to run")
        executable = offer.executable
        path, was_sent = obtain(executable, self.cache, connection)
        how = f"{executable.size_bytes} bytes, {'sent' if was_sent else 'kept'}"
        log(f"runs {executable.name} ({how}) for {welcome.host}")
        header = read_elf_header(path)
        has_stub = find_stub_marker(path, header) is not None
        argv = [*welcome.argv] or [os.fsencode(executable.name)]
        host = launch_host(
            OfferedHost,
            str(path),
            header,
            argv,
            welcome,
            connection,
            (),
            has_stub,
            stoppable=True,
            keepalive_seconds=self.keepalive_seconds,
        )
        host.kills_when_lost = True  # there is nobody to read a panic
        if self.memory_bytes is not None:
            resource.prlimit(host.pid, resource.RLIMIT_DATA, (self.memory_bytes, self.memory_bytes))
        if welcome.goroutines:
            host.find_goroutines(str(path))
        return host


def _hello(offer: Offer) -> Hello:
    executable = offer.executable
    return Hello(
        versions=(PROTOCOL_VERSION,),
        codecs=tuple(codec for codec in CODECS if codec in offer.codecs) or ("json",),
        software=f"ptserver {version()}",
        machine=this_machine(),
        program=Program.shown(executable.name, (executable.name,), build_id=executable.build_id[:255]),
        streams=(),
        ahead=True,
    )


@contextlib.contextmanager
def _logged(log: Log) -> Iterator[None]:
    """Log the error that ends a session, a mistake of ours with its traceback."""
    try:
        yield
    except ConnectionLostError as error:
        log(f"lost: {error}")
        raise
    except (RefusedError, UntrustedError) as error:
        log(f"refused: {error}")
        raise
    except (PtServerError, SteppingError, GoAbiError) as error:
        log(f"failed: {error}")
        raise
    except BaseException:
        log("failed: " + traceback.format_exc())
        raise
