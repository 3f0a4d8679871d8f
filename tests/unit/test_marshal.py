"""What is carried out of a program's memory for a call, and what may be written back into it."""

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepping.errors import MemoryFaultError
from stepping.syscalls import SYSCALLS
from stepping.syscalls.marshal import MAX_TRANSFER_BYTES, Args, BadArgumentError, Gathered, gather, scatter

BASE = 0x10000


class Memory:
    """One mapped range; counts how often each byte is read."""

    def __init__(self, data: bytes = b"", size: int = 0x4000) -> None:
        self.data = bytearray(data.ljust(size, b"\0"))
        self.reads: list[tuple[int, int]] = []

    def _check(self, address: int, size: int) -> int:
        if not BASE <= address <= address + size <= BASE + len(self.data):
            raise MemoryFaultError(address)
        return address - BASE

    def read(self, address: int, size: int) -> bytes:
        at = self._check(address, size)
        self.reads.append((address, size))
        return bytes(self.data[at : at + size])

    def read_string(self, address: int, limit: int) -> bytes:
        at = self._check(address, 1)
        self.reads.append((address, limit))
        end = self.data.find(0, at)
        if end < 0:
            if at + limit <= len(self.data):
                raise ValueError("no end of string")
            raise MemoryFaultError(BASE + len(self.data))
        if end - at >= limit:
            raise ValueError("no end of string")
        return bytes(self.data[at:end])

    def write(self, address: int, data: bytes) -> None:
        at = self._check(address, len(data))
        self.data[at : at + len(data)] = data

    def put(self, address: int, data: bytes) -> int:
        self.write(address, data)
        return address


def args(*values: int) -> Args:
    a0, a1, a2, a3, a4, a5 = [value % 2**64 for value in (*values, *[0] * (6 - len(values)))]
    return (a0, a1, a2, a3, a4, a5)


def gathered(name: str, memory: Memory, *values: int) -> Gathered:
    return gather(SYSCALLS[name], args(*values), memory)


def refused(name: str, memory: Memory, *values: int) -> int:
    with pytest.raises(BadArgumentError) as caught:
        gathered(name, memory, *values)
    return caught.value.errno


def test_a_written_buffer_is_carried_once() -> None:
    memory = Memory(b"hello")
    call = gathered("write", memory, 1, BASE, 5)
    assert call == Gathered(args(1, BASE, 5), {1: b"hello"}, {}, {})
    assert memory.reads == [(BASE, 5)]


def test_a_buffer_to_fill_is_not_read() -> None:
    memory = Memory()
    call = gathered("read", memory, 0, BASE, 100)
    assert (call.ins, call.outs) == ({}, {1: 100})
    assert memory.reads == []


def test_paths_end_at_their_nul() -> None:
    call = gathered("openat", Memory(b"/etc/hosts\0junk"), -100, BASE, 0, 0)
    assert call.ins == {1: b"/etc/hosts"}


def test_null_pointers_are_absent() -> None:
    call = gathered("newfstatat", Memory(), -100, 0, 0, 0)
    assert (call.ins, call.outs) == ({}, {})


def test_null_and_empty_differ() -> None:
    assert gathered("write", Memory(), 1, BASE, 0).ins == {1: b""}
    assert gathered("write", Memory(), 1, 0, 0).ins == {}


def test_unreadable_memory_is_efault() -> None:
    assert refused("write", Memory(), 1, 0x666000, 5) == errno.EFAULT
    assert refused("write", Memory(size=16), 1, BASE + 10, 10) == errno.EFAULT
    assert refused("openat", Memory(), -100, 0x666000, 0, 0) == errno.EFAULT
    assert refused("openat", Memory(b"a" * 64, size=64), -100, BASE, 0, 0) == errno.EFAULT
    assert refused("write", Memory(), 1, 2**64 - 4, 8) == errno.EFAULT


def test_an_overlong_path_is_enametoolong() -> None:
    assert len(gathered("openat", Memory(b"a" * 4095), -100, BASE, 0).ins[1]) == 4095
    assert refused("openat", Memory(b"a" * 4096), -100, BASE, 0) == errno.ENAMETOOLONG


def test_a_large_transfer_becomes_a_short_one() -> None:
    call = gathered("read", Memory(), 0, BASE, 1 << 40)
    assert call.outs == {1: MAX_TRANSFER_BYTES}
    assert call.args == args(0, BASE, MAX_TRANSFER_BYTES)
    memory = Memory(b"x" * 10, size=MAX_TRANSFER_BYTES + 4096)
    call = gathered("write", memory, 1, BASE, MAX_TRANSFER_BYTES + 1000)
    assert len(call.ins[1]) == MAX_TRANSFER_BYTES == call.args[2]


def test_items_are_cut_whole() -> None:
    """epoll_wait's room is a number of structures: what is offered stays a multiple of them."""
    call = gathered("epoll_wait", Memory(), 4, BASE, 1 << 30, -1)
    assert call.outs[1] == call.args[2] * 12 <= MAX_TRANSFER_BYTES


def test_a_negative_count_offers_nothing() -> None:
    assert gathered("epoll_wait", Memory(), 4, BASE, -1 & 0xFFFFFFFF, -1).outs == {1: 0}


def test_vectors_are_joined_and_scattered_in_order() -> None:
    memory = Memory()
    memory.put(BASE, struct.pack("=6Q", BASE + 0x100, 3, 0, 0, BASE + 0x200, 4))
    memory.put(BASE + 0x100, b"abc")
    memory.put(BASE + 0x200, b"defg")
    assert gathered("writev", memory, 1, BASE, 3).ins == {1: b"abcdefg"}

    call = gathered("readv", memory, 0, BASE, 3)
    assert call.outs == {1: 7}
    scatter(call, {1: b"12345"}, memory)
    assert memory.read(BASE + 0x100, 3) == b"123"
    assert memory.read(BASE + 0x200, 4) == b"45fg"


def test_bad_vectors() -> None:
    memory = Memory()
    memory.put(BASE, struct.pack("=2Q", BASE + 0x100, 1 << 63))
    assert refused("writev", memory, 1, BASE, 1) == errno.EINVAL
    assert refused("writev", memory, 1, BASE, 1025) == errno.EINVAL
    assert refused("writev", memory, 1, 0x666000, 1) == errno.EFAULT
    memory.put(BASE, struct.pack("=2Q", 0x666000, 1))
    assert refused("writev", memory, 1, BASE, 1) == errno.EFAULT


def test_a_vector_carries_no_more_than_one_buffer_may() -> None:
    memory = Memory()
    memory.put(BASE, struct.pack("=2Q", BASE, 1 << 40) * 3)
    call = gathered("readv", memory, 0, BASE, 3)
    assert call.outs == {1: MAX_TRANSFER_BYTES}
    assert call.iovecs == {1: [(BASE, MAX_TRANSFER_BYTES)]}


def test_string_vectors() -> None:
    memory = Memory()
    memory.put(BASE, b"/bin/x\0")
    memory.put(BASE + 0x100, struct.pack("=3Q", BASE + 0x200, BASE + 0x210, 0))
    memory.put(BASE + 0x200, b"one\0")
    memory.put(BASE + 0x210, b"two 2\0")
    memory.put(BASE + 0x300, struct.pack("=Q", 0))
    call = gathered("execve", memory, BASE, BASE + 0x100, BASE + 0x300)
    assert call.ins == {0: b"/bin/x", 1: b"one\0two 2", 2: b""}


def test_a_string_vector_without_end_is_refused() -> None:
    memory = Memory(size=0x4000)
    memory.put(BASE, b"x\0")
    memory.put(BASE + 8, struct.pack("=Q", BASE) * (0x3FF8 // 8))
    assert refused("execve", memory, BASE, BASE + 8, 0) == errno.EFAULT
    long = Memory(size=0x100_000)
    long.put(BASE, b"y" * 0x20000)
    long.put(BASE + 0x20008, struct.pack("=2Q", BASE, 0))
    assert refused("execve", long, BASE + 0x1FFFF, BASE + 0x20008, 0) == errno.E2BIG


def test_the_third_argument_of_ioctl_depends_on_the_second() -> None:
    memory = Memory(b"\x18\0\x50\0" + b"\0" * 60)
    tiocgwinsz, tcsets, fioclex = 0x5413, 0x5402, 0x5451
    assert gathered("ioctl", memory, 0, tiocgwinsz, BASE).outs == {2: 8}
    setting = gathered("ioctl", memory, 0, tcsets, BASE)
    assert setting.ins[2] == memory.read(BASE, len(setting.ins[2]))
    assert len(setting.ins[2]) == 36
    assert gathered("ioctl", memory, 0, fioclex, 0x666).ins == {}


def test_what_is_changed_in_place_is_carried_both_ways() -> None:
    memory = Memory(struct.pack("=ihh", 5, 1, 0) * 2)
    call = gathered("poll", memory, BASE, 2, -1)
    assert call.ins == {0: memory.read(BASE, 16)}
    assert call.outs == {0: 16}


def test_nothing_is_written_that_was_not_offered() -> None:
    memory = Memory(b"." * 64)
    call = gathered("read", memory, 0, BASE, 4)
    scatter(call, {1: b"12345678", 0: b"no", 2: b"no", 5: b"no"}, memory)
    assert memory.read(BASE, 8) == b"1234...."


def test_an_answer_to_unwritable_memory_is_efault() -> None:
    call = gathered("read", Memory(), 0, 0x666000, 4)
    with pytest.raises(BadArgumentError) as caught:
        scatter(call, {1: b"1234"}, Memory())
    assert caught.value.errno == errno.EFAULT


def attempt(action: Callable[[], Gathered | None]) -> tuple[Gathered | None, int]:
    """Return what *action* returns, and the errno with which it refuses, or 0."""
    try:
        return action(), 0
    except BadArgumentError as error:
        return None, error.errno


registers = st.integers(0, 2**64 - 1) | st.integers(0, 64) | st.integers(BASE - 8, BASE + 0x4008)


@given(
    name=st.sampled_from(sorted(SYSCALLS)),
    values=st.lists(registers, min_size=6, max_size=6),
    content=st.binary(max_size=512),
    answers=st.dictionaries(st.integers(0, 5), st.binary(max_size=300)),
)
def test_any_registers_give_a_bounded_copy_or_an_errno(
    name: str, values: list[int], content: bytes, answers: dict[int, bytes]
) -> None:
    """No registers and no memory make the stub host fail, and no answer writes more than was offered."""
    memory = Memory(content)
    allowed = {errno.EFAULT, errno.ENAMETOOLONG, errno.EINVAL, errno.E2BIG}
    call, refusal = attempt(lambda: gather(SYSCALLS[name], args(*values), memory))
    assert refusal in allowed | {0}
    if call is None:
        return
    assert all(len(data) <= MAX_TRANSFER_BYTES for data in call.ins.values())
    assert all(0 <= room <= MAX_TRANSFER_BYTES for room in call.outs.values())
    before = bytes(memory.data)
    _, refusal = attempt(lambda: scatter(call, answers, memory))
    assert refusal in {0, errno.EFAULT}
    changed = sum(a != b for a, b in zip(before, memory.data, strict=True))
    assert changed <= sum(min(call.outs.get(index, 0), len(data)) for index, data in answers.items())
