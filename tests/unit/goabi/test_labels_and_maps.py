"""Labels and maps of both kinds, laid out in memory by hand as the runtime lays them."""

import struct
from collections.abc import Callable

import pytest

from goabi.errors import GoAbiError, RuntimeDataError, ValueDecodeError
from goabi.gotypes import Field, GoType, Kind
from goabi.labels import read_labels
from goabi.layouts import Layouts, layouts_from_table
from goabi.maps import iter_map_entries
from goabi.memory import BytesMemory
from goabi.version import GoVersion

OLD, NEW = GoVersion.parse("go1.23.1"), GoVersion.parse("go1.24.1")
INT64 = GoType("int64", Kind.INT64, 8)
BYTES8 = GoType("[8]uint8", Kind.ARRAY, 8, count=8, elem=lambda: GoType("uint8", Kind.UINT8, 1))
BULKY = GoType("[40]int64", Kind.ARRAY, 320, count=40, elem=lambda: INT64)
POINTER = GoType("*[40]int64", Kind.POINTER, 8, elem=lambda: BULKY)
ARRAY_OF_POINTERS = GoType("[8]*[40]int64", Kind.ARRAY, 64, count=8, elem=lambda: POINTER)
ARRAY_OF_INTS = GoType("[8]int64", Kind.ARRAY, 64, count=8, elem=lambda: INT64)


class Heap:
    """Hands out addresses and remembers what is there."""

    def __init__(self) -> None:
        self._next = 0x10000
        self.segments: list[tuple[int, bytes]] = []

    def put(self, data: bytes) -> int:
        addr = self._next
        self._next += (len(data) + 31) & -16
        self.segments.append((addr, data))
        return addr

    def text(self, text: str) -> bytes:
        data = text.encode()
        return struct.pack("<QQ", self.put(data) if data else 0, len(data))

    def words(self, *words: int) -> int:
        return self.put(struct.pack(f"<{len(words)}Q", *words))

    @property
    def memory(self) -> BytesMemory:
        return BytesMemory(self.segments)


def record(layouts: Layouts, name: str, **values: int) -> bytes:
    layout = layouts[name]
    raw = bytearray(layout.size)
    for field, value in values.items():
        offset, size = layout.fields[field.replace("__", ".")]
        raw[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(raw)


def old_labels(heap: Heap, layouts: Layouts) -> int:
    """{"a": "1", "ö": ""} in two buckets of which one has an overflow, and an old bucket, half moved."""

    def bucket(pairs: dict[int, tuple[int, str, str]], overflow: int = 0) -> bytes:
        tops = bytes(pairs[slot][0] if slot in pairs else 0 for slot in range(8))
        keys = b"".join(heap.text(pairs[slot][1]) if slot in pairs else bytes(16) for slot in range(8))
        elems = b"".join(heap.text(pairs[slot][2]) if slot in pairs else bytes(16) for slot in range(8))
        return tops + keys + elems + struct.pack("<Q", overflow)

    more = heap.put(bucket({7: (200, "ö", "")}))
    first = bucket({0: (5, "a", "1"), 3: (4, "moved", "away")}, more)
    buckets = heap.put(first + bucket({}))
    old = heap.put(bucket({0: (2, "also", "moved"), 1: (99, "old", "still")}))
    header = record(layouts, "hmap", count=3, B=1, buckets=buckets, oldbuckets=old)
    return heap.words(heap.put(header))


def test_labels_as_a_map() -> None:
    layouts, heap = layouts_from_table(OLD, "amd64"), Heap()
    addr = old_labels(heap, layouts)
    assert read_labels(heap.memory, layouts, OLD, addr) == {"a": "1", "ö": "", "old": "still"}
    assert read_labels(BytesMemory([(8, bytes(8))]), layouts, OLD, 8) == {}


def test_labels_as_a_list() -> None:
    layouts, heap = layouts_from_table(NEW, "amd64"), Heap()
    pairs = heap.put(heap.text("key") + heap.text("wert") + heap.text("empty") + heap.text(""))
    addr = heap.words(pairs, 2, 2)
    assert read_labels(heap.memory, layouts, NEW, addr) == {"key": "wert", "empty": ""}


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (NEW, (0x5000, 5, 4)),  # longer than its capacity
        (NEW, (0x5000, 1 << 40, 1 << 40)),
        (NEW, (0x5000, 1, 1)),  # nothing there
    ],
)
def test_labels_that_make_no_sense(version: GoVersion, words: tuple[int, ...]) -> None:
    heap = Heap()
    addr = heap.words(*words)
    with pytest.raises(GoAbiError):
        read_labels(heap.memory, layouts_from_table(version, "amd64"), version, addr)


def test_labels_in_a_loop() -> None:
    layouts, heap = layouts_from_table(OLD, "amd64"), Heap()
    header = heap.put(bytes(8 + 256) + struct.pack("<Q", 0x10000))
    assert header == 0x10000
    addr = heap.words(heap.put(record(layouts, "hmap", count=1, buckets=header)))
    with pytest.raises(RuntimeDataError, match="loop"):
        read_labels(heap.memory, layouts, OLD, addr)


def map_type(key: GoType, elem: GoType, storage: Callable[[], GoType]) -> GoType:
    return GoType("map", Kind.MAP, 8, key=lambda: key, elem=lambda: elem, storage=storage)


def struct_of(size: int, **fields: tuple[int, GoType]) -> GoType:
    made = tuple(Field(name, offset, kind) for name, (offset, kind) in fields.items())
    return GoType("struct", Kind.STRUCT, size, fields=lambda: made)


def test_buckets_with_keys_behind_pointers() -> None:
    layouts, heap = layouts_from_table(OLD, "amd64"), Heap()
    bucket = struct_of(
        144,
        topbits=(0, BYTES8),
        keys=(8, ARRAY_OF_POINTERS),
        elems=(72, ARRAY_OF_INTS),
        overflow=(136, POINTER),
    )
    at = heap.put(bytes([9, 0, 0, 0, 0, 0, 0, 1]) + struct.pack("<17Q", *range(100, 116), 0))
    addr = heap.put(record(layouts, "hmap", count=1, buckets=at))
    count, entries = iter_map_entries(heap.memory, layouts, map_type(BULKY, INT64, lambda: bucket), addr)
    assert count == 1
    assert list(entries) == [(100, at + 72)]


@pytest.mark.parametrize("apart", [False, True])
def test_swiss_tables_of_either_form(apart: bool) -> None:
    layouts, heap = layouts_from_table(NEW, "amd64"), Heap()
    if apart:
        group = struct_of(136, ctrl=(0, BYTES8), keys=(8, ARRAY_OF_INTS), elems=(72, ARRAY_OF_INTS))
        places = [(8 + 8 * slot, 72 + 8 * slot) for slot in range(8)]
    else:
        slot = struct_of(16, key=(0, INT64), elem=(8, INT64))
        slots = GoType("[8]slot", Kind.ARRAY, 128, count=8, elem=lambda: slot)
        group = struct_of(136, ctrl=(0, BYTES8), slots=(8, slots))
        places = [(8 + 16 * number, 16 + 16 * number) for number in range(8)]
    taken = bytes([0x80, 0x05, 0xFE, 0x80, 0x7F, 0x80, 0x80, 0x80])
    empty = bytes([0x80] * 8)
    groups = heap.put(taken + bytes(128) + empty + bytes(128))
    table = heap.put(record(layouts, "swisstable", used=2, groups__data=groups, groups__lengthMask=1))
    other = heap.put(
        record(layouts, "swisstable", groups__data=heap.put(empty + bytes(128)), groups__lengthMask=0)
    )
    directory = heap.words(table, table, other, other)
    addr = heap.put(record(layouts, "swissmap", used=2, dirPtr=directory, dirLen=4))
    kind = map_type(INT64, INT64, lambda: group)
    count, entries = iter_map_entries(heap.memory, layouts, kind, addr)
    assert count == 2
    assert list(entries) == [(groups + places[n][0], groups + places[n][1]) for n in (1, 4)]
    # A small map is one group without a directory.
    small = heap.put(record(layouts, "swissmap", used=2, dirPtr=groups))
    count, entries = iter_map_entries(heap.memory, layouts, kind, small)
    assert [key - groups for key, _ in entries] == [places[1][0], places[4][0]]


def test_maps_that_make_no_sense() -> None:
    new, old, heap = layouts_from_table(NEW, "amd64"), layouts_from_table(OLD, "amd64"), Heap()
    group = struct_of(136, ctrl=(0, BYTES8), keys=(8, ARRAY_OF_INTS), elems=(72, ARRAY_OF_INTS))
    kind = map_type(INT64, INT64, lambda: group)
    table = heap.put(record(new, "swisstable", groups__lengthMask=2))
    crooked = heap.put(record(new, "swissmap", used=1, dirPtr=heap.words(table), dirLen=1))
    endless = heap.put(record(new, "swissmap", used=1, dirPtr=0x10000, dirLen=1 << 40))
    for addr in (crooked, endless):
        with pytest.raises(ValueDecodeError):
            list(iter_map_entries(heap.memory, new, kind, addr)[1])
    huge = heap.put(record(old, "hmap", count=1, B=200))
    with pytest.raises(ValueDecodeError, match=r"2\^200 buckets"):
        iter_map_entries(heap.memory, old, kind, huge)
