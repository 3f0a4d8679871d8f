"""The pairs of a Go map in memory, of both kinds: buckets until Go 1.23, Swiss tables since.

    hash table  = header; buckets[2^B] of { tophash:u8[8] keys[8] elems[8] overflow }; while it grows, the old
                  buckets too, of which those not yet moved still count
    Swiss table = header; one group, or a directory of tables (a table may be there several times) of groups
    group       = { control:u8[8] slots[8] of { key elem } }, or { control:u8[8] keys[8] elems[8] }
                  a control byte below 0x80 says that the slot is taken

Keys and elements of more than 128 bytes are kept behind pointers. What is read is checked against the map's own
count of pairs. Source: runtime/map.go (Go 1.23), internal/runtime/maps (Go 1.24 to 1.27).
"""

from collections.abc import Iterator

from goabi.errors import ValueDecodeError
from goabi.gotypes import GoType, Kind
from goabi.layouts import Layouts
from goabi.memory import MemoryReader, read_u64, read_words

_SLOTS = 8
_MIN_TOPHASH = 5  # below: empty, or moved to the new buckets
_EVACUATED = (2, 3, 4)
_MAX_LOG2 = 40
_MAX_DIRECTORY = 1 << 24
_MAX_OVERFLOW = 1 << 16

Pair = tuple[int, int]
"""The addresses of a key and of its element."""


def iter_map_entries(
    memory: MemoryReader, layouts: Layouts, go_type: GoType, addr: int
) -> tuple[int, Iterator[Pair]]:
    """How many pairs the map at `addr` says it has, and the addresses of each.

    Raises: `ValueDecodeError`, `MemoryFaultError`, `LookupError` when the type does not say how it is kept.
    """
    if layouts.has("swissmap"):
        layout = layouts["swissmap"]
        raw = memory.read(addr, layout.size)
        used = layout.get(raw, "used")
        groups = _iter_groups(memory, layouts, raw, _group_type(go_type.storage).size) if used else iter(())
        return used, _iter_swiss(memory, go_type, groups)
    layout = layouts["hmap"]
    raw = memory.read(addr, layout.size)
    count, log2 = layout.get(raw, "count"), layout.get(raw, "B")
    if log2 > _MAX_LOG2:
        raise ValueDecodeError(f"the map at {addr:#x} has 2^{log2} buckets")
    old, same_size = layout.get(raw, "oldbuckets"), bool(layout.get(raw, "flags") & 8)
    ranges = [(layout.get(raw, "buckets"), 1 << log2)]
    if old:
        ranges.append((old, 1 << (log2 if same_size else max(log2 - 1, 0))))
    return count, _iter_buckets(memory, go_type, ranges)


# -- Swiss tables ---------------------------------------------------------------------------------------------


def _group_type(storage: GoType) -> GoType:
    """A group's struct: DWARF leads there from the map's, the runtime's records name it at once."""
    if storage.find_field("ctrl") is not None:
        return storage
    found = storage.find_path("dirPtr")
    table = found[1].elem.elem if found is not None else None
    data = table.find_path("groups.data") if table is not None else None
    if data is None:
        raise LookupError(f"{storage.name} does not say how the map is kept")
    return data[1].elem


def _iter_groups(memory: MemoryReader, layouts: Layouts, header: bytes, group_bytes: int) -> Iterator[int]:
    layout, table = layouts["swissmap"], layouts["swisstable"]
    directory, length = layout.get(header, "dirPtr"), layout.get(header, "dirLen")
    if length == 0:
        yield directory  # a small map is one group
        return
    if length > _MAX_DIRECTORY:
        raise ValueDecodeError(f"a map's directory of {length} tables")
    seen = set()
    for index in range(length):
        at = read_u64(memory, directory + 8 * index)
        if at in seen:
            continue
        seen.add(at)
        raw = memory.read(at, table.size)
        groups, mask = table.get(raw, "groups.data"), table.get(raw, "groups.lengthMask")
        if mask & (mask + 1) or mask > _MAX_DIRECTORY:
            raise ValueDecodeError(f"a map's table of {mask + 1} groups")
        yield from range(groups, groups + (mask + 1) * group_bytes, group_bytes)


def _iter_swiss(memory: MemoryReader, go_type: GoType, groups: Iterator[int]) -> Iterator[Pair]:
    plan: tuple[int, int, int, int, bool, bool] | None = None
    for group in groups:
        if plan is None:
            plan = _plan_group(go_type)
        keys, key_stride, elems, elem_stride, key_indirect, elem_indirect = plan
        for slot, control in enumerate(memory.read(group, _SLOTS)):
            if control < 0x80:
                key, elem = group + keys + slot * key_stride, group + elems + slot * elem_stride
                yield (
                    read_u64(memory, key) if key_indirect else key,
                    read_u64(memory, elem) if elem_indirect else elem,
                )


def _plan_group(go_type: GoType) -> tuple[int, int, int, int, bool, bool]:
    """Where in a group the keys and elements are: offset and stride of each, and whether behind pointers."""
    group = _group_type(go_type.storage)
    slots = group.find_field("slots")
    if slots is not None:
        slot = slots.type.elem
        key, elem = slot.find_field("key"), slot.find_field("elem")
        if key is None or elem is None:
            raise LookupError(f"{group.name} does not say where its keys are")
        offsets = (slots.offset + key.offset, slot.size, slots.offset + elem.offset, slot.size)
        return (*offsets, _is_indirect(go_type.key, key.type), _is_indirect(go_type.elem, elem.type))
    keys, elems = group.find_field("keys"), group.find_field("elems")
    if keys is None or elems is None:
        raise LookupError(f"{group.name} does not say where its keys are")
    key_type, elem_type = keys.type.elem, elems.type.elem
    offsets = (keys.offset, key_type.size, elems.offset, elem_type.size)
    return (*offsets, _is_indirect(go_type.key, key_type), _is_indirect(go_type.elem, elem_type))


def _is_indirect(wanted: GoType, kept: GoType) -> bool:
    return kept.kind is Kind.POINTER and wanted.size != kept.size


# -- buckets --------------------------------------------------------------------------------------------------


def _iter_buckets(memory: MemoryReader, go_type: GoType, ranges: list[tuple[int, int]]) -> Iterator[Pair]:
    storage = go_type.storage
    buckets = storage.find_field("buckets")
    bucket = buckets.type.elem if buckets is not None else storage
    if bucket.kind is not Kind.STRUCT or len(bucket.fields) < 4:
        raise LookupError(f"{storage.name} does not say how the map is kept")
    _, keys, elems, *_, overflow = bucket.fields
    key_type, elem_type = keys.type.elem, elems.type.elem
    key_indirect = _is_indirect(go_type.key, key_type)
    elem_indirect = _is_indirect(go_type.elem, elem_type)
    for number, (first, count) in enumerate(ranges):
        for start in range(first, first + count * bucket.size, bucket.size):
            at, hops = start, 0
            if number and memory.read(start, 1)[0] in _EVACUATED:
                continue  # the whole chain has moved
            while at:
                for slot, top in enumerate(memory.read(at, _SLOTS)):
                    if top >= _MIN_TOPHASH:
                        key = at + keys.offset + slot * key_type.size
                        elem = at + elems.offset + slot * elem_type.size
                        yield (
                            read_u64(memory, key) if key_indirect else key,
                            read_u64(memory, elem) if elem_indirect else elem,
                        )
                (at,) = read_words(memory, at + overflow.offset, 1)
                hops += 1
                if hops > _MAX_OVERFLOW:
                    raise ValueDecodeError(f"the map's bucket at {start:#x} is in a loop")
