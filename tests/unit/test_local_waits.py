"""Calls that wait for descriptors of two machines: whatever is split comes together again."""

import select
import struct

from hypothesis import given
from hypothesis import strategies as st

from ptserver.rules.waits import merge, split, without_waiting
from stepping.syscalls import SYSCALLS

LOCAL = {2, 5, 9}
POLLFD = struct.Struct("=ihh")
entries = st.lists(
    st.tuples(
        st.integers(-2, 12),
        st.sampled_from([0, select.POLLIN, select.POLLOUT, select.POLLIN | select.POLLOUT]),
    ),
    max_size=8,
)
readiness = st.dictionaries(st.integers(0, 12), st.sampled_from([1, 4, 5, 16, 8]), max_size=13)


def answer_poll(asked: bytes, ready: dict[int, int]) -> bytes:
    """What a kernel says that has descriptors which are *ready*."""
    answered = bytearray(asked)
    for at in range(0, len(asked), POLLFD.size):
        fd, events, _ = POLLFD.unpack_from(asked, at)
        revents = 0 if fd < 0 else ready.get(fd, 0) & (events | 8 | 16)
        POLLFD.pack_into(answered, at, fd, events, revents)
    return bytes(answered)


@given(entries, readiness)
def test_poll_of_two_halves_is_poll_of_the_whole(asked: list[tuple[int, int]], ready: dict[int, int]) -> None:
    whole = b"".join(POLLFD.pack(fd, events, 0) for fd, events in asked)
    expected = answer_poll(whole, ready)
    args = (1, len(asked), 0, 0, 0, 0)
    halves = split("poll", args, {0: whole}, LOCAL)
    assert set(halves.wanted) == {fd for fd, _ in asked} & LOCAL
    here = {fd: ready.get(fd, 0) for fd in halves.wanted}
    there = answer_poll(halves.ins[0], {fd: events for fd, events in ready.items() if fd not in LOCAL})
    value, outs = merge("poll", args, {0: whole}, {0: there}, here)
    assert outs[0] == expected
    assert value == sum(
        POLLFD.unpack_from(expected, at)[2] != 0 for at in range(0, len(expected), POLLFD.size)
    )


bits = st.integers(0, (1 << 13) - 1)


@given(bits, bits, bits, readiness)
def test_select_of_two_halves_is_select_of_the_whole(
    readable: int, writable: int, urgent: int, ready: dict[int, int]
) -> None:
    ins = {
        1: readable.to_bytes(8, "little"),
        2: writable.to_bytes(8, "little"),
        3: urgent.to_bytes(8, "little"),
    }

    def answer(asked: dict[int, bytes], ready: dict[int, int]) -> dict[int, bytes]:
        outs = {}
        for index, events in ((1, 1 | 16 | 8), (2, 4 | 8), (3, 2)):
            wanted = int.from_bytes(asked[index], "little")
            set_bits = sum(1 << fd for fd, has in ready.items() if wanted >> fd & 1 and has & events)
            outs[index] = set_bits.to_bytes(8, "little")
        return outs

    expected = answer(ins, ready)
    args = (13, 1, 1, 1, 0, 0)
    halves = split("select", args, ins, LOCAL)
    here = {fd: ready.get(fd, 0) for fd in halves.wanted}
    there = answer(halves.ins, {fd: events for fd, events in ready.items() if fd not in LOCAL})
    value, outs = merge("select", args, ins, there, here)
    assert outs == expected
    assert value == sum(int.from_bytes(data, "little").bit_count() for data in expected.values())


def test_a_half_that_failed_has_nothing_ready() -> None:
    whole = POLLFD.pack(2, 1, 0) + POLLFD.pack(3, 1, 77)
    value, outs = merge("poll", (1, 2, 0, 0, 0, 0), {0: whole}, {}, {2: 1})
    assert (value, outs[0]) == (1, POLLFD.pack(2, 1, 1) + POLLFD.pack(3, 1, 0))


def test_calls_that_must_not_wait() -> None:
    args, ins = without_waiting(SYSCALLS["epoll_wait"], (3, 1, 8, -1 % 2**64, 0, 0), {})
    assert (args, ins) == ((3, 1, 8, 0, 0, 0), {})
    args, ins = without_waiting(SYSCALLS["ppoll"], (1, 2, 0, 0, 8, 0), {0: b"x"})
    assert (args, ins) == ((1, 2, 1, 0, 8, 0), {0: b"x", 2: bytes(16)})
    args, ins = without_waiting(SYSCALLS["select"], (1, 0, 0, 0, 7, 0), {4: b"1" * 16})
    assert (args, ins) == ((1, 0, 0, 0, 7, 0), {4: bytes(16)})
