"""Rules of addresses, and what socket addresses name."""

import contextlib
import ipaddress
import re
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptserver.confinement.net_rules import NetRule, allows, decode_address, parse_rule
from ptserver.confinement.options import parse_confinement
from ptserver.errors import ConfinementError


def four(address: str, port: int, family: int = socket.AF_INET) -> bytes:
    return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(address) + bytes(8)


def six(address: str, port: int) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6, address)
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + packed + bytes(4)


def unix(path: bytes) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + path


@pytest.mark.parametrize(
    ("rule", "yes", "no"),
    [
        (
            "10.0.0.0/8:443",
            [four("10.1.2.3", 443), six("::ffff:10.9.9.9", 443)],
            [four("10.1.2.3", 80), four("11.0.0.1", 443), six("fd00::1", 443)],
        ),
        ("192.0.2.7", [four("192.0.2.7", 1), four("192.0.2.7", 65535)], [four("192.0.2.8", 1)]),
        ("192.0.2.7/24:80-90", [four("192.0.2.1", 80), four("192.0.2.1", 90)], [four("192.0.2.1", 91)]),
        ("[fd00::]/8:*", [six("fdff::1", 5)], [six("fe80::1", 5), four("10.0.0.1", 5)]),
        ("[fd00::/8]:53", [six("fdff::1", 53)], [six("fdff::1", 54)]),
        ("[::1]", [six("::1", 9), six("::", 9)], [four("127.0.0.1", 9)]),
        ("*:53", [four("8.8.8.8", 53), six("2001::1", 53)], [four("8.8.8.8", 54), unix(b"/x\0")]),
        ("127.0.0.1", [four("0.0.0.0", 7), six("::ffff:0.0.0.0", 7)], [four("127.0.0.2", 7), six("::", 7)]),
        (
            "unix:/run/db",
            [unix(b"/run/db\0"), unix(b"/run/db")],
            [unix(b"/run/db2\0"), unix(b"\0/run/db"), unix(b""), unix(b"run/db\0"), four("1.1.1.1", 1)],
        ),
        ("unix:*", [unix(b"/any\0"), unix(b"\0any")], [four("127.0.0.1", 1)]),
    ],
)
def test_rules_to_connect(rule: str, yes: list[bytes], no: list[bytes]) -> None:
    rules = [parse_rule(rule)]
    for address in yes:
        assert allows(rules, address, "connect"), decode_address(address)
        assert allows(rules, address, "send")
    for address in no:
        assert not allows(rules, address, "connect"), decode_address(address)
        assert not allows(rules, address, "send")


def test_what_a_family_that_is_not_specified_means() -> None:
    unspecified = four("10.0.0.1", 80, socket.AF_UNSPEC)
    assert allows([], unspecified, "connect")  # it disconnects
    assert not allows([], unspecified, "send")  # UDP takes it for AF_INET
    assert not allows([], unspecified, "bind")
    assert allows([], struct.pack("=H", socket.AF_UNSPEC), "send")  # too short for an address


def test_what_binding_means() -> None:
    rules = [parse_rule("127.0.0.0/8:8000-8999")]
    assert allows(rules, four("127.0.0.1", 8080), "bind")
    assert not allows(rules, four("0.0.0.0", 8080), "bind")  # all addresses, not this machine's own
    assert not allows(rules, four("127.0.0.1", 0), "bind")  # any port
    assert allows([], unix(b"/tmp/x\0"), "bind")  # a file


def test_what_is_cut_is_the_kernels_to_refuse_and_other_families_are_ours() -> None:
    assert decode_address(b"") is None
    assert decode_address(four("10.0.0.1", 80)[:15]) is None
    assert decode_address(six("fd00::1", 80)[:23]) is None
    assert not allows([parse_rule("*:*")], struct.pack("=H", socket.AF_PACKET) + bytes(18), "connect")
    assert not allows([parse_rule("*:*")], struct.pack("=H", 40) + bytes(14), "bind")  # AF_VSOCK


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no network rule"),
        ("10.0.0.0/33:1", "is no network rule"),
        ("db1.example:80", "is no network rule"),
        ("10.0.0.1:80:90", "is no network rule"),
        ("fd00::1", "is no network rule"),
        ("10.0.0.1:http", "is no port"),
        ("10.0.0.1:90-80", "is no port"),
        ("10.0.0.1:65536", "is no port"),
        ("10.0.0.1:-", "is no port"),
        ("[::ffff:10.0.0.0]/104:80", "write an IPv4 network as such"),
        ("unix:run/db", "must be absolute"),
        ("unix:", "must be absolute"),
    ],
)
def test_rules_that_are_none(text: str, said: str) -> None:
    with pytest.raises(ConfinementError, match=re.escape(said)) as caught:
        parse_rule(text)
    assert "\n" not in str(caught.value)


@given(st.ip_addresses(), st.integers(0, 65535), st.integers(0, 128))
def test_a_network_has_just_the_addresses_with_its_first_bits(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, bits: int
) -> None:
    bits = min(bits, address.max_prefixlen)
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address.is_unspecified):
        return
    if address.is_unspecified:
        return
    network = ipaddress.ip_network((address, bits), strict=False)
    text = f"[{network}]:{port}" if address.version == 6 else f"{network}:{port}"
    if getattr(network.network_address, "ipv4_mapped", None) is not None:
        return
    data = four(str(address), port) if address.version == 4 else six(str(address), port)
    assert allows([parse_rule(text)], data, "connect")
    if bits:
        other = type(address)(int(address) ^ 1 << (address.max_prefixlen - bits))
        if not other.is_unspecified and getattr(other, "ipv4_mapped", None) is None:
            data = four(str(other), port) if other.version == 4 else six(str(other), port)
            assert not allows([parse_rule(text)], data, "connect")
    if port < 65535:
        data = four(str(address), port + 1) if address.version == 4 else six(str(address), port + 1)
        assert not allows([parse_rule(text)], data, "connect")


@given(st.binary(max_size=140))
def test_no_address_passes_an_empty_list_but_what_reaches_nothing(data: bytes) -> None:
    target = decode_address(data)
    reaches_nothing = target is None or (target.family == socket.AF_UNSPEC and target.address is None)
    assert allows([], data, "send") == reaches_nothing
    assert not allows([], data, "send") or not allows([NetRule(path="/x")], four("10.0.0.1", 1), "send")


@given(st.text(max_size=30))
def test_any_text_is_a_rule_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(ConfinementError):
        parse_rule(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"executables": ["ls"]}, "must be absolute"),
        ({"user": "nobody-there"}, "there is no user"),
        ({"user": "4123456"}, "give a group too"),
        ({"user": "0:nobody-there"}, "there is no group"),
        ({"limits": ["nofiles=3"]}, "is no limit"),
        ({"limits": ["as=1t"]}, "is no limit"),
        ({"limits": ["cpu"]}, "is no limit"),
        ({"limits": ["cpu=1,"]}, "is no limit"),
    ],
)
def test_options_that_are_wrong(options: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ConfinementError, match=said):
        parse_confinement(**options)  # type: ignore[arg-type]


def test_options_that_are_right() -> None:
    made = parse_confinement(connect=["none"], limits=["as=2g,cpu=5", "nofile=99"], user="0:7")
    assert made.connect == ()
    assert made.exec == ()  # what is executed is not judged by lists of addresses
    assert made.bind is None
    assert made.limits == {"as": 2 << 30, "cpu": 5, "nofile": 99}
    assert made.user is not None
    assert (made.user.uid, made.user.gid, made.user.groups) == (0, 7, (7,))
    assert parse_confinement(connect=["*:53"], executables=["/bin/ls"]).exec == ("/bin/ls",)
    assert not parse_confinement().is_strict
