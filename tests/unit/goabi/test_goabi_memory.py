"""The readers made of bytes and of other readers; scattered reads."""

import pytest

from goabi.errors import MemoryFaultError
from goabi.memory import (
    BytesMemory,
    CachedMemory,
    read_scattered,
    read_u32,
    read_u64,
    read_words,
)


class Counting:
    def __init__(self, memory: BytesMemory) -> None:
        self.memory = memory
        self.reads: list[tuple[int, int]] = []

    def read(self, addr: int, size: int, /) -> bytes:
        self.reads.append((addr, size))
        return self.memory.read(addr, size)


def test_segments_read_as_one_where_they_adjoin() -> None:
    memory = BytesMemory([(0x1004, b"efgh"), (0x1000, b"abcd"), (0x2000, b"z")])
    assert memory.read(0x1002, 4) == b"cdef"
    assert memory.read(0x2000, 1) == b"z"
    assert memory.read(0x5000, 0) == b""


@pytest.mark.parametrize(
    ("addr", "size", "fault"), [(0xFFF, 2, 0xFFF), (0x1006, 4, 0x1008), (0x3000, 1, 0x3000)]
)
def test_faults_carry_the_first_bad_address(addr: int, size: int, fault: int) -> None:
    memory = BytesMemory([(0x1000, b"abcdefgh")])
    with pytest.raises(MemoryFaultError, match=f"{fault:#x}") as caught:
        memory.read(addr, size)
    assert caught.value.addr == fault


@pytest.mark.parametrize(("addr", "size"), [(-1, 1), (0, -1), ((1 << 64) - 1, 2), (1 << 70, 1)])
def test_what_is_no_range_is_refused(addr: int, size: int) -> None:
    for memory in (BytesMemory([(0, b"abc")]), CachedMemory(BytesMemory([(0, b"abc")]))):
        with pytest.raises(MemoryFaultError, match="not a range"):
            memory.read(addr, size)


def test_writes_are_whole_or_not_at_all() -> None:
    memory = BytesMemory([(0x1000, b"abcd"), (0x1004, b"efgh")])
    memory.write(0x1002, b"1234")
    assert memory.read(0x1000, 8) == b"ab1234gh"
    with pytest.raises(MemoryFaultError):
        memory.write(0x1006, b"xyz")
    assert memory.read(0x1000, 8) == b"ab1234gh"


def test_overlapping_segments_are_refused() -> None:
    with pytest.raises(MemoryFaultError, match="overlap"):
        BytesMemory([(0, b"abcd"), (3, b"e")])


def test_cache_reads_each_block_once_until_cleared() -> None:
    inner = Counting(BytesMemory([(0, bytes(range(64)) * 4)]))
    cache = CachedMemory(inner, block_bytes=64)
    assert cache.read(3, 2) == b"\x03\x04"
    assert cache.read(10, 4) == bytes([10, 11, 12, 13])
    assert len(inner.reads) == 1
    assert cache.read(60, 8) == bytes([60, 61, 62, 63, 0, 1, 2, 3])
    assert len(inner.reads) == 2
    cache.clear()
    cache.read(3, 2)
    assert len(inner.reads) == 3


def test_cache_forgets_the_least_recently_used() -> None:
    inner = Counting(BytesMemory([(0, bytes(256))]))
    cache = CachedMemory(inner, block_bytes=64, max_blocks=2)
    for addr in (0, 64, 0, 128, 0):
        cache.read(addr, 1)
    assert [addr for addr, _ in inner.reads] == [0, 64, 128]


def test_cache_reads_up_to_a_mappings_last_byte() -> None:
    cache = CachedMemory(BytesMemory([(64, b"abc")]), block_bytes=64)
    assert cache.read(65, 2) == b"bc"
    with pytest.raises(MemoryFaultError, match="0x43"):
        cache.read(65, 3)


def test_words() -> None:
    memory = BytesMemory([(8, bytes.fromhex("0102030405060708") + bytes([255] * 8))])
    assert read_u32(memory, 8) == 0x04030201
    assert read_u64(memory, 8) == 0x0807060504030201
    assert read_words(memory, 8, 2) == (0x0807060504030201, (1 << 64) - 1)


def test_scattered_reads_keep_the_order_and_share_what_is_near() -> None:
    inner = Counting(BytesMemory([(0, bytes(range(256))), (100_000, b"far away")]))
    found = read_scattered(inner, [40, 8, 100_000, 24], 4)
    assert found == [bytes(range(40, 44)), bytes(range(8, 12)), b"far ", bytes(range(24, 28))]
    assert inner.reads == [(8, 36), (100_000, 4)]


def test_scattered_reads_give_none_where_there_is_nothing() -> None:
    memory = BytesMemory([(0, b"abcdefgh"), (16, b"ijklmnop")])
    assert read_scattered(memory, [0, 8, 16, 1 << 63], 8) == [b"abcdefgh", None, b"ijklmnop", None]
    assert read_scattered(memory, [], 8) == []
