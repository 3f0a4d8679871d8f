"""`ptserver run --spread`, behind its command line."""

import os
from collections.abc import Callable

from goabi.binary import GoBinary
from goabi.elf_header import ElfHeader
from goabi.errors import GoVersionError, NotGoError
from ptserver.errors import LaunchError
from ptserver.hosts.endings import end_as
from ptserver.machine import native_arch, this_machine
from ptserver.messages import Program
from ptserver.net.transport import is_address
from ptserver.running.here import environment, instance, say
from ptserver.running.run import RunOptions
from ptserver.server import check_hears
from ptserver.servers import load
from ptserver.session import Session
from ptserver.spread.adaptations import parse_names
from ptserver.spread.agents import HostAddress
from ptserver.spread.deciders import ServerDecider
from ptserver.spread.links import Straight
from ptserver.spread.placement import load_placement
from ptserver.spread.run import SpreadOptions, run_spread
from ptserver.spread.server_link import ServerLink


def start_spread(options: RunOptions, path: str, header: ElfHeader) -> int:
    """Run the program over this host and `options.spread`; return the exit status for this process.

    Raises:
        LaunchError: it cannot be run so.
        PtServerError, SteppingError: as `ptserver.spread.run.run_spread`.
    """
    if native_arch() != "amd64":
        raise LaunchError("programs are spread on x86-64 only")
    if header.interpreter is not None:
        _check_is_go(path)
    return end_as(
        run_spread(
            SpreadOptions(
                path=path,
                argv=options.argv,
                env=environment(),
                hosts=[HostAddress(host, options.keys, options.token_file) for host in options.spread],
                placement=load_placement(options.place),
                keepalive_seconds=options.keepalive_seconds,
                check_seconds=options.check_memory,
                common_cpu=options.common_cpu,
                adapt=parse_names(options.adapt),
                fault_log=options.fault_log,
                server=_server(options, path),
                straight=Straight(options.straight),
            )
        )
    )


def _server(options: RunOptions, path: str) -> Callable[[int], ServerDecider | ServerLink] | None:
    """Return what makes who hears of the program's goroutines, if the user has named a server.

    Raises:
        ServerLoadError, LaunchError: there is no such server, or none that can be had.
    """
    if options.server == "passthrough":
        return None
    if is_address(options.server):
        return lambda pid: ServerLink(options.server, options.keys, options.token_file, path, options.argv)
    server_class = load(options.server)
    check_hears(server_class)

    def make(pid: int) -> ServerDecider:
        session = Session(
            id=str(pid),
            program=Program.shown(path, options.argv),
            machine=this_machine(),
            resources="host",
            log=say,
            send_signal=lambda signo: os.kill(pid, signo),
            keep_descriptor=lambda fd: fd,
        )
        return ServerDecider(instance(server_class), session)

    return make


def _check_is_go(path: str) -> None:
    """Refuse a dynamically linked program of another language: it may need of the kernel what Go does not.

    Raises:
        LaunchError: it is one.
    """
    try:
        GoBinary.open(path, prefer_table=True).close()
    except GoVersionError:  # its memory is as any other's
        return
    except NotGoError as error:
        raise LaunchError(f"{error}, so it is not spread") from error
