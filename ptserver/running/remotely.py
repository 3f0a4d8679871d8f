"""Runs a program here with the resources of the server at an address."""

import contextlib
import os
import signal

import msgspec

from goabi.elf_header import ElfHeader
from ptserver.errors import (
    ConnectError,
    ConnectionLostError,
    KeysError,
    ProtocolError,
    RefusedError,
    TokenError,
)
from ptserver.hosts.endings import end_as, exit_of
from ptserver.hosts.launch import Emulation, launch_host
from ptserver.hosts.remote import RemoteHost
from ptserver.hosts.to_user import say
from ptserver.machine import native_arch, this_machine, version
from ptserver.messages import CODECS, PROTOCOL_VERSION, Hello, StreamId
from ptserver.messages import Program as ProgramFacts
from ptserver.net.connection import client_handshake
from ptserver.net.messenger import Messenger
from ptserver.net.reach import reach
from ptserver.remote_memory.store import RemoteStore
from ptserver.rules.rules import Rules
from ptserver.running.here import host_here, hosting, run_emulated
from ptserver.running.run import RunOptions
from ptserver.servers import load
from ptserver.stub.hypercalls import DEFAULT_GOOSREMOTE
from ptserver.stub.marker import StubInfo
from ptserver.terminal import RawTerminal, user_terminal


def run_remotely(
    options: RunOptions, path: str, header: ElfHeader, stub: StubInfo | None, present: tuple[int, ...]
) -> int:
    """Run under the server at an address; *present* are the standard streams that this process has."""
    emulation = None
    if options.emulated or header.arch != native_arch():
        if options.trace is not None:
            from ptserver.emulated.trace import check_source

            check_source(options.trace)
        emulation = Emulation(options.seed, options.remote or None, options.remote_trace, options.trace)
    plan = None
    if options.remote:
        from ptserver.remote_memory.hosting import plan_remote

        plan = plan_remote(path, options.remote, emulated=emulation is not None)
    streams: tuple[StreamId, ...] = tuple(number for number in (0, 1, 2) if number in present)
    terminal = user_terminal()
    rules = options.rules
    if rules is not None and rules.stdio().side == "local":
        # The program writes to its own; what it executes, at the server, has these. Both cannot read one input.
        streams, terminal = tuple(number for number in streams if number), None
    token = read_token(options.token_file)
    messenger = Messenger(options.server, options.keys) if options.wait_seconds else None
    try:
        stream, token_of_keys = reach(options.server, options.keys)
        hello = Hello(
            versions=(PROTOCOL_VERSION,),
            codecs=CODECS,
            software=f"ptserver {version()}",
            machine=this_machine(),
            program=ProgramFacts.shown(
                os.path.abspath(path),
                options.argv,
                abstraction=stub.goosremote if stub else DEFAULT_GOOSREMOTE,
                stub=stub is not None,
                emulated=emulation is not None,
            ),
            token=token or token_of_keys,
            streams=streams,
            terminal=terminal,
            server_time=options.time == "server",
            ahead=not options.sync and (rules is None or not rules.has_local),
            wait_seconds=options.wait_seconds,
        )
        welcome, connection = client_handshake(stream, hello)
    except (ConnectError, ConnectionLostError, KeysError, ProtocolError, RefusedError) as error:
        if options.stub and emulation is not None:
            return run_emulated(options, path, stub, f"remote: {error}")
        if options.stub:
            return host_here(options, path, load("passthrough"), True, f"remote: {error}")
        raise
    if plan is not None and not welcome.memory:
        connection.close()
        raise RefusedError("memory", f"the server {welcome.server} keeps no remote variables")
    if messenger is not None:
        if not welcome.ticket:
            connection.close()
            raise RefusedError(
                "session", f"the server {welcome.server} keeps no session whose connection is lost"
            )
        messenger.ticket, messenger.token = welcome.ticket, hello.token
    carried = welcome.resources == "server"
    if rules is not None:
        welcome = msgspec.structs.replace(welcome, environment=mixed_environment(rules, welcome.environment))
    host = launch_host(
        _host_class(rules, carried),
        path,
        header,
        options.argv,
        welcome,
        connection,
        streams if carried else (),
        stub is not None,
        keepalive_seconds=options.keepalive_seconds,
        traced=plan is not None and emulation is None,
        emulation=emulation,
    )
    host.server_time = options.time == "server"
    host.kills_when_lost = options.on_lost == "kill"
    raw = RawTerminal() if terminal is not None and carried else None
    if messenger is not None:
        host.survive_losses(
            messenger, welcome.wait_seconds, say, raw.suspend if raw is not None else _do_nothing
        )
    # Of an emulator's process there is no goroutine to be known.
    hosted = (
        contextlib.closing(host)
        if emulation is not None
        else hosting(options, path, host, goroutines=welcome.goroutines)
    )
    with hosted, raw or contextlib.nullcontext():
        if plan is not None and emulation is None:
            from ptserver.remote_memory.hosting import start_remote

            start_remote(host, path, plan, RemoteStore(host.ask), options.remote_trace)
        status = host.run()
    if host.lost is not None and exit_of(status)[1] == signal.SIGKILL:
        raise ConnectionLostError(f"lost connection to runtime server {options.server}: {host.lost}")
    return end_as(status)


def _do_nothing(_waits: bool) -> None:
    """Leave a terminal that is not the program's as it is."""


def _host_class(rules: Rules | None, carried: bool) -> type[RemoteHost]:
    if rules is None or not rules.has_local or not carried:
        return RemoteHost
    from ptserver.rules.host import host_by

    return host_by(rules)


def mixed_environment(rules: Rules, of_server: tuple[bytes, ...] | None) -> tuple[bytes, ...] | None:
    """Return the program's environment: the server's, with the names that *rules* say are local as they are here."""
    if of_server is None:
        return None
    entries = {name: entry for entry in of_server if (name := entry.partition(b"=")[0])}
    names = {*entries, *os.environb}
    for name in names:
        if rules.env(os.fsdecode(name)).side == "local":
            entries.pop(name, None)
            if name in os.environb:
                entries[name] = name + b"=" + os.environb[name]
    return tuple(entries.values())


def read_token(path: str | None) -> str:
    """Return the token in the file *path*, "" without one.

    Raises:
        TokenError: the file cannot be read.
    """
    if path is None:
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"cannot read the token file {path}: {error}") from error
