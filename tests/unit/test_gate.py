"""The judge of what sockets may do: any arguments are judged, and none slips through."""

import errno
import socket

from hypothesis import given
from hypothesis import strategies as st

from ptserver.confinement.gate import GATED, Gate
from ptserver.confinement.net_rules import decode_address
from ptserver.confinement.options import parse_confinement
from ptserver.sessions.log import Log
from stepping.syscalls.socket_messages import Message
from tests.unit.test_net_rules import four, six, unix

REGISTERS = st.integers(0, 2**64 - 1) | st.integers(0, 200)
ADDRESSES = st.binary(max_size=140) | st.sampled_from(
    [
        four("10.0.0.1", 80),
        six("::ffff:10.0.0.1", 80),
        unix(b"/run/x"),
        four("10.0.0.1", 80, socket.AF_UNSPEC),
    ]
)


def strict() -> Gate:
    return Gate(parse_confinement(connect=["none"], bind=["none"]), Log(-1))


@given(
    name=st.sampled_from(sorted(GATED)),
    registers=st.lists(REGISTERS, min_size=6, max_size=6),
    ins=st.dictionaries(st.integers(0, 5), ADDRESSES),
)
def test_any_arguments_are_judged(name: str, registers: list[int], ins: dict[int, bytes]) -> None:
    registers[0] |= 1 << 30  # no descriptor of this process
    assert strict().judge(name, registers, ins) in {0, errno.EACCES, errno.EINVAL, errno.EBADF}


@given(ADDRESSES, st.lists(ADDRESSES.filter(lambda name: len(name) <= 128), max_size=4))
def test_no_message_with_an_address_passes_an_empty_list(address: bytes, names: list[bytes]) -> None:
    messages = [Message(len(name), 0, 1, name=name, data=b"x") for name in (*names, address[:128])]
    run = b"".join(message.pack() for message in messages)
    verdict = strict().judge("sendmmsg", (3, 1, len(messages), 0, 0, 0), {1: run})
    targets = [decode_address(message.name) for message in messages]
    reach_something = any(
        target is not None and (target.family != socket.AF_UNSPEC or target.address is not None)
        for target in targets
    )
    assert verdict == (errno.EACCES if reach_something else 0)


def test_an_address_is_as_long_as_the_call_says() -> None:
    gate = Gate(parse_confinement(connect=["unix:/run/a"]), Log(-1))
    data = unix(b"/run/a")
    assert gate.judge("connect", (3, 1, len(data), 0, 0, 0), {1: data}) == 0
    assert gate.judge("connect", (3, 1, len(data) - 1, 0, 0, 0), {1: data}) == errno.EACCES


def test_without_lists_of_addresses_sockets_are_free() -> None:
    gate = Gate(parse_confinement(read_only=True), Log(-1))
    assert gate.judge("socket", (17, 3, 0, 0, 0, 0), {}) == 0
    assert gate.judge("connect", (3, 1, 16, 0, 0, 0), {1: four("10.0.0.1", 1)}) == 0
