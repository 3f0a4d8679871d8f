"""Starts a program whose server is behind a connection, on either side of which the connection began."""

import os
from collections.abc import Collection
from typing import TypeVar

from goabi.elf_header import ElfHeader
from ptserver.hosts.interpreter import with_interpreter_of_server
from ptserver.hosts.policy import filter_rules, hypercall_rules, serves_time, thread_rules
from ptserver.hosts.remote import RemoteHost
from ptserver.hosts.signals import HostSignals
from ptserver.machine import native_arch
from ptserver.messages import StreamId, ToHost, Welcome
from ptserver.net.connection import Connection
from ptserver.net.keepalive import DEFAULT_SECONDS
from ptserver.running.here import environment
from stepping.launch import Program, launch
from stepping.seccomp import assemble

_Host = TypeVar("_Host", bound=RemoteHost)


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
) -> _Host:
    """Start the program as *welcome* wants it; return its host, which has not yet answered anything.

    streams: those that are carried; stoppable: stop signals stop the program, though no shell of this machine
    knows it; keepalive_seconds: how long the server may be silent, 0 for ever; traced: trace its threads.

    Raises:
        SteppingError: the kernel refuses.
        LaunchError: the server lacks the dynamic linker that the program needs.
    """
    arch = native_arch()
    rules = filter_rules(welcome.interest, welcome.default_interest, arch, has_pid=bool(welcome.pid))
    signals = HostSignals()
    carried = welcome.resources == "server"
    file, needed = with_interpreter_of_server(path, header, connection) if carried else (path, [])
    null = os.open(os.devnull, os.O_RDWR)
    launched = launch(
        Program(
            path=file,
            argv=argv,
            env=welcome.environment or environment(),
            bpf=assemble([*rules, *hypercall_rules(), *thread_rules(arch)], arch),
            stdio=(null, null, null) if carried else (0, 1, 2),
            new_session=carried and not stoppable,
            new_group=stoppable,
            without_vdso=serves_time(welcome.interest),
            blocked=signals.original_mask,
            traced=traced,
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
    host.stub.info = {
        "name": welcome.server,
        "version": welcome.software,
        "session": welcome.session,
        "host": welcome.host,
        "goosremote": welcome.abstraction,
    }
    return host
