"""`ptserver run`, behind its command line: chooses who serves a program, runs it, and ends as it ended."""

import os
import re
import sys
from dataclasses import dataclass

from ptserver.host import exit_of
from ptserver.host_signals import HostSignals, die_by
from ptserver.machine import native_arch, this_machine, version
from ptserver.messages import Program as ProgramFacts
from ptserver.policy import filter_rules, hypercall_rules, serves_time
from ptserver.program import find_program
from ptserver.servers import load
from ptserver.session import Session
from ptserver.stub.marker import StubInfo, find_stub_marker
from stepping.launch import Program, launch
from stepping.seccomp import assemble

_ADDRESS = re.compile(r"unix:.+|.*:\d+")


@dataclass(frozen=True)
class RunOptions:
    """What the command line says.

    program: its name or path; server: a name, ``module:Class`` or an address; argv0: what argv[0] is to be, if not
    *program*; stub: the program's own stub started us, so failures are to be its panics.
    """

    program: str
    arguments: tuple[str, ...] = ()
    server: str = "passthrough"
    argv0: str | None = None
    token_file: str | None = None
    stub: bool = False

    @property
    def argv(self) -> list[bytes]:
        """The program's arguments."""
        return [os.fsencode(word) for word in (self.argv0 or self.program, *self.arguments)]


def is_address(server: str) -> bool:
    """Whether *server* is where a server is, rather than its name or class."""
    return _ADDRESS.fullmatch(server) is not None


def run(options: RunOptions) -> int:
    """Run the program; return the exit status for this process. Dies by the signal that the program died by.

    Raises:
        PtServerError, SteppingError: it cannot be run; one line says why.
    """
    path, _ = find_program(options.program)
    stub = find_stub_marker(path)
    if options.server == "passthrough" and stub is None:
        os.execve(path, options.argv, os.environb)
    return _run_locally(options, path, stub)


def _run_locally(options: RunOptions, path: str, stub: StubInfo | None) -> int:
    """Run under a server in this process, or without any for a program whose stub wants a host."""
    from ptserver.local_host import LocalHost

    server_class = load(options.server)
    interest = server_class.declared_interest()
    arch = native_arch()
    signals = HostSignals()
    launched = launch(
        Program(
            path=path,
            argv=options.argv,
            env=[name + b"=" + value for name, value in os.environb.items()],
            bpf=assemble([*filter_rules(interest, "ignore", arch), *hypercall_rules()], arch),
            without_vdso=serves_time(interest),
            blocked=signals.original_mask,
        )
    )
    server = server_class()
    session = Session(
        id=str(launched.pid),
        program=ProgramFacts(path, tuple(map(os.fsdecode, options.argv)), stub=stub is not None),
        machine=this_machine(),
        resources="host",
        log=lambda text: print(f"ptserver: {text}", file=sys.stderr),
        send_signal=lambda signo: os.kill(launched.pid, signo),
        keep_descriptor=lambda fd: fd,
    )
    host = LocalHost(launched, signals, arch, server, session)
    host.stub_info = {
        "name": server_class.display_name(),
        "version": version(),
        "session": session.id,
        "host": session.machine.hostname,
        "goosremote": server_class.abstraction,
    }
    if stub is not None and stub.goosremote != server_class.abstraction:
        host.refusal = (
            f"remote: the program wants a server for GOOSREMOTE={stub.goosremote}, "
            f"{server_class.display_name()} is one for {server_class.abstraction}"
        )
    try:
        status = host.run()
        host.serve_the_rest()
    finally:
        host.close()
    return end_as(status)


def end_as(wait_status: int) -> int:
    """Return the exit status that *wait_status* holds; do not return if a signal killed the program."""
    status, signo = exit_of(wait_status)
    sys.stdout.flush()
    if status is None:
        die_by(signo)
        return 128 + signo  # not reached, unless the signal is one that cannot kill this process
    return status
