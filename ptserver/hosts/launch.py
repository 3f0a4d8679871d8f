"""Starts a program whose server is behind a connection, on either side of which the connection began."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from goabi.elf_header import ElfHeader
from ptserver.emulated.guest import Guest, guest_command, logged_as, own_environment
from ptserver.hosts.interpreter import interpreter_of_server, with_interpreter_of_server
from ptserver.hosts.policy import filter_rules, hypercall_rules, serves_time, thread_rules
from ptserver.hosts.remote import RemoteHost
from ptserver.hosts.signals import HostSignals
from ptserver.machine import native_arch
from ptserver.messages import StreamId, ToHost, Welcome
from ptserver.net.connection import Connection
from ptserver.net.keepalive import DEFAULT_SECONDS
from ptserver.remote_memory.options import Wanted
from ptserver.running.here import environment
from ptserver.tracelog.options import TraceOptions
from stepping.door import at_door, check_has_door
from stepping.launch import Direct, Program, launch
from stepping.seccomp import assemble

_Host = TypeVar("_Host", bound=RemoteHost)


@dataclass(frozen=True)
class Emulation:
    """How a program is executed by an emulator. seed, remote, remote_trace: see `ptserver.emulated.guest.Guest`.

    trace: how its calls are logged, if they are.
    """

    seed: int | None
    remote: Wanted | None
    remote_trace: str | None
    trace: TraceOptions | None

    def command(
        self,
        path: str,
        argv: list[bytes],
        env: Sequence[bytes],
        welcome: Welcome,
        carried: bool,
        linker: int | None,
    ) -> tuple[str, list[bytes], list[int]]:
        """Return what to execute, its arguments, and descriptors that it inherits, which are to be closed here.

        linker: a descriptor that has the program's dynamic linker, if that is another than this machine's.
        """
        claimed = frozenset(name for name, wanted in welcome.interest.items() if wanted != "ignore")
        stderr = os.dup(2)
        stdout = os.dup(1) if self.trace is not None and self.trace.output == "-" else None
        guest = Guest(
            *(os.path.abspath(path), tuple(argv), tuple(env), self.seed, claimed, carried, stderr),
            self.remote,
            self.remote_trace,
            logged_as(self.trace),
            stdout,
            linker,
        )
        command, arguments, fd = guest_command(guest)
        return command, arguments, [fd, stderr, *(given for given in (stdout, linker) if given is not None)]


def launch_host(
    host_class: type[_Host],
    path: str,
    header: ElfHeader,
    argv: list[bytes],
    welcome: Welcome,
    connection: Connection[ToHost],
    streams: Collection[StreamId],
    has_stub: bool,
    *,
    stoppable: bool = False,
    keepalive_seconds: float = DEFAULT_SECONDS,
    traced: bool = False,
    emulation: Emulation | None = None,
) -> _Host:
    """Start the program as *welcome* wants it; return its host, which has not yet answered anything.

    streams: those that are carried; stoppable: stop signals stop the program, though no shell of this machine
    knows it; keepalive_seconds: how long the server may be silent, 0 for ever; traced: trace its threads; emulation:
    how to execute it, if by an emulator.

    Raises:
        SteppingError: the kernel refuses.
        LaunchError: the server lacks the dynamic linker that the program needs.
    """
    arch = native_arch()
    may_be_direct = welcome.ahead and not traced and emulation is None
    direct = _direct(path, header) if may_be_direct else None
    rules = filter_rules(
        welcome.interest,
        welcome.default_interest,
        arch,
        has_pid=bool(welcome.pid),
        given_pass=direct.given_pass if direct is not None else 0,
    )
    signals = HostSignals()
    carried = welcome.resources == "server"
    env: Sequence[bytes] = welcome.environment or environment()
    bpf = assemble([*rules, *hypercall_rules(), *thread_rules(arch)], arch)
    if emulation is not None:
        check_has_door()
        linker = interpreter_of_server(path, header, connection) if carried else None
        file, argv, inherited = emulation.command(path, argv, env, welcome, carried, linker)
        env, bpf, needed = own_environment(), at_door(bpf), inherited
    elif carried:
        file, needed = with_interpreter_of_server(path, header, connection)
    else:
        file, needed = path, []
    null = os.open(os.devnull, os.O_RDWR)
    launched = launch(
        Program(
            path=file,
            argv=argv,
            env=env,
            bpf=bpf,
            stdio=(null, null, null) if carried else (0, 1, 2),
            new_session=carried and not stoppable,
            new_group=stoppable,
            without_vdso=serves_time(welcome.interest) and emulation is None,
            blocked=signals.original_mask,
            traced=traced,
            direct=direct,
        )
    )
    for fd in (null, *needed):
        os.close(fd)
    host = host_class(
        launched,
        signals,
        arch,
        welcome,
        connection,
        streams,
        has_stub=has_stub,
        keepalive_seconds=keepalive_seconds,
    )
    if emulation is not None:
        host.serve_emulator()
    host.stub.info = {
        "name": welcome.server,
        "version": welcome.software,
        "session": welcome.session,
        "host": welcome.host,
        "goosremote": welcome.abstraction,
    }
    return host


def _direct(path: str, header: ElfHeader) -> Direct | None:
    """Return how the program can make calls itself; None if it is not made for that."""
    from stepping.direct_calls import find_sites, make_pass

    try:
        sites = find_sites(path, header)
    except OSError:
        return None
    return None if sites is None else Direct(make_pass(), sites, header)
