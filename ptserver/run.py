"""`ptserver run`, behind its command line: chooses who serves a program, runs it, and ends as it ended."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from goabi.elf_header import ElfHeader
from ptserver.errors import (
    ConnectError,
    ConnectionLostError,
    LaunchError,
    ProtocolError,
    RefusedError,
    ServerMistakeError,
    TokenError,
)
from ptserver.host import Host, exit_of
from ptserver.host_signals import HostSignals, die_by
from ptserver.machine import native_arch, this_machine, version
from ptserver.messages import CODECS, PROTOCOL_VERSION, Hello, StreamId
from ptserver.messages import Program as ProgramFacts
from ptserver.policy import filter_rules, hypercall_rules, serves_time, thread_rules
from ptserver.program import find_program
from ptserver.server import RuntimeServer
from ptserver.servers import load
from ptserver.session import Session
from ptserver.stub.hypercalls import DEFAULT_GOOSREMOTE
from ptserver.stub.marker import StubInfo, find_stub_marker
from ptserver.trace_options import TraceOptions
from ptserver.transport import is_address
from stepping.launch import Program, launch, restore_ignored_signals
from stepping.seccomp import assemble


@dataclass(frozen=True)
class RunOptions:
    """What the command line says.

    program: its name or path; server: a name, ``module:Class`` or an address; argv0: what argv[0] is to be, if not
    *program*; stub: the program's own stub started us, so failures are to be its panics; trace: log the calls;
    emulated: on an emulated processor; seed: makes such a run repeatable.
    """

    program: str
    arguments: tuple[str, ...] = ()
    server: str = "passthrough"
    argv0: str | None = None
    token_file: str | None = None
    stub: bool = False
    trace: TraceOptions | None = None
    emulated: bool = False
    seed: int | None = None

    @property
    def argv(self) -> list[bytes]:
        """The program's arguments."""
        return [os.fsencode(word) for word in (self.argv0 or self.program, *self.arguments)]


def run(options: RunOptions) -> int:
    """Run the program; return the exit status for this process. Dies by the signal that the program died by.

    Raises:
        PtServerError, SteppingError: it cannot be run; one line says why.
    """
    streams = _reserve_streams()
    path, header = find_program(options.program, emulated=options.emulated)
    if options.emulated:
        return _run_emulated(options, path)
    stub = find_stub_marker(path, header)
    if is_address(options.server):
        return _run_remotely(options, path, header, stub, streams)
    if options.server == "passthrough" and stub is None:
        if options.trace is not None:
            return _run_traced(options, options.trace, path)
        restore_ignored_signals()
        os.execve(path, options.argv, os.environb)
    return _run_locally(options, path, stub)


def _run_locally(options: RunOptions, path: str, stub: StubInfo | None) -> int:
    """Run under a server in this process; for a program whose stub wants a host that may be `passthrough`."""
    server_class = load(options.server)
    refusal = ""
    if stub is not None and stub.goosremote != server_class.abstraction:
        refusal = (
            f"remote: the program wants a server for GOOSREMOTE={stub.goosremote}, "
            f"{server_class.display_name()} is one for {server_class.abstraction}"
        )
    return _host_locally(options, path, server_class, stub is not None, refusal)


def _host_locally(
    options: RunOptions, path: str, server_class: type[RuntimeServer], has_stub: bool, refusal: str
) -> int:
    from ptserver.local_host import LocalHost

    interest = server_class.declared_interest()
    server = _instance(server_class)
    arch = native_arch()
    rules = [*filter_rules(interest, "ignore", arch), *hypercall_rules()]
    if server_class.thread_event is not RuntimeServer.thread_event:
        rules += thread_rules(arch)
    signals = HostSignals()
    launched = launch(
        Program(
            path=path,
            argv=options.argv,
            env=environment(),
            bpf=assemble(rules, arch),
            without_vdso=serves_time(interest),
            blocked=signals.original_mask,
        )
    )
    session = Session(
        id=str(launched.pid),
        program=ProgramFacts.shown(path, options.argv, stub=has_stub),
        machine=this_machine(),
        resources="host",
        log=_log,
        send_signal=lambda signo: os.kill(launched.pid, signo),
        keep_descriptor=lambda fd: fd,
    )
    host = LocalHost(launched, signals, arch, server, session)
    host.stub.refusal = refusal
    host.stub.info = {
        "name": server_class.display_name(),
        "version": version(),
        "session": session.id,
        "host": session.machine.hostname,
        "goosremote": server_class.abstraction,
    }
    with _hosting(options, path, host, goroutines=server_class.goroutines):
        status = host.run()
        host.serve_the_rest()
    return end_as(status)


def _run_remotely(
    options: RunOptions, path: str, header: ElfHeader, stub: StubInfo | None, streams: tuple[StreamId, ...]
) -> int:
    """Run under the server at an address."""
    from ptserver.connection import client_handshake
    from ptserver.remote_host import RemoteHost
    from ptserver.terminal import RawTerminal, user_terminal
    from ptserver.transport import connect

    if header.interpreter is not None:
        raise LaunchError(
            f"{path} is dynamically linked: with the files of a server only static programs run so far; "
            "build Go programs with CGO_ENABLED=0"
        )
    terminal = user_terminal()
    hello = Hello(
        versions=(PROTOCOL_VERSION,),
        codecs=CODECS,
        software=f"ptserver {version()}",
        machine=this_machine(),
        program=ProgramFacts.shown(
            path,
            options.argv,
            abstraction=stub.goosremote if stub else DEFAULT_GOOSREMOTE,
            stub=stub is not None,
        ),
        token=read_token(options.token_file),
        streams=streams,
        terminal=terminal,
    )
    try:
        welcome, connection = client_handshake(connect(options.server), hello)
    except (ConnectError, ConnectionLostError, ProtocolError, RefusedError) as error:
        if options.stub:
            return _host_locally(options, path, load("passthrough"), True, f"remote: {error}")
        raise
    arch = native_arch()
    rules = filter_rules(welcome.interest, welcome.default_interest, arch)
    signals = HostSignals()
    carried = welcome.resources == "server"
    null = os.open(os.devnull, os.O_RDWR)
    launched = launch(
        Program(
            path=path,
            argv=options.argv,
            env=welcome.environment or environment(),
            bpf=assemble([*rules, *hypercall_rules(), *thread_rules(arch)], arch),
            stdio=(null, null, null) if carried else (0, 1, 2),
            new_session=carried,
            without_vdso=serves_time(welcome.interest),
            blocked=signals.original_mask,
        )
    )
    os.close(null)
    host = RemoteHost(
        launched, signals, arch, welcome, connection, streams if carried else (), has_stub=stub is not None
    )
    host.stub.info = {
        "name": welcome.server,
        "version": welcome.software,
        "session": welcome.session,
        "host": welcome.host,
        "goosremote": welcome.abstraction,
    }
    raw = RawTerminal() if terminal is not None and carried else contextlib.nullcontext()
    with _hosting(options, path, host, goroutines=welcome.goroutines), raw:
        status = host.run()
    if host.lost is not None and exit_of(status)[1] == signal.SIGKILL:
        raise ConnectionLostError(f"lost connection to runtime server {options.server}: {host.lost}")
    return end_as(status)


def _run_traced(options: RunOptions, trace: TraceOptions, path: str) -> int:
    """Run natively, with a log of every call that is asked for."""
    from ptserver.tracing import run_traced

    sink = trace.open(options.argv)
    try:
        status = run_traced(
            path,
            options.argv,
            environment(),
            sink,
            trace.names(),
            source=trace.source,
            stacks=trace.stacks,
            note=trace.note,
        )
    finally:
        sink.close()
    return end_as(status)


def _run_emulated(options: RunOptions, path: str) -> int:
    """Run on an emulated processor, with this machine's resources or a server's of this process."""
    from ptserver.emulated_host import run_emulated

    if is_address(options.server):
        raise LaunchError(
            "an emulated program cannot have a server at an address yet; name a server of this process"
        )
    if options.trace is not None:
        raise LaunchError("an emulated program cannot be traced yet")
    server_class = load(options.server)
    server = None if options.server == "passthrough" else _instance(server_class)
    return end_as(run_emulated(path, options.argv, environment(), server=server, seed=options.seed))


@contextlib.contextmanager
def _hosting(options: RunOptions, path: str, host: Host, *, goroutines: bool) -> Iterator[None]:
    """Close *host* at the end; until then log the calls that it takes and name goroutines, where that is wanted."""
    with contextlib.ExitStack() as stack:
        stack.callback(host.close)
        if options.trace is not None:
            sink = options.trace.open(options.argv, host.pid)
            stack.callback(sink.close)
            host.start_trace(sink, options.trace.names())
        if options.trace is not None or goroutines:
            host.find_goroutines(path)
        yield


def _instance(server_class: type[RuntimeServer]) -> RuntimeServer:
    try:
        return server_class()
    except Exception as error:
        raise ServerMistakeError(f"{server_class.__name__} raised {type(error).__name__}: {error}") from error


def environment() -> list[bytes]:
    """Return this process's environment as ``NAME=VALUE``."""
    return [name + b"=" + value for name, value in os.environb.items()]


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


def end_as(wait_status: int) -> int:
    """Return the exit status that *wait_status* holds; do not return if a signal killed the program."""
    status, signo = exit_of(wait_status)
    if status is None:
        die_by(signo)
        return 128 + signo  # not reached, unless the signal is one that cannot kill this process
    return status


def _reserve_streams() -> tuple[StreamId, ...]:
    """Return which of the standard streams this process has; keep the numbers of the others from being used.

    What is put there is closed when a program is executed, which so finds its streams as they were here.
    """
    numbers: tuple[StreamId, ...] = (0, 1, 2)
    present = tuple(number for number in numbers if os.path.exists(f"/proc/self/fd/{number}"))
    for number in numbers:
        if number not in present:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number, inheritable=False)
                os.close(null)
    return present


def _log(text: str) -> None:
    print(f"ptserver: {text}", file=sys.stderr)
