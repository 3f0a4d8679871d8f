"""Which addresses the sockets of a session may connect or bind to. Pure.

    rule    = network [":" ports] | "*" ":" ports | "unix:" (path | "*")
    network = ADDRESS ["/" BITS]          IPv6 ones in brackets: "[fd00::]/8:443" or "[fd00::/8]:443"
    ports   = PORT ["-" PORT] | "*"       default: all

A rule of IPv4 also holds for the same address mapped into IPv6, because that is the same address. To connect to
0.0.0.0 or :: is to connect to this machine, so it is judged as 127.0.0.1 or ::1. Names are not resolved: what they
mean changes, and a rule must not.

Not trusted: the address of a call, any bytes.

Source: ip(7), ipv6(7), unix(7); net/ipv4/udp.c (udp_sendmsg) and af_inet.c (inet_bind), where AF_UNSPEC stands for
AF_INET.
"""

import ipaddress
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ptserver.errors import ConfinementError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Purpose = Literal["connect", "send", "bind"]
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_IN = struct.Struct("!2xH4s")
_IN6 = struct.Struct("!2xH4x16s")
_FAMILY = struct.Struct("=H")
_FORM = re.compile(r"(?:\[(?P<six>[^\]]+)\](?P<bits>/\d+)?|(?P<four>[^:\[\]]+))(?::(?P<ports>[^:]+))?")
_ALL_PORTS = (0, 65535)


@dataclass(frozen=True)
class NetRule:
    """One rule. network: None for any; ports: first and last; path: of a Unix socket, "*" for any, else None."""

    network: IPNetwork | None = None
    ports: tuple[int, int] = _ALL_PORTS
    path: str | None = None


@dataclass(frozen=True)
class Target:
    """What an address names. family: AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC or another; text: for people."""

    family: int
    address: IPAddress | None = None
    port: int = 0
    path: str | None = None

    @property
    def text(self) -> str:
        """The address for people."""
        if self.path is not None:
            return f"unix:{self.path}"
        if self.address is None:
            return f"address family {self.family}"
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


def parse_rule(text: str) -> NetRule:
    """Return the rule that *text* writes; the grammar is this module's.

    Raises:
        ConfinementError: it writes none.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path != "*" and not path.startswith("/"):
            raise ConfinementError(f"{text!r}: a Unix socket's path must be absolute, or '*'")
        return NetRule(path=path)
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfinementError(
            f"{text!r} is no network rule: write NETWORK:PORT as in 10.0.0.0/8:443 or [fd00::]/8:80-90,"
            " *:PORT, or unix:PATH"
        )
    network = _parse_network(text, match["four"] or match["six"] + (match["bits"] or ""))
    return NetRule(network, _parse_ports(text, match["ports"]))


def decode_address(data: bytes) -> Target | None:
    """Return what a socket address (struct sockaddr, as many bytes as the call says) names; None if it is cut."""
    if len(data) < _FAMILY.size:
        return None
    family = _FAMILY.unpack_from(data)[0]
    if family in (socket.AF_INET, socket.AF_UNSPEC):
        if len(data) < 16:  # sizeof(struct sockaddr_in): less is EINVAL
            return Target(family) if family == socket.AF_UNSPEC else None
        port, packed = _IN.unpack_from(data)
        return Target(family, ipaddress.IPv4Address(packed), port)
    if family == socket.AF_INET6:
        if len(data) < 24:  # SIN6_LEN_RFC2133: less is EINVAL
            return None
        port, packed = _IN6.unpack_from(data)
        six = ipaddress.IPv6Address(packed)
        return Target(family, six.ipv4_mapped or six, port)
    if family == socket.AF_UNIX:
        name = data[_FAMILY.size :]
        if name.startswith(b"\0"):
            return Target(family, path="@" + name[1:].decode("utf-8", "backslashreplace"))
        return Target(family, path=name.partition(b"\0")[0].decode("utf-8", "surrogateescape"))
    return Target(family)


def allows(rules: Iterable[NetRule], data: bytes, purpose: Purpose) -> bool:
    """Whether *rules* allow the socket address *data* for that purpose.

    An address that is cut is allowed: the kernel refuses it. So is what only disconnects, and to bind a Unix socket,
    which is a file.
    """
    target = decode_address(data)
    if target is None:
        return True
    if target.family == socket.AF_UNSPEC and (purpose == "connect" or target.address is None):
        return True
    if target.path is not None:
        return purpose == "bind" or any(rule.path in ("*", target.path) for rule in rules)
    address = target.address
    if address is None:
        return False
    if purpose != "bind" and address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return any(_covers(rule, address, target.port) for rule in rules)


def _covers(rule: NetRule, address: IPAddress, port: int) -> bool:
    if rule.path is not None or not rule.ports[0] <= port <= rule.ports[1]:
        return False
    return rule.network is None or (address.version == rule.network.version and address in rule.network)


def _parse_network(text: str, network: str) -> IPNetwork | None:
    if network == "*":
        return None
    try:
        parsed = ipaddress.ip_network(network, strict=False)
    except ValueError as error:
        raise ConfinementError(f"{text!r} is no network rule: {error}") from error
    if isinstance(parsed, ipaddress.IPv6Network) and parsed.network_address.ipv4_mapped is not None:
        raise ConfinementError(f"{text!r}: write an IPv4 network as such, it holds for mapped addresses too")
    return parsed


def _parse_ports(text: str, ports: str | None) -> tuple[int, int]:
    if ports in (None, "*"):
        return _ALL_PORTS
    first, dash, last = str(ports).partition("-")
    numbers = [
        int(word) if word.isascii() and word.isdigit() else -1 for word in (first, last if dash else first)
    ]
    if not 0 <= numbers[0] <= numbers[1] <= 65535:
        raise ConfinementError(f"{text!r}: {ports!r} is no port or range of ports")
    return numbers[0], numbers[1]
