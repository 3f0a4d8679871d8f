"""The beginning and the end of a session's process: who is let in, and how the process ends.

Whoever spawned the process says whether there is room for one more session, when the peer has proved that it may
have one: so peers that say nothing take no other's place. The process asks by one byte on its *admission* socket;
the answer is `ADMITTED` or another byte. Then it closes that socket.

Not trusted: the peer; until its hello is accepted nothing is done for it.
Thread rules: the main thread of a process forked for one connection.
"""

import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

import msgspec

from ptserver.confinement.confine import enter, limit
from ptserver.confinement.gate import Gate
from ptserver.confinement.options import UNCONFINED, Confinement
from ptserver.errors import ConnectionLostError, ProtocolError, PtServerError, RefusedError, UntrustedError
from ptserver.hosts.policy import CLOCK_CALLS
from ptserver.messages import (
    MAX_ENVIRONMENT_ENTRIES,
    MAX_ENVIRONMENT_ENTRY_BYTES,
    Hello,
    Interest,
    Resume,
    SessionFacts,
    Terminal,
    ToServer,
    WatcherHello,
    Welcome,
)
from ptserver.net.connection import Connection, Stream, answer_hello, receive_hello, refuse, refused_for
from ptserver.net.keepalive import DEFAULT_SECONDS
from ptserver.net.tls import Keys, accept_tls
from ptserver.remote_memory.shared import SharedVariables
from ptserver.server import RuntimeServer, check_hears
from ptserver.sessions.foresight import may_work_ahead
from ptserver.sessions.guard import guard_session
from ptserver.sessions.kept import KeptSession, bring_back, check_token
from ptserver.sessions.log import Log
from ptserver.sessions.process import ServerStopsError, SessionLoop
from ptserver.sessions.registry import SessionRegistry
from ptserver.sessions.stdio import Stdio
from ptserver.shadow.descriptors import Descriptors
from stepping.syscalls import SYSCALLS

ADMITTED = b"+"
#: What a process asks by whose peer is a watcher.
WATCHER = b"w"


@dataclass(frozen=True)
class SessionConfig:
    """What all sessions of a server have in common.

    software: what the server runs on, with its version; token: the secret that a hello must bring, if any;
    hello_seconds: how long it may take, after a TLS handshake that may take as long; keys: for TLS, which is
    spoken if there are any; confinement: of every session; keepalive_seconds: how long a host may be silent, 0 for
    ever; variables: the remote ones that they share, if the server keeps any. registry: where watchers find sessions,
    if they may; watch_token: another secret than the token, with which one may watch and do nothing else.
    max_wait_seconds: how long a session may be kept at most when its connection is lost.
    """

    server: type[RuntimeServer]
    software: str
    log: Log
    token: str | None = None
    hello_seconds: float = 5.0
    keys: Keys | None = None
    confinement: Confinement = UNCONFINED
    keepalive_seconds: float = DEFAULT_SECONDS
    variables: SharedVariables | None = None
    registry: SessionRegistry | None = None
    watch_token: str | None = None
    max_wait_seconds: int = 0

    def run(self, sock: socket.socket, session_id: str, admission: socket.socket) -> NoReturn:
        """Serve one accepted connection, and end this process."""
        guard_session(lambda guard: run_session(sock, session_id, self, admission, guard))


def run_session(
    sock: socket.socket,
    session_id: str,
    config: SessionConfig,
    admission: socket.socket,
    guard: socket.socket,
) -> NoReturn:
    """Serve one accepted connection, and end this process. Descriptors 1 and 2 are where it may print and log.

    guard: the socket of the session's guard (`ptserver.sessions.guard`), which is this process's parent.
    """
    limit(config.confinement)
    descriptors = Descriptors()
    log = config.log.of_session(session_id, descriptors.keep(os.dup(config.log.fd)))
    sock = socket.socket(fileno=descriptors.keep(sock.detach()))
    admission = socket.socket(fileno=descriptors.keep(admission.detach()))
    guard = socket.socket(fileno=descriptors.keep(guard.detach()))
    keep_printing(descriptors)

    kept: KeptSession | None = None

    def choose(hello: Hello, version: int, codec: str) -> Welcome:
        nonlocal kept
        answer = welcome(hello, version, codec, session_id, config)
        ask_for_room(admission)
        if answer.wait_seconds and config.registry is not None:
            kept = KeptSession(config.registry, session_id, descriptors.keep)
            return msgspec.structs.replace(answer, ticket=kept.ticket)
        return answer

    with _Ending(log) as ending:
        stream = sock if config.keys is None else accept_tls(sock, config.keys, config.hello_seconds)
        hello = receive_hello(stream, config.hello_seconds)
        if isinstance(hello, WatcherHello):
            _serve_watcher(stream, hello, config, admission, log)
        elif isinstance(hello, Resume):
            admission.close()
            bring_back(stream, hello, config.token, config.registry)
            log(f"was a new connection of session {hello.ticket.partition(':')[0]}")
        else:
            answer, connection = answer_hello(stream, hello, config.hello_seconds, choose)
            ending.connection = connection
            _serve_host(
                connection, hello, config, session_id, descriptors, log, guard, answer.wait_seconds, kept
            )
    raise AssertionError("not reached")


def ask_for_room(admission: socket.socket, who: bytes = b"?") -> None:
    """Ask whether there is room for one more session, or watcher. Raises: RefusedError if there is none."""
    with admission:
        admission.send(who)
        answer = admission.recv(1)
    if answer != ADMITTED:
        what = "watchers" if who == WATCHER else "sessions"
        raise RefusedError("limit", f"the server has as many {what} already as it takes; try later")


def _serve_host(
    connection: Connection[ToServer],
    hello: Hello,
    config: SessionConfig,
    session_id: str,
    descriptors: Descriptors,
    log: Log,
    guard: socket.socket,
    wait_seconds: float,
    kept: KeptSession | None,
) -> None:
    """Be the session of a host that was let in, to its end."""
    started = time.monotonic()
    watched_at = _make_watchable(session_id, hello, config, descriptors, log)
    program = hello.program
    log(f"runs {program.path} {' '.join(program.argv[1:])}".rstrip() + f" for {hello.machine.hostname}")
    stdio = Stdio(hello, descriptors, connection.send)
    gate = Gate(config.confinement, log) if config.confinement.is_strict else None
    loop = SessionLoop(
        connection,
        hello,
        config.server(),
        session_id,
        descriptors,
        log,
        stdio,
        gate=gate,
        watched_at=watched_at,
        guard=guard,
        variables=config.variables,
        keepalive_seconds=config.keepalive_seconds,
        ahead=hello.ahead and may_work_ahead(config.server),
        wait_seconds=wait_seconds,
        source=kept,
    )
    enter(config.confinement)
    loop.run()
    log(f"ended after {time.monotonic() - started:.3f} s")


def _serve_watcher(
    stream: Stream, hello: WatcherHello, config: SessionConfig, admission: socket.socket, log: Log
) -> None:
    """Let a watcher in, if it may, and serve it until it goes."""
    from ptserver.watching.relay import check_token, relay_watcher

    try:
        if config.registry is None:
            raise RefusedError("watch", "this is no server whose sessions can be watched")
        check_token(hello.token, config)
        ask_for_room(admission, WATCHER)
    except RefusedError as error:
        refuse(stream, error)
        raise
    log("is watched")
    relay_watcher(stream, hello, config, config.registry)


def _make_watchable(
    session_id: str, hello: Hello, config: SessionConfig, descriptors: Descriptors, log: Log
) -> socket.socket | None:
    """Return the socket at which the session can be watched; None if it cannot be, which is no reason to end it."""
    if config.registry is None:
        return None
    try:
        sock = config.registry.listen(session_id)
        sock = socket.socket(fileno=descriptors.keep(sock.detach()))
        program = hello.program.path
        config.registry.describe(SessionFacts(session_id, program, hello.machine.hostname, time.time_ns()))
    except OSError as error:
        log(f"cannot be watched: {error.strerror}")
        return None
    return sock


def welcome(hello: Hello, version: int, codec: str, session_id: str, config: SessionConfig) -> Welcome:
    """Return the answer to a hello that is let in.

    Raises:
        RefusedError: it lacks the token, its program is for another abstraction, or it is spread and the server is
            none for such.
    """
    server = config.server
    check_token(config.token, hello.token)
    if hello.program.abstraction != server.abstraction:
        raise RefusedError(
            "abstraction",
            f"the program wants the OS abstraction {hello.program.abstraction!r},"
            f" this server presents {server.abstraction!r}; build it with GOOSREMOTE={server.abstraction}",
        )
    if hello.spread:
        check_hears(server)
        return Welcome(
            version=version,
            codec=codec,
            server=server.display_name(),
            software=config.software,
            session=session_id,
            host=os.uname().nodename,
            resources="host",
            interest={},
            goroutine_events=server.goroutine_events,
        )
    return Welcome(
        version=version,
        codec=codec,
        server=server.display_name(),
        software=config.software,
        session=session_id,
        host=os.uname().nodename,
        resources="server",
        interest=_welcome_interest(server, hello),
        default_interest="serve",
        abstraction=server.abstraction,
        environment=_environment(hello.terminal, config.confinement),
        goroutines=server.goroutines,
        pid=os.getpid(),
        memory=config.variables is not None,
        statistics_ms=round(server.statistics_seconds * 1000),
        ahead=hello.ahead and may_work_ahead(server),
        streams=(0, 1, 2),
        wait_seconds=min(hello.wait_seconds, config.max_wait_seconds),
        relays=True,
    )


def _welcome_interest(server: type[RuntimeServer], hello: Hello) -> dict[str, Interest]:
    """Return what the host must know of the server's interest.

    Calls on resources are served anyway: that some of them are to be observed only, or ignored, does not make
    them calls of the host's.
    """
    interests = {
        name: interest
        for name, interest in server.declared_interest().items()
        if interest == "serve" or not SYSCALLS[name].klass.is_resource
    }
    return interests | dict.fromkeys(CLOCK_CALLS, "serve") if hello.server_time else interests


def _environment(terminal: Terminal | None, confinement: Confinement) -> tuple[bytes, ...]:
    entries = dict(os.environb)
    if confinement.user is not None:
        own = confinement.user.environment
        entries.update((os.fsencode(name), os.fsencode(value)) for name, value in own.items())
    if terminal is not None and terminal.name:
        entries[b"TERM"] = os.fsencode(terminal.name)
    fitting = (name + b"=" + value for name, value in entries.items())
    return tuple(entry for entry in fitting if len(entry) <= MAX_ENVIRONMENT_ENTRY_BYTES)[
        :MAX_ENVIRONMENT_ENTRIES
    ]


def keep_printing(descriptors: Descriptors) -> None:
    """Let the server's methods print where the server does, although descriptors 1 and 2 become the program's."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        file = os.fdopen(descriptors.keep(os.dup(number)), "w", buffering=1, errors="backslashreplace")
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)


class _Ending:
    """Ends the process at the end of the block: tells the peer and the log why, and leaves at once.

    Leaving at once matters: threads may be stuck in calls, and what the process that forked this one had planned
    for its own end is none of this one's business.
    """

    def __init__(self, log: Log) -> None:
        self.connection: Connection[ToServer] | None = None
        self._log = log

    def __enter__(self) -> "_Ending":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> NoReturn:
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, {signal.SIGTERM}
        )  # who waits for the peer below can be ended
        status = 0
        told: PtServerError | None = None
        if isinstance(error, ConnectionLostError):
            self._log(f"lost: {error}")
        elif isinstance(error, RefusedError | UntrustedError):
            code = error.code if isinstance(error, RefusedError) else "tls"
            self._log(f"refused: {error}", refused="session", code=code)
        elif isinstance(error, ProtocolError):
            self._log(f"dropped: {error}")
            told = error
        elif isinstance(error, ServerStopsError):
            self._log(f"stopped: {error}")
            told = RefusedError("internal", str(error))
        elif error is not None:
            self._log("failed: " + "".join(traceback.format_exception(kind, error, trace)))
            told = PtServerError()
            status = 1
        if self.connection is not None and not isinstance(error, ConnectionLostError):
            if told is not None:
                self.connection.send(refused_for(told))
            self.connection.finish()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
