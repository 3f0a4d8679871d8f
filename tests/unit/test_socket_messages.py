"""Socket messages: out of a program's memory, through a call made in this process, and back into that memory."""

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptserver.shadow.execute import Executed, execute
from stepping.errors import MemoryFaultError
from stepping.syscalls import SYSCALLS
from stepping.syscalls.marshal import MAX_TRANSFER_BYTES, BadArgumentError, Gathered, gather, scatter
from stepping.syscalls.socket_messages import (
    HEAD,
    MSGHDR,
    Message,
    passed_descriptors,
    split,
    with_descriptors,
)

BASE = 0x10000
NAME, CONTROL, DATA, VECTOR, HEADERS = BASE, BASE + 0x400, BASE + 0x800, BASE + 0x2000, BASE + 0x3000


class Memory:
    """One mapped range."""

    def __init__(self, size: int = 0x8000) -> None:
        self.data = bytearray(size)

    def _at(self, address: int, size: int) -> int:
        if not BASE <= address <= address + size <= BASE + len(self.data):
            raise MemoryFaultError(address)
        return address - BASE

    def read(self, address: int, size: int) -> bytes:
        at = self._at(address, size)
        return bytes(self.data[at : at + size])

    def read_string(self, address: int, limit: int) -> bytes:
        raise AssertionError("messages hold no strings")

    def write(self, address: int, data: bytes) -> None:
        at = self._at(address, len(data))
        self.data[at : at + len(data)] = data


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    right.setblocking(False)
    with left, right:
        yield left.fileno(), right.fileno()


def put_message(
    memory: Memory, at: int, pieces: list[tuple[int, int]], name: int = 0, control: tuple[int, int] = (0, 0)
) -> None:
    """Write a msghdr whose iovec array lies at a place of its own."""
    vector = VECTOR + (at - HEADERS)
    for index, piece in enumerate(pieces):
        memory.write(vector + 16 * index, struct.pack("=QQ", *piece))
    memory.write(at, MSGHDR.pack(name, 64 if name else 0, vector, len(pieces), *control, 0))


def run(name: str, memory: Memory, *args: int) -> Executed:
    """Make the call as a host and a shadow do it together."""
    row = SYSCALLS[name]
    a0, a1, a2, a3, a4, a5 = [*args, *[0] * (6 - len(args))]
    call = gather(row, (a0, a1, a2, a3, a4, a5), memory)
    done = execute(row, call.args, call.ins, call.outs)
    assert all(len(data) <= call.outs[index] for index, data in done[2].items())
    scatter(call, done[2], memory)
    return done


def test_a_message_arrives_in_pieces_with_its_control_data(pair: tuple[int, int]) -> None:
    sender, receiver = pair
    memory = Memory()
    memory.write(DATA, b"one two")
    memory.write(CONTROL, struct.pack("=Qiii", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS, sender))
    put_message(memory, HEADERS, [(DATA, 3), (DATA + 3, 4)], control=(CONTROL, 24))
    assert run("sendmsg", memory, sender, HEADERS, 0)[:2] == (7, 0)
    memory.data[:0x3000] = bytes(0x3000)
    put_message(memory, HEADERS, [(DATA, 2), (DATA + 16, 100)], name=NAME, control=(CONTROL, 64))
    assert run("recvmsg", memory, receiver, HEADERS, 0)[:2] == (7, 0)
    assert memory.read(DATA, 2) == b"on"
    assert memory.read(DATA + 16, 6) == b"e two\0"
    header = MSGHDR.unpack(memory.read(HEADERS, MSGHDR.size))
    assert (header[1], header[5]) == (0, 24)  # a socketpair has no name; how much control data came
    size, level, kind, fd = struct.unpack("=Qiii", memory.read(CONTROL, 20))
    assert (size, level, kind) == (20, socket.SOL_SOCKET, socket.SCM_RIGHTS)
    assert os.fstat(fd).st_ino == os.fstat(sender).st_ino
    os.close(fd)


def test_many_messages_in_one_call(pair: tuple[int, int]) -> None:
    sender, receiver = pair
    memory = Memory()
    for index, text in enumerate((b"a", b"", b"a longer one")):
        memory.write(DATA + 64 * index, text)
        put_message(memory, HEADERS + 64 * index, [(DATA + 64 * index, len(text))])
    assert run("sendmmsg", memory, sender, HEADERS, 3, 0)[:2] == (3, 0)
    lengths = [struct.unpack("=I", memory.read(HEADERS + 64 * index + 56, 4))[0] for index in range(3)]
    assert lengths == [1, 0, 12]
    memory.data[:] = bytes(len(memory.data))
    for index in range(5):
        put_message(memory, HEADERS + 64 * index, [(DATA + 64 * index, 8)])
    assert run("recvmmsg", memory, receiver, HEADERS, 5, socket.MSG_TRUNC, 0)[:2] == (3, 0)
    assert memory.read(DATA, 2) == b"a\0"
    assert memory.read(DATA + 128, 9) == b"a longer\0"
    assert struct.unpack("=I4xI", memory.read(HEADERS + 128 + 48, 12)) == (socket.MSG_TRUNC, 12)
    assert run("recvmmsg", memory, receiver, HEADERS, 5, 0, 0)[:2] == (0, errno.EAGAIN)


def test_an_array_that_is_too_large_is_sent_in_part() -> None:
    memory = Memory()
    for index in range(4):
        put_message(memory, HEADERS + 64 * index, [(DATA, MAX_TRANSFER_BYTES // 2)])
    call = gather(SYSCALLS["recvmmsg"], (3, HEADERS, 4, 0, 0, 0), memory)
    assert len(split(call.ins[1], offers=True)) == 2  # the second has a little less room
    assert call.outs[1] <= MAX_TRANSFER_BYTES


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (MSGHDR.pack(NAME, 1 << 31, 0, 0, 0, 0, 0), errno.EINVAL),
        (MSGHDR.pack(0, 0, VECTOR, 1025, 0, 0, 0), errno.EMSGSIZE),
        (MSGHDR.pack(0, 0, 0, 0, CONTROL, 1 << 40, 0), errno.ENOBUFS),
        (MSGHDR.pack(0, 0, 0x666000, 1, 0, 0, 0), errno.EFAULT),
        (MSGHDR.pack(0, 0, 0, 0, 0x666000, 24, 0), errno.EFAULT),
    ],
)
def test_a_message_that_no_kernel_takes(header: bytes, expected: int) -> None:
    memory = Memory()
    memory.write(HEADERS, header)
    with pytest.raises(BadArgumentError) as caught:
        gather(SYSCALLS["sendmsg"], (3, HEADERS, 0, 0, 0, 0), memory)
    assert caught.value.errno == expected


def test_the_descriptors_that_are_passed_on() -> None:
    def control(*parts: tuple[int, int, bytes]) -> bytes:
        made = b""
        for level, kind, data in parts:
            made += struct.pack("=Qii", 16 + len(data), level, kind) + data.ljust(len(data) + 7 & ~7, b"\0")
        return made

    rights = control((1, 2, bytes(12)), (1, 1, struct.pack("=3I", 7, 8, 9)), (1, 1, struct.pack("=I", 10)))
    message = Message(0, len(rights), 0, control=rights)
    assert list(passed_descriptors(message.pack() * 2)) == [7, 8, 9, 10] * 2
    others = with_descriptors(message.pack() * 2, {7: 1, 8: 2, 9: 3, 10: 1 << 31})
    assert list(passed_descriptors(others)) == [1, 2, 3, 1 << 31] * 2
    assert with_descriptors(others, {1: 7, 2: 8, 3: 9, 1 << 31: 10}) == message.pack() * 2
    endless = Message(0, 16, 0, control=struct.pack("=Qii", 0, 1, 1))
    assert list(passed_descriptors(endless.pack())) == []


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_run_or_none(data: bytes, offers: bool) -> None:
    try:
        messages = split(data, offers=offers)
    except ValueError:
        return
    assert b"".join(message.pack() for message in messages) == data


numbers = st.integers(0, 40) | st.integers(0, 2**32 - 1)


@given(
    name=st.sampled_from(["sendmsg", "recvmsg", "sendmmsg", "recvmmsg"]),
    heads=st.lists(st.tuples(*[numbers] * 6), max_size=4),
    rest=st.binary(max_size=100),
    back=st.integers(0, 400),
)
def test_no_run_makes_the_shadow_do_more_than_fail(
    name: str, heads: list[tuple[int, ...]], rest: bytes, back: int
) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.setblocking(False)
        sent = b"".join(HEAD.pack(*head) for head in heads) + rest
        registers = (left.fileno(), 8, 3, socket.MSG_DONTWAIT, 0, 0)
        value, failure, outs = execute(SYSCALLS[name], registers, {1: sent}, {1: back})
        assert failure or value >= 0
        assert all(len(data) <= back for data in outs.values())


def test_an_answer_without_sense_changes_nothing() -> None:
    memory = Memory()
    put_message(memory, HEADERS, [(DATA, 8)], name=NAME)
    call: Gathered = gather(SYSCALLS["recvmsg"], (3, HEADERS, 0, 0, 0, 0), memory)
    before = bytes(memory.data)
    scatter(call, {1: b"no message at all"}, memory)
    assert memory.data == before
    longer = Message(64, 0, 100, name=bytes(64), data=b"x" * 100)
    scatter(call, {1: longer.pack()}, memory)
    assert memory.read(DATA, 9) == bytes(9)  # cut to what was offered, it is no message any more
