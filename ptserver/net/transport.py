"""Addresses, and the sockets behind them: TCP, Unix sockets, and a pair inside one process.

    address = [ HOST ] ":" PORT        TCP; without HOST: every interface to listen at, this machine to connect to
            | "[" IPV6 "]" ":" PORT
            | "unix:" PATH             a Unix stream socket, which only its owner may connect to

A host that has both IPv4 and IPv6 addresses is listened at on its IPv4 one and tried at all of them in turn.
TLS is `ptserver.net.tls`; here is who needs it: `is_private`. Addresses come from users; what is wrong with one is
told in a line. Functions here block; they may be called from any thread.
"""

import errno
import ipaddress
import os
import socket
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptserver.errors import AddressError, ConnectError

if TYPE_CHECKING:
    from ptserver.net.tls_stream import TlsStream

#: How much one read of a connection takes, and so the most of plaintext that it brings under TLS.
RECEIVE_BYTES = 256 << 10

_FORMS = "write HOST:PORT, [IPV6]:PORT, :PORT or unix:PATH"
_MAX_UNIX_PATH_BYTES = 107  # <linux/un.h>: UNIX_PATH_MAX is 108, with the NUL
_BACKLOG = 128
#: How long a peer's machine may answer nothing.
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """host: a name or a number, without brackets, or empty; port: 0 to 65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """path: of the socket's file."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Return the address that `text` writes; the grammar is this module's.

    Raises:
        AddressError: it follows no form, or the port or the path's length is out of range.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise AddressError("no path after 'unix:'")
        if len(os.fsencode(path)) > _MAX_UNIX_PATH_BYTES or "\0" in path:
            raise AddressError(
                f"{text!r}: a Unix socket's path has at most {_MAX_UNIX_PATH_BYTES} bytes; choose a shorter one"
            )
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if not colon:
        raise AddressError(f"{text!r} is no address: {_FORMS}")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    elif ":" in host or "[" in host:
        raise AddressError(f"{text!r} is no address: an IPv6 address stands in brackets, as in [::1]:11235")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise AddressError(f"{text!r} is no address: {port!r} is no port number")
    return TcpAddress(host, int(port))


def is_address(text: str) -> bool:
    """Whether `text` is an address, so that it can be told from a server's name or `module:Class`."""
    try:
        parse_address(text)
    except AddressError:
        return False
    return True


def listen(address: str | Address) -> socket.socket:
    """Return a socket that listens at `address`; port 0 takes any free one, see :func:`local_address`.

    A Unix socket's file that nobody listens at any more is replaced.

    Raises:
        AddressError: as :func:`parse_address`.
        ConnectError: the address cannot be listened at.
    """
    where = parse_address(address) if isinstance(address, str) else address
    try:
        if isinstance(where, UnixAddress):
            return _listen_unix(where)
        return _listen_tcp(where)
    except socket.gaierror as error:
        raise ConnectError(f"cannot listen at {where}: unknown host {where.host!r}") from error  # type: ignore[union-attr]
    except OSError as error:
        hint = "; stop what listens there, or take another port" if error.errno == errno.EADDRINUSE else ""
        raise ConnectError(f"cannot listen at {where}: {os.strerror(error.errno or 0)}{hint}") from error


def close_listener(sock: socket.socket) -> None:
    """Close a socket that :func:`listen` gave, and remove its file if it is a Unix socket's."""
    path = sock.getsockname() if sock.family == socket.AF_UNIX else None
    sock.close()
    if path:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def local_address(sock: socket.socket) -> str:
    """Return the address that `sock` listens at, as text that :func:`connect` takes."""
    name = sock.getsockname()
    return str(UnixAddress(name) if sock.family == socket.AF_UNIX else TcpAddress(name[0], name[1]))


def connect(address: str | Address, timeout: float = 10.0) -> socket.socket:
    """Return a blocking socket that is connected to `address` within `timeout` seconds.

    Raises:
        AddressError: as :func:`parse_address`.
        ConnectError: nobody answers there.
    """
    where = parse_address(address) if isinstance(address, str) else address
    deadline = time.monotonic() + timeout
    try:
        if isinstance(where, UnixAddress):
            return _connect_one(socket.AF_UNIX, where.path, deadline)
        return _connect_tcp(where, deadline)
    except TimeoutError as error:
        raise ConnectError(f"{where} does not answer within {timeout:g} s; is that machine up?") from error
    except socket.gaierror as error:
        raise ConnectError(f"cannot connect to {where}: unknown host") from error
    except OSError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
            raise ConnectError(
                f"nobody listens at {where}; start a server there: ptserver serve NAME --listen {where}"
            ) from error
        raise ConnectError(f"cannot connect to {where}: {os.strerror(error.errno or 0)}") from error


def is_private(name: object) -> bool:
    """Whether only this machine's users are behind *name*, which getsockname or getpeername gave."""
    if not isinstance(name, tuple):
        return True  # a Unix socket's
    address = ipaddress.ip_address(str(name[0]).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets for a host and a server in one process."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def tune(sock: "socket.socket | TlsStream", patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """Set what a connection needs on a connected socket: no delay, and notice of a dead peer in that time.

    Source: tcp(7). The kernel asks an idle peer after half of the time, then four times more.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    idle, interval, count = max(1, int(patience_seconds / 2)), max(1, int(patience_seconds / 8)), 4
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience_seconds * 1000))


def _listen_tcp(where: TcpAddress) -> socket.socket:
    if not where.host and socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("", where.port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
            )
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # IPv6 is compiled in, but off
                raise
    found = socket.getaddrinfo(
        where.host or None, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, _, _, _, name = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return socket.create_server(name[:2], family=family, backlog=_BACKLOG)


def _listen_unix(where: UnixAddress) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(where.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(where.path):
                raise
            os.unlink(where.path)
            sock.bind(where.path)
        os.chmod(where.path, 0o600)  # before listen(), so nobody else can have connected
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _is_stale(path: str) -> bool:
    """Whether `path` is a Unix socket that nobody listens at."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog gives EAGAIN: somebody listens
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _connect_tcp(where: TcpAddress, deadline: float) -> socket.socket:
    found = socket.getaddrinfo(where.host or "localhost", where.port, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, _, _, _, name in found:
        try:
            return _connect_one(family, name, deadline)
        except OSError as error:
            failure = failure or error
    raise failure or OSError(errno.EADDRNOTAVAIL, "")


def _connect_one(family: int, name: object, deadline: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        sock.connect(name)  # type: ignore[arg-type]
        sock.settimeout(None)
        tune(sock)
    except OSError:
        sock.close()
        raise
    return sock
