"""Connects to whom an address names, under TLS where that is wanted, and nowhere else without it."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptserver.errors import ConnectionLostError, UntrustedError
from ptserver.net.connection import Stream
from ptserver.net.transport import Address, TcpAddress, connect, is_private, parse_address

if TYPE_CHECKING:
    from ptserver.net.tls import Keys


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
    keys = None
    if keys_folder is not None:
        from ptserver.net.tls import connecting_keys  # ssl takes its time

        keys = connecting_keys(keys_folder)
    return secure(_connect(where, keep), address, keys), keys.token if keys is not None else ""


def secure(sock: socket.socket, address: str, keys: "Keys | None") -> Stream:
    """Return *sock*, which was connected to *address*, under TLS with *keys*, or as it is.

    Raises:
        UntrustedError: as `reach`; the socket is closed.
        ConnectError, ConnectionLostError, ProtocolError: as `ptserver.net.tls.connect_tls`.
    """
    if keys is not None:
        from ptserver.net.tls import connect_tls

        where = parse_address(address)
        return connect_tls(sock, keys, (where.host if isinstance(where, TcpAddress) else "") or "localhost")
    try:
        if is_private(sock.getpeername()):
            return sock
    except OSError as error:  # it was reset already
        sock.close()
        raise ConnectionLostError(f"{address} closed the connection: {error.strerror}") from error
    sock.close()
    raise UntrustedError(
        f"{address} is another machine, which needs TLS: give the folder of keys that `ptserver keys` made with"
        " --keys DIR, or connect through a tunnel that ends at localhost"
    )


def _connect(where: Address, keep: Callable[[int], int]) -> socket.socket:
    return socket.socket(fileno=keep(connect(where).detach()))
