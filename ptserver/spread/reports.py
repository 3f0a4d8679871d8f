"""What the kernel reports of the threads of a process's hosts: it has one tracer for all of them."""

import contextlib
from collections.abc import Sequence

from ptserver.spread.host import SpreadHost
from stepping import ptrace_api
from stepping.errors import TraceeGoneError


def take_stops(hosts: Sequence[SpreadHost]) -> None:
    """Deal with every thread that has something to report, as `take_stop` does."""
    while take_stop(hosts):
        pass


def take_stop(hosts: Sequence[SpreadHost]) -> bool:
    """Deal with a thread that has something to report, if one has; return whether.

    The first host takes what none knows: its new threads and children, and what is none of anybody's business, such
    as the end of an agent or of a host that was let go.
    """
    try:
        kernel_tid, raw = ptrace_api.wait_any(block=False)
    except TraceeGoneError:
        return False
    if raw is None:
        return False
    for host in hosts:
        if host.knows(kernel_tid):
            break
    else:
        host = hosts[0]
    with contextlib.suppress(TraceeGoneError):
        host.take_stop(kernel_tid, raw)
    return True
