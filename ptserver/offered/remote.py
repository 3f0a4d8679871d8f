"""`ptserver remote`, behind its command line: a host that waits for programs and executes them, many at once.

Like a server it only accepts connections here and has a process of its own deal with each
(`ptserver.offered.session`), so that it outlives every program.

Not trusted: whoever connects. Its program gets memory and processor time of this machine, and with them whatever a
program can do that makes no system call on resources; therefore addresses other than loopback and Unix sockets need
TLS, and a proof that the peer may connect, as with `ptserver serve`.
Thread rules: trio's thread.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ptserver.net.keepalive import DEFAULT_SECONDS
from ptserver.net.tls import connecting_keys, listening_keys
from ptserver.net.transport import close_listener, listen, local_address, parse_address
from ptserver.offered.binary_cache import DEFAULT_LIMIT_BYTES, BinaryCache, default_folder
from ptserver.offered.session import HostConfig
from ptserver.sessions.log import Log
from ptserver.sessions.registry import SessionRegistry, registry_folder
from ptserver.sessions.serve import (
    DEFAULT_MAX_WAIT_SECONDS,
    accept_until_signal,
    check_exposure,
    chosen_token,
    hold_signals,
    open_log,
    work_until_signal,
)
from ptserver.sessions.spawner import start_spawner

DEFAULT_ADDRESS = "localhost:11235"


@dataclass(frozen=True)
class RemoteOptions:
    """What the command line says.

    address: where to listen; server: where to connect to instead, if anywhere; token_file: whose first line is the
    token; keys: the folder of keys for TLS, which also may hold the token; max_sessions: how many programs at once;
    memory_bytes: how much each may have; cache: the folder of programs; cache_bytes: its limit; keepalive_seconds:
    how long a server may be silent, 0 for ever; max_wait_seconds: how long a program may wait for a lost server at
    most, if that asks for it; log_file: where the log goes, standard error if None; json: whether its lines, and the
    announcement, are JSON.
    """

    address: str = DEFAULT_ADDRESS
    server: str | None = None
    token_file: str | None = None
    keys: str | None = None
    max_sessions: int = 200
    memory_bytes: int | None = None
    cache: str | None = None
    cache_bytes: int = DEFAULT_LIMIT_BYTES
    keepalive_seconds: float = DEFAULT_SECONDS
    max_wait_seconds: int = DEFAULT_MAX_WAIT_SECONDS
    log_file: str | None = None
    json: bool = False


def remote(options: RemoteOptions) -> None:
    """Execute what is offered until SIGTERM or SIGINT; then end all programs and return.

    Raises:
        PtServerError: it cannot listen, or its zygote died.
    """
    log = Log(open_log(options.log_file), as_json=options.json)
    cache = BinaryCache(Path(options.cache) if options.cache else default_folder(), options.cache_bytes)
    with registry_folder() as folder:
        registry = SessionRegistry(folder)
        config = HostConfig(
            log,
            cache,
            memory_bytes=options.memory_bytes,
            keepalive_seconds=options.keepalive_seconds,
            max_wait_seconds=options.max_wait_seconds,
            registry=registry,
            server=options.server,
        )
        if options.server is None:
            _listen(options, config, registry)
        else:
            _connect(options, options.server, config, registry)


def _listen(options: RemoteOptions, config: HostConfig, registry: SessionRegistry) -> None:
    keys = listening_keys(options.keys) if options.keys is not None else None
    token = chosen_token(options.token_file, keys)
    listener = listen(options.address)
    try:
        check_exposure(listener, keys, token)
        spawner = start_spawner(replace(config, keys=keys, token=token), listener)
        try:
            address = local_address(listener)
            hold_signals()
            _announce("waiting", address, f"waiting for programs on {address}", as_json=options.json)
            accept_until_signal(listener, spawner, options.max_sessions, config.log, registry)
        finally:
            spawner.stop()
    finally:
        close_listener(listener)


def _connect(options: RemoteOptions, server: str, config: HostConfig, registry: SessionRegistry) -> None:
    parse_address(server)
    keys = connecting_keys(options.keys) if options.keys is not None else None
    token = chosen_token(options.token_file, keys)
    spawner = start_spawner(replace(config, keys=keys, token=token), None)
    try:
        from ptserver.offered.connector import Connector  # after the fork: the zygote needs no trio

        hold_signals()
        _announce("server", server, f"taking programs from {server}", as_json=options.json)
        work_until_signal(Connector(server, spawner, options.max_sessions, config.log, registry.remove))
    finally:
        spawner.stop()


def _announce(member: str, address: str, text: str, *, as_json: bool) -> None:
    line = json.dumps({member: address, "pid": os.getpid()}) if as_json else f"ptserver: {text}"
    print(line, flush=True)
