"""What this machine and this ptserver are."""

import os
import platform
from typing import TYPE_CHECKING

from ptserver import __version__
from ptserver.errors import LaunchError
from stepping.syscalls.model import Arch

if TYPE_CHECKING:
    from ptserver.messages import Machine

_ARCHES: dict[str, Arch] = {"x86_64": "amd64", "aarch64": "arm64"}


def native_arch() -> Arch:
    """Return this machine's architecture.

    Raises:
        LaunchError: ptserver knows none such.
    """
    machine = platform.machine()
    if machine not in _ARCHES:
        raise LaunchError(f"ptserver runs on x86-64 and arm64 machines, not on {machine}")
    return _ARCHES[machine]


def this_machine() -> "Machine":
    """Return what a server is told of this machine."""
    from ptserver.messages import Machine  # native_arch() is needed where nothing else of it is

    name = os.uname()
    return Machine(_ARCHES.get(name.machine, name.machine), name.release, name.nodename, _cpu_features())


def version() -> str:
    """Return ptserver's version, as installed."""
    return __version__


def _cpu_features() -> tuple[str, ...]:
    """Return the processor's features by the kernel's names. Source: proc(5), /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    return tuple(value.split())
    except OSError:
        pass
    return ()
