"""`ptserver run`, behind its command line: chooses how a program is run.

A program that nobody serves or traces is only executed, so nothing more than that needs is imported here.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptserver.errors import RulesError
from ptserver.machine import native_arch
from ptserver.program import find_program
from ptserver.remote_memory.options import Wanted
from ptserver.stub.marker import find_stub_marker
from ptserver.tracelog.options import TraceOptions
from stepping.dispositions import restore_ignored_signals

if TYPE_CHECKING:
    from ptserver.rules.rules import Rules


@dataclass(frozen=True)
class RunOptions:
    """What the command line says.

    program: its name or path; server: a name, ``module:Class`` or an address; argv0: what argv[0] is to be, if not
    *program*; keys: the folder of keys for TLS; stub: the program's own stub started us, so failures are to be its
    panics; trace: log the calls; emulated: on an emulated processor; seed: makes such a run repeatable. on: the
    address of the host that is to execute the program, this one if None. keepalive_seconds: how long the other side
    may be silent, 0 for ever; on_lost: ``panic`` or ``kill``, what becomes of a program whose server is lost;
    wait_seconds: how long another connection is waited for before that;
    spread: the hosts that are to execute it together with this one; place: the name of the policy by which its
    threads move; check_memory: how often to check that their memory is the same, in seconds, 0 for never;
    common_cpu: have the program use only what all their processors can do; adapt: what to change in it in memory, so
    that it fetches less; fault_log: the file for a log of what is fetched; straight: between which hosts pages go
    straight. engine: what executes it, unless it is *emulated*: ``native``, ``step``, or ``auto``, which emulates
    programs of other architectures. remote: the variables that are to be remote; remote_trace: the file for a log of
    accesses to them, ``-`` for stderr. rules: what is local though the server is at an address. sync: have each call
    made when the program makes it, and no other. time: ``host`` or ``server``, whose time of day it is told.
    """

    program: str
    arguments: tuple[str, ...] = ()
    server: str = "passthrough"
    argv0: str | None = None
    token_file: str | None = None
    keys: str | None = None
    stub: bool = False
    trace: TraceOptions | None = None
    emulated: bool = False
    seed: int | None = None
    on: str | None = None
    keepalive_seconds: float = 30.0
    on_lost: str = "panic"
    wait_seconds: int = 0
    spread: tuple[str, ...] = ()
    place: str = "idle"
    check_memory: float = 0.0
    common_cpu: bool = False
    adapt: str = "all"
    fault_log: str = ""
    straight: str = "far"
    engine: str = "native"
    remote: Wanted | None = None
    remote_trace: str | None = None
    rules: "Rules | None" = None
    sync: bool = False
    time: str = "host"

    @property
    def may_be_emulated(self) -> bool:
        """Whether a program of another architecture can be executed as is wanted."""
        return self.emulated or (self.engine == "auto" and not self.spread and self.on is None)

    @property
    def argv(self) -> list[bytes]:
        """The program's arguments."""
        return [os.fsencode(word) for word in (self.argv0 or self.program, *self.arguments)]


def run(options: RunOptions) -> int:
    """Run the program; return the exit status for this process. Dies by the signal that the program died by.

    Raises:
        PtServerError, SteppingError: it cannot be run; one line says why.
    """
    if options.rules is not None:
        _check_rules_apply(options)
    streams = _reserve_streams()
    path, header = find_program(options.program, emulated=options.may_be_emulated)
    stub = find_stub_marker(path, header)
    if options.emulated or header.arch != native_arch():
        from ptserver.net.transport import is_address

        if is_address(options.server):
            from ptserver.running.remotely import run_remotely

            return run_remotely(options, path, header, stub, streams)
        from ptserver.running.here import run_emulated

        return run_emulated(options, path, stub)
    if options.on is not None:
        from ptserver.running.elsewhere import run_elsewhere

        run_elsewhere(options, path, header, stub, streams)
    if options.spread:
        from ptserver.spread.start import start_spread

        return start_spread(options, path, header)
    if options.engine == "step":
        from ptserver.running.stepped import run_stepped

        return run_stepped(options, path)
    if options.server == "passthrough" and stub is None and options.trace is None and not options.remote:
        restore_ignored_signals()
        os.execve(path, options.argv, os.environb)
    if options.server == "passthrough" and stub is None and not options.remote:
        from ptserver.running.here import run_traced

        return run_traced(options, path)
    from ptserver.net.transport import is_address

    if is_address(options.server):
        from ptserver.running.remotely import run_remotely

        return run_remotely(options, path, header, stub, streams)
    from ptserver.running.here import run_here

    return run_here(options, path, stub)


def _check_rules_apply(options: RunOptions) -> None:
    from ptserver.net.transport import is_address

    if options.on is not None or not is_address(options.server):
        raise RulesError(
            "--local, --remote and --rules say what of a program is not the server's: they belong to --server ADDR"
        )


def _reserve_streams() -> tuple[int, ...]:
    """Return which of the standard streams this process has; keep the numbers of the others from being used.

    What is put there is closed when a program is executed, which so finds its streams as they were here.
    """
    numbers = (0, 1, 2)
    present = tuple(number for number in numbers if os.path.exists(f"/proc/self/fd/{number}"))
    for number in numbers:
        if number not in present:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number, inheritable=False)
                os.close(null)
    return present
