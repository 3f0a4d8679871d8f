"""Runs a program with the resources of this machine: served by this process, traced, or emulated."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ptserver.errors import ServerMistakeError
from ptserver.hosts.endings import end_as
from ptserver.hosts.host import Host
from ptserver.hosts.policy import filter_rules, hypercall_rules, serves_time, thread_rules
from ptserver.hosts.signals import HostSignals
from ptserver.machine import native_arch, this_machine, version
from ptserver.messages import Program as ProgramFacts
from ptserver.running.run import RunOptions
from ptserver.server import RuntimeServer
from ptserver.servers import load
from ptserver.session import Session
from ptserver.stub.marker import StubInfo
from stepping.launch import Program, launch
from stepping.seccomp import assemble

if TYPE_CHECKING:
    from ptserver.emulated.trace import EmulatedTrace


def run_here(options: RunOptions, path: str, stub: StubInfo | None) -> int:
    """Run under a server in this process; for a program whose stub wants a host that may be `passthrough`."""
    server_class = load(options.server)
    return host_here(options, path, server_class, stub is not None, _refusal(stub, server_class))


def _refusal(stub: StubInfo | None, server_class: type[RuntimeServer]) -> str:
    if stub is None or stub.goosremote == server_class.abstraction:
        return ""
    return (
        f"remote: the program wants a server for GOOSREMOTE={stub.goosremote}, "
        f"{server_class.display_name()} is one for {server_class.abstraction}"
    )


def host_here(
    options: RunOptions, path: str, server_class: type[RuntimeServer], has_stub: bool, refusal: str
) -> int:
    """Run under *server_class*; a program that *has_stub* panics with *refusal*, if there is one."""
    from ptserver.hosts.local import LocalHost
    from ptserver.remote_memory.shared import SharedVariables
    from ptserver.remote_memory.stores import ServedStore

    interest = server_class.declared_interest()
    server = instance(server_class)
    plan = None
    if options.remote:
        from ptserver.remote_memory.hosting import plan_remote

        plan = plan_remote(path, options.remote, shared=False)
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
            traced=plan is not None,
        )
    )
    session = Session(
        id=str(launched.pid),
        program=ProgramFacts.shown(path, options.argv, stub=has_stub),
        machine=this_machine(),
        resources="host",
        log=say,
        send_signal=lambda signo: os.kill(launched.pid, signo),
        keep_descriptor=lambda fd: fd,
    )
    host = LocalHost(launched, signals, arch, server, session)
    host.stub.refusal = refusal
    host.stub.info = _info(server_class, session.id)
    with hosting(options, path, host, goroutines=server_class.goroutines):
        if plan is not None:
            from ptserver.remote_memory.hosting import start_remote

            store = ServedStore(server, session, SharedVariables(is_shared=False))
            start_remote(host, path, plan, store, options.remote_trace)
        status = host.run()
        host.serve_the_rest()
    return end_as(status)


def run_traced(options: RunOptions, path: str) -> int:
    """Run natively, with a log of every call that is asked for."""
    from ptserver.tracelog import tracing

    trace = options.trace
    assert trace is not None
    sink = trace.open(options.argv)
    try:
        status = tracing.run_traced(
            path,
            options.argv,
            environment(),
            sink,
            trace.names(),
            source=trace.source,
            stacks=trace.stacks,
            runtime=trace.runtime(),
            note=trace.note,
        )
    finally:
        sink.close()
    return end_as(status)


def _info(server_class: type[RuntimeServer], session_id: str) -> dict[str, str]:
    return {
        "name": server_class.display_name(),
        "version": version(),
        "session": session_id,
        "host": this_machine().hostname,
        "goosremote": server_class.abstraction,
    }


def run_emulated(options: RunOptions, path: str, stub: StubInfo | None, refusal: str = "") -> int:
    """Run on an emulated processor, with this machine's resources or a server's of this process.

    A program with the *stub* panics with *refusal*, if there is one: its server cannot be had.
    """
    from ptserver.emulated import host as emulated_host
    from ptserver.hosts.stub_calls import StubCalls

    name = "passthrough" if refusal else options.server
    server_class = load(name)
    server = None if name == "passthrough" else instance(server_class)
    calls = None
    if stub is not None:
        calls = StubCalls()
        calls.refusal = refusal or _refusal(stub, server_class)
        calls.info = _info(server_class, str(os.getpid()))
    remote = None
    if options.remote:
        from ptserver.emulated.remote_variables import RemoteVariables
        from ptserver.remote_memory.hosting import plan_remote

        plan = plan_remote(path, options.remote, emulated=True, shared=False)
        assert plan is not None
        remote = RemoteVariables(path, plan, options.remote_trace)
    with _emulated_trace(options, path) as sink:
        status = emulated_host.run_emulated(
            path,
            options.argv,
            environment(),
            server=server,
            seed=options.seed,
            sink=sink,
            remote=remote,
            stub=calls,
        )
    return end_as(status)


def _emulated_trace(
    options: RunOptions, path: str
) -> "contextlib.AbstractContextManager[EmulatedTrace | None]":
    if options.trace is None:
        return contextlib.nullcontext()
    from ptserver.emulated.trace import open_trace

    return open_trace(options.trace, path, options.argv, options.seed, os.getpid())


@contextlib.contextmanager
def hosting(options: RunOptions, path: str, host: Host, *, goroutines: bool) -> Iterator[None]:
    """Close *host* at the end; until then log the calls that it takes and name goroutines, where that is wanted."""
    with contextlib.ExitStack() as stack:
        stack.callback(host.close)
        if options.trace is not None or options.remote_trace is not None or goroutines:
            host.find_goroutines(path)
        if options.trace is not None:
            sink = options.trace.open(options.argv, host.pid)
            stack.callback(sink.close)
            runtime = options.trace.runtime()
            events = runtime.events | ({"block"} if runtime.waits else frozenset())
            host.start_trace(
                sink,
                options.trace.names(),
                stacks=options.trace.stacks,
                events=events,
                runtime=runtime.calls,
            )
        yield


def environment() -> list[bytes]:
    """Return this process's environment as ``NAME=VALUE``."""
    return [name + b"=" + value for name, value in os.environb.items()]


def instance(server_class: type[RuntimeServer]) -> RuntimeServer:
    """Return a new one. Raises: ServerMistakeError if that fails."""
    try:
        return server_class()
    except Exception as error:
        raise ServerMistakeError(f"{server_class.__name__} raised {type(error).__name__}: {error}") from error


def say(text: str) -> None:
    """Write a line to standard error, as a server of this process does."""
    print(f"ptserver: {text}", file=sys.stderr)
