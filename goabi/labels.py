"""Profiler labels of a goroutine, which are a Go map in older versions and a plain list since.

    until Go 1.23:  labels = *map[string]string (the map's own pointer behind one more)
    since Go 1.24:  labels = *struct { list []struct { key, value string } }

Source: runtime/pprof/label.go, internal/runtime/pprof/label, runtime/map.go.
"""

from collections.abc import Iterator

from goabi.errors import RuntimeDataError
from goabi.layouts import Layouts
from goabi.memory import MemoryReader, read_u64, read_words
from goabi.version import GoVersion

_FIRST_WITH_LIST = (1, 24)
_MAX_LABELS = 4096
_MAX_TEXT_BYTES = 1 << 16
_BUCKET_SLOTS = 8
_MIN_TOPHASH = 5  # lower values say that a slot is empty or its pair has moved
_STRING_BYTES = 16


def read_labels(memory: MemoryReader, layouts: Layouts, version: GoVersion, addr: int) -> dict[str, str]:
    """The labels that `g.labels` leads to. Raises: `MemoryFaultError`, `RuntimeDataError`, `LayoutError`."""
    # No layout tells the two apart: Go 1.24 can be built with the older maps, and keeps a list all the same.
    is_list = version.release >= _FIRST_WITH_LIST
    pairs = _iter_list(memory, addr) if is_list else _iter_map(memory, layouts, addr)
    return {_read_text(memory, *key): _read_text(memory, *value) for key, value in pairs}


Text = tuple[int, int]


def _iter_list(memory: MemoryReader, addr: int) -> Iterator[tuple[Text, Text]]:
    pointer, length, capacity = read_words(memory, addr, 3)
    if length > capacity or length > _MAX_LABELS:
        raise RuntimeDataError(f"labels at {addr:#x} say length {length}, capacity {capacity}")
    words = read_words(memory, pointer, 4 * length) if length else ()
    for at in range(0, 4 * length, 4):
        yield (words[at], words[at + 1]), (words[at + 2], words[at + 3])


def _iter_map(memory: MemoryReader, layouts: Layouts, addr: int) -> Iterator[tuple[Text, Text]]:
    layout = layouts["hmap"]
    header = read_u64(memory, addr)
    if not header:
        return
    raw = memory.read(header, layout.size)
    count, log2 = layout.get(raw, "count"), layout.get(raw, "B")
    if count > _MAX_LABELS or log2 > 12:
        raise RuntimeDataError(f"labels at {addr:#x} say that there are {count} in 2^{log2} buckets")
    yield from _iter_buckets(memory, layout.get(raw, "buckets"), 1 << log2)
    if layout.get(raw, "oldbuckets"):  # growing: what has not moved yet is in the old half
        yield from _iter_buckets(memory, layout.get(raw, "oldbuckets"), 1 << max(log2 - 1, 0))


def _iter_buckets(memory: MemoryReader, first: int, count: int) -> Iterator[tuple[Text, Text]]:
    pairs_bytes = 2 * _BUCKET_SLOTS * _STRING_BYTES
    size = _BUCKET_SLOTS + pairs_bytes + 8
    for number in range(count):
        bucket, hops = first + number * size, 0
        while bucket:
            tops = memory.read(bucket, _BUCKET_SLOTS)
            words = read_words(memory, bucket + _BUCKET_SLOTS, pairs_bytes // 8 + 1)
            for slot, top in enumerate(tops):
                if top >= _MIN_TOPHASH:
                    key, value = 2 * slot, 2 * (_BUCKET_SLOTS + slot)
                    yield (words[key], words[key + 1]), (words[value], words[value + 1])
            bucket, hops = words[-1], hops + 1
            if hops > _MAX_LABELS:
                raise RuntimeDataError(f"the labels' bucket at {bucket:#x} is in a loop")


def _read_text(memory: MemoryReader, pointer: int, length: int) -> str:
    if length > _MAX_TEXT_BYTES:
        raise RuntimeDataError(f"a label of {length} bytes")
    return memory.read(pointer, length).decode("utf-8", "replace") if length else ""
