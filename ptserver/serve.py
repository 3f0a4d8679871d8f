"""`ptserver serve`, behind its command line: accepts connections and has a process of its own serve each.

This process only accepts and counts. What a peer sends is read by the session's process alone, so a malformed or
hostile client harms nobody but itself. Beyond the allowed number of sessions a client is told so and dropped.

Not trusted: peers. Without a token only this machine's own users can connect (loopback, Unix socket); any other
address needs one. The token travels in the clear: TLS is not built in, use a tunnel where the network is not yours.

Thread rules: trio's thread.
"""

import ipaddress
import os
import secrets
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptserver.connection import refused_for
from ptserver.errors import AddressError, PtServerError, RefusedError, ServerLoadError
from ptserver.machine import version
from ptserver.servers import load
from ptserver.session_log import Log
from ptserver.session_start import SessionConfig
from ptserver.spawner import Spawner, start_spawner
from ptserver.transport import close_listener, listen, local_address
from ptserver.wire import Codec

if TYPE_CHECKING:
    import trio

_MIN_TOKEN_CHARACTERS = 16
#: How many clients may be told at once that there are too many sessions; others are dropped silently.
_MAX_REFUSING = 32
_REFUSE_SECONDS = 1.0


class ServeError(PtServerError):
    """The server cannot go on."""


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says.

    server: a name or ``module:Class``; address: where to listen; token_file: whose first line is the token;
    max_sessions: how many at once; log_file: where the log goes, standard error if None; json: whether its
    lines, and the announcement, are JSON.
    """

    server: str
    address: str
    token_file: str | None = None
    max_sessions: int = 200
    log_file: str | None = None
    json: bool = False


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT; then end all sessions and return.

    Raises:
        PtServerError: the server cannot be loaded or started, or its zygote died.
    """
    server = load(options.server)
    log = Log(_open_log(options.log_file), as_json=options.json)
    token = read_token(options.token_file) if options.token_file is not None else None
    listener = listen(options.address)
    try:
        if token is None and not is_private(listener):
            raise AddressError(
                f"{local_address(listener)} can be reached from other machines, and whoever connects acts with"
                " your rights: give --token-file FILE, or listen at localhost"
            )
        config = SessionConfig(server, f"ptserver {version()}", log, token)
        spawner = start_spawner(config, listener)
        try:
            _announce(server.display_name(), local_address(listener), as_json=options.json)
            _accept_until_signal(listener, spawner, options.max_sessions, log)
        finally:
            spawner.stop()
    finally:
        close_listener(listener)


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
    if len(token) < _MIN_TOKEN_CHARACTERS:
        raise ServerLoadError(
            f"the token in {path!r} has {len(token)} characters, fewer than {_MIN_TOKEN_CHARACTERS}"
        )
    return token


def is_private(listener: socket.socket) -> bool:
    """Whether only this machine's users can connect to *listener*."""
    if listener.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _open_log(path: str | None) -> int:
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


def _accept_until_signal(listener: socket.socket, spawner: Spawner, max_sessions: int, log: Log) -> None:
    import trio

    acceptor = _Acceptor(listener, spawner, max_sessions, log)

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(acceptor.accept, nursery)
                nursery.start_soon(acceptor.count, nursery.cancel_scope)
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()

    trio.run(main)
    if acceptor.zygote_died:
        raise ServeError("the process that starts sessions died; start the server again")


class _Acceptor:
    """Hands connections to the zygote, and knows how many sessions there are.

    zygote_died: set when that is why `count` stopped.
    """

    def __init__(self, listener: socket.socket, spawner: Spawner, max_sessions: int, log: Log) -> None:
        self.zygote_died = False
        self._listener = listener
        self._spawner = spawner
        self._max_sessions = max_sessions
        self._log = log
        self._sessions = 0
        self._refusing = 0
        self._prefix = secrets.token_hex(3)
        self._accepted = 0

    async def accept(self, nursery: "trio.Nursery") -> None:
        """Accept until cancelled."""
        import trio

        listener = trio.socket.from_stdlib_socket(self._listener)
        while True:
            try:
                connection, _ = await listener.accept()
            except (
                OSError
            ) as error:  # the client is gone already, or there are no descriptors: the queue waits
                self._log(f"cannot accept a connection: {error.strerror}")
                await trio.sleep(0.1)
                continue
            if self._sessions >= self._max_sessions:
                await self._refuse(connection, nursery)
                continue
            self._sessions += 1
            self._accepted += 1
            await self._spawn(f"{self._prefix}-{self._accepted}", _blocking_socket(connection))

    async def count(self, everything: "trio.CancelScope") -> None:
        """Count sessions that end, until cancelled; cancel *everything* if the zygote is gone."""
        import trio

        while True:
            await trio.lowlevel.wait_readable(self._spawner.socket)
            ended = self._spawner.take_ended()
            if ended is None:
                self.zygote_died = True
                everything.cancel()
                return
            self._sessions -= len(ended)
            for pid, status in ended:
                if os.WIFSIGNALED(status):
                    self._log(f"session process {pid} was killed by signal {os.WTERMSIG(status)}")

    async def _spawn(self, session_id: str, connection: socket.socket) -> None:
        import trio

        while True:
            await trio.lowlevel.wait_writable(self._spawner.socket)
            try:
                self._spawner.spawn(session_id, connection)
                return
            except BlockingIOError:
                continue
            except OSError:
                return  # `count` hears of it

    async def _refuse(self, connection: "trio.socket.SocketType", nursery: "trio.Nursery") -> None:
        if self._refusing >= _MAX_REFUSING:
            connection.close()
            return
        self._refusing += 1
        nursery.start_soon(self._tell_limit, connection)

    async def _tell_limit(self, connection: "trio.socket.SocketType") -> None:
        import trio

        refusal = RefusedError("limit", f"the server has {self._max_sessions} sessions already; try later")
        frame = bytes(Codec("json").encode(refused_for(refusal)))
        try:
            with trio.move_on_after(_REFUSE_SECONDS), connection:
                await connection.send(frame)
                connection.shutdown(socket.SHUT_WR)
                while await connection.recv(65536):  # closing with unread input would destroy our words
                    pass
        except OSError:
            pass  # it does not listen
        finally:
            self._refusing -= 1


def _blocking_socket(connection: "trio.socket.SocketType") -> socket.socket:
    sock = socket.socket(fileno=connection.detach())
    sock.setblocking(True)
    return sock
