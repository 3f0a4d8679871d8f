"""Connects to whom an address names, under TLS where that is wanted, and nowhere else without it."""

import socket
from collections.abc import Callable

from ptserver.errors import UntrustedError
from ptserver.net.connection import Stream
from ptserver.net.transport import Address, TcpAddress, connect, is_private, parse_address


def reach(
    address: str, keys_folder: str | None, keep: Callable[[int], int] = lambda fd: fd
) -> tuple[Stream, str]:
    """Return a connection to *address*, and the token in the folder of keys, or "".

    It is under TLS with the keys of *keys_folder*, see `ptserver.net.tls`; without, it is plain, and then goes to
    this machine only. *keep* may move its descriptor, as `Descriptors.keep` does.

    Raises:
        AddressError: as `ptserver.net.transport.parse_address`.
        KeysError: as `ptserver.net.tls.connecting_keys`.
        ConnectError: nobody answers there; UntrustedError if it is another machine and there are no keys.
        ConnectionLostError, ProtocolError: as `ptserver.net.tls.connect_tls`.
    """
    where = parse_address(address)
    if keys_folder is not None:
        from ptserver.net.tls import connect_tls, connecting_keys  # ssl takes its time

        keys = connecting_keys(keys_folder)
        name = where.host if isinstance(where, TcpAddress) else ""
        return connect_tls(_connect(where, keep), keys, name or "localhost"), keys.token
    sock = _connect(where, keep)
    if is_private(sock.getpeername()):
        return sock, ""
    sock.close()
    raise UntrustedError(
        f"{address} is another machine, which needs TLS: give the folder of keys that `ptserver keys` made with"
        " --keys DIR, or connect through a tunnel that ends at localhost"
    )


def _connect(where: Address, keep: Callable[[int], int]) -> socket.socket:
    return socket.socket(fileno=keep(connect(where).detach()))
