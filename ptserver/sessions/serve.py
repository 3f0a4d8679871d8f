"""`ptserver serve`, behind its command line: accepts connections and has a process of its own serve each.

This process only accepts and counts (`ptserver.sessions.acceptor`). What a peer sends is read by the session's
process alone, so a malformed or hostile client harms nobody but itself.

Not trusted: peers. Only loopback and Unix sockets, which just this machine's users reach, may be open. Any other
address needs TLS (`ptserver.net.tls`), and a proof that the peer may connect: its certificate, or the token.

Thread rules: trio's thread.
"""

import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptserver.confinement.confine import check, protect_this_process
from ptserver.confinement.options import UNCONFINED, Confinement
from ptserver.errors import AddressError, PtServerError, ServerLoadError
from ptserver.machine import version
from ptserver.net.keepalive import DEFAULT_SECONDS
from ptserver.net.tls import MIN_TOKEN_CHARACTERS, Keys, listening_keys
from ptserver.net.transport import close_listener, is_private, listen, local_address
from ptserver.remote_memory.shared import SharedVariables
from ptserver.servers import load
from ptserver.sessions.log import Log
from ptserver.sessions.registry import SessionRegistry, registry_folder
from ptserver.sessions.spawner import Spawner, start_spawner
from ptserver.sessions.start import SessionConfig

if TYPE_CHECKING:
    from ptserver.sessions.acceptor import Acceptor

#: How long sessions are kept at most, if nobody says otherwise.
DEFAULT_MAX_WAIT_SECONDS = 600

#: What ends this process.
_ENDING = (signal.SIGTERM, signal.SIGINT)


class ServeError(PtServerError):
    """The server cannot go on."""


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says.

    server: a name or ``module:Class``; address: where to listen; token_file: whose first line is the token; keys:
    the folder of keys for TLS, which also may hold the token; max_sessions: how many at once; keepalive_seconds: how
    long a host may be silent, 0 for ever; log_file: where the log goes, standard error if None; json: whether its
    lines, and the announcement, are JSON; watch_token_file: as token_file, of a token with which one may watch
    sessions and do nothing else; confinement: of sessions; max_wait_seconds: how long a session may be kept at most
    when its connection is lost, if its host asks for it.
    """

    server: str
    address: str
    token_file: str | None = None
    keys: str | None = None
    max_sessions: int = 200
    keepalive_seconds: float = DEFAULT_SECONDS
    log_file: str | None = None
    json: bool = False
    watch_token_file: str | None = None
    confinement: Confinement = UNCONFINED
    max_wait_seconds: int = DEFAULT_MAX_WAIT_SECONDS


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT; then end all sessions and return.

    Raises:
        PtServerError: the server cannot be loaded or started, or its zygote died.
    """
    server = load(options.server)
    log = Log(open_log(options.log_file), as_json=options.json)
    keys = listening_keys(options.keys) if options.keys is not None else None
    token = chosen_token(options.token_file, keys)
    watch_token = read_token(options.watch_token_file) if options.watch_token_file is not None else None
    ways = check(options.confinement)
    protect_this_process()
    with contextlib.ExitStack() as stack:
        listener = listen(options.address)
        stack.callback(close_listener, listener)
        folder = stack.enter_context(registry_folder())
        check_exposure(listener, keys, token)
        registry = SessionRegistry(folder)
        config = SessionConfig(
            server,
            f"ptserver {version()}",
            log,
            token,
            keys=keys,
            confinement=options.confinement,
            keepalive_seconds=options.keepalive_seconds,
            variables=SharedVariables(),
            registry=registry,
            watch_token=watch_token,
            max_wait_seconds=options.max_wait_seconds,
        )
        spawner = start_spawner(config, listener)
        try:
            if ways:
                log(f"sessions are confined: {'; '.join(ways)}")
            hold_signals()
            _announce(server.display_name(), local_address(listener), as_json=options.json)
            accept_until_signal(listener, spawner, options.max_sessions, log, registry)
        finally:
            spawner.stop()


def chosen_token(token_file: str | None, keys: Keys | None) -> str | None:
    """Return the token that a peer must bring: that of *token_file*, or of the folder of keys, or None."""
    if token_file is not None:
        return read_token(token_file)
    return keys.token or None if keys is not None else None


def check_exposure(listener: socket.socket, keys: Keys | None, token: str | None) -> None:
    """Refuse to serve other machines without TLS, or anybody who connects.

    Raises:
        AddressError: says what is missing.
    """
    if is_private(listener.getsockname()):
        return
    where = f"{local_address(listener)} can be reached from other machines"
    if keys is None:
        raise AddressError(
            f"{where}, which needs TLS: `ptserver keys` makes a folder of keys for --keys DIR; or listen at localhost"
        )
    if not keys.mutual and token is None:
        raise AddressError(
            f"{where}, and whoever connects acts with your rights: put ca.pem into the folder of keys, to ask"
            " hosts for certificates, or a token"
        )


def read_token(path: str) -> str:
    """Return the token in the file *path*: its first line, without spaces around it.

    Raises:
        ServerLoadError: it cannot be read, or is too short to be a secret.
    """
    try:
        token = Path(path).read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ServerLoadError(f"cannot read the token file {path!r}: {reason}") from error
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ServerLoadError(
            f"the token in {path!r} has {len(token)} characters, fewer than {MIN_TOKEN_CHARACTERS}"
        )
    return token


def open_log(path: str | None) -> int:
    """Return a descriptor to append to the log *path*, standard error if None.

    Raises:
        ServerLoadError: it cannot be written.
    """
    if path is None:
        return 2
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ServerLoadError(f"cannot write the log {path!r}: {error.strerror}") from error


def _announce(name: str, address: str, *, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"serving": name, "address": address, "pid": os.getpid()}), flush=True)
    else:
        print(f"ptserver: serving {name} on {address}", flush=True)


def hold_signals() -> None:
    """Have what ends this process wait for `work_until_signal`: who hears of it may end it at once."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def accept_until_signal(
    listener: socket.socket, spawner: Spawner, max_sessions: int, log: Log, registry: SessionRegistry
) -> None:
    """Have *spawner* take each connection, *max_sessions* at once, until SIGTERM or SIGINT.

    Sessions that have ended are taken off the *registry*.

    Raises:
        ServeError: the zygote died.
    """
    from ptserver.sessions.acceptor import Acceptor  # after the fork: the zygote needs no trio

    work_until_signal(Acceptor(listener, spawner, max_sessions, log, registry.remove))


def work_until_signal(acceptor: "Acceptor") -> None:
    """Have *acceptor* take connections until SIGTERM or SIGINT. Raises: ServeError if the zygote died."""
    import trio

    async def main() -> None:
        with trio.open_signal_receiver(*_ENDING) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(acceptor.accept, nursery)
                nursery.start_soon(acceptor.count, nursery.cancel_scope)
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()

    trio.run(main)
    if acceptor.zygote_died:
        raise ServeError("the process that starts sessions died; start the server again")
