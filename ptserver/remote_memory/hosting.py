"""Makes variables of a launched program remote, from the command line's words to a tracer in its host's loop."""

import os
import sys

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from ptserver.hosts.host import Host
from ptserver.remote_memory.options import Wanted
from ptserver.remote_memory.stores import VariableStore
from ptserver.remote_memory.trace import TracingStore
from ptserver.remote_memory.tracer import RemoteTracer
from ptserver.remote_memory.variables import Plan, RemoteVariableError
from ptserver.remote_memory.variables import plan as make_plan
from ptserver.tracelog.errors import TraceOutputError


def plan_remote(
    path: str, wanted: Wanted | None, *, emulated: bool = False, shared: bool = True, quiet: bool = False
) -> Plan | None:
    """Return the plan for the program at *path*, and say what will be slow; None if nothing is wanted.

    emulated: how it will be executed; shared: whether other programs may have the variables; quiet: say nothing.

    Raises:
        RemoteVariableError: something that is wanted cannot be.
    """
    if not wanted:
        return None
    plan = make_plan(path, wanted, emulated=emulated, shared=shared)
    for variable, why in plan.in_place.items():
        if not quiet and (variable.name in wanted.variables or wanted.types):
            print(
                f"ptserver: note: {variable.name} stays where it is, because {why}: what else is on its page is slow",
                file=sys.stderr,
            )
    return plan


def start_remote(
    host: Host,
    path: str,
    plan: Plan,
    store: VariableStore,
    trace: str | None,
) -> None:
    """Have *host* serve the variables of *plan* from *store*; its program is traced and has run nothing yet.

    trace: the file for a log of accesses, ``-`` for standard error.

    Raises:
        PtServerError, SteppingError: it cannot be.
    """
    assert host.tracees is not None
    taken = [name for name in ("mmap", "mprotect") if host.takes(name)]
    if taken:
        raise RemoteVariableError(f"the server serves {taken[0]}, which remote variables need for themselves")
    if trace is not None:
        store = TracingStore(store, open_log(trace), open_binary(path))
    host.start_tracer(RemoteTracer(host.tracees, plan, store))


def open_binary(path: str) -> GoBinary | None:
    """Return the program at *path*; None if it is none of Go's."""
    try:
        return GoBinary.open(path)
    except GoAbiError:
        return None


def open_log(path: str, stderr: int = 2) -> int:
    """Return a descriptor for a log that ends with this process; *stderr* is that for ``-``."""
    if path == "-":
        return stderr
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise TraceOutputError(f"cannot write the log {path}: {error.strerror}") from error
