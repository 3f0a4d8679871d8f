"""`ptserver run --spread`, behind its command line."""

from goabi.binary import GoBinary
from goabi.elf_header import ElfHeader
from goabi.errors import GoVersionError, NotGoError
from ptserver.errors import LaunchError
from ptserver.hosts.endings import end_as
from ptserver.machine import native_arch
from ptserver.running.here import environment
from ptserver.running.run import RunOptions
from ptserver.spread.adaptations import parse_names
from ptserver.spread.agents import HostAddress
from ptserver.spread.placement import load_placement
from ptserver.spread.run import SpreadOptions, run_spread


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
            )
        )
    )


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
