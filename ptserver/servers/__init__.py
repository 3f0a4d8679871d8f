"""The servers that come with ptserver, by name, and how any other is loaded."""

import importlib
import os
import re
import sys

from ptserver.errors import ServerLoadError
from ptserver.server import RuntimeServer

#: Where each server that comes with ptserver is; imported when asked for.
BUILT_IN: dict[str, str] = {
    "passthrough": "ptserver.servers.passthrough:PassThrough",
    "tracelogger": "ptserver.servers.tracelogger:TraceLogger",
    "fake_hosts": "ptserver.servers.fake_hosts:FakeHosts",
    "fault_injection": "ptserver.servers.fault_injection:FaultInjection",
    "read_only": "ptserver.servers.read_only:ReadOnly",
    "fixed_clock": "ptserver.servers.fixed_clock:FixedClock",
}

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load(spec: str) -> type[RuntimeServer]:
    """Return the class of the server *spec*: a name from `BUILT_IN`, or ``module:Class``.

    The module is imported as `python -m` would find it, in the current folder first; what it does when imported is
    its own affair.

    Raises:
        ServerLoadError: there is no such server, its module cannot be imported, or it is not a `RuntimeServer`.
    """
    target = BUILT_IN.get(spec, spec)
    if not _SPEC.fullmatch(target):
        names = ", ".join(BUILT_IN)
        raise ServerLoadError(f"no server {spec!r}: expected one of {names}, or module:Class")
    module_name, _, class_name = target.partition(":")
    if spec not in BUILT_IN and (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ServerLoadError(
            f"no server {spec!r}: there is no module {error.name!r} here or on Python's path"
        ) from error
    except Exception as error:
        raise ServerLoadError(
            f"no server {spec!r}: importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    server = getattr(module, class_name, None)
    if server is None:
        raise ServerLoadError(f"no server {spec!r}: module {module_name!r} has no {class_name!r}")
    if not (isinstance(server, type) and issubclass(server, RuntimeServer)):
        raise ServerLoadError(f"{spec!r} is not a subclass of ptserver.server.RuntimeServer")
    server.declared_interest()
    return server
