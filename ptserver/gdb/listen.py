"""Waits for gdb at an address, and lets it debug a program."""

import contextlib
import sys

from ptserver.debugger.target import Target
from ptserver.errors import AddressError
from ptserver.gdb.server import GdbServer
from ptserver.net.transport import (
    TcpAddress,
    close_listener,
    is_private,
    listen,
    local_address,
    parse_address,
)


def serve_gdb(address: str, target: Target, *, attached: bool) -> None:
    """Wait for one gdb at *address* (HOST:PORT or unix:PATH), serve it until it leaves.

    A line on standard error says where it listens. A program that was launched is ended if nobody comes.

    Raises:
        AddressError: it is no address, or not one that only this machine can reach: whoever connects controls the
            program, and gdb's protocol knows no password.
        OSError: the address cannot be listened at.
    """
    where = parse_address(address)
    done = False
    try:
        listener = listen(where)
        try:
            if isinstance(where, TcpAddress) and not is_private(listener.getsockname()):
                raise AddressError(f"gdb can be served on this machine only, not at {address}; use localhost")
            shown = local_address(listener)
            command = f"target remote {shown.removeprefix('unix:')}"
            print(f"ptserver: waiting for gdb at {shown} (in gdb: {command})", file=sys.stderr, flush=True)
            connection, _ = listener.accept()
        finally:
            close_listener(listener)
        with connection:
            done = True
            GdbServer(connection, target, attached=attached).serve()
    finally:
        if not done:
            with contextlib.suppress(Exception):
                target.detach() if attached else target.kill()
