"""Values of a program, decoded by their types into plain Python data.

Booleans and numbers become Python's own; all else becomes one of the classes here, which say what was left out.
What cannot be read becomes `Unreadable` in its place, so one bad pointer does not hide the rest. Pointers are
followed to a limited depth, and the number of values is limited as a whole: a value is for people to look at.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from goabi.errors import GoAbiError, MemoryFaultError, ValueDecodeError
from goabi.gotypes import SIGNED_INTEGERS, UNSIGNED_INTEGERS, GoType, Kind
from goabi.maps import iter_map_entries
from goabi.memory import read_words
from goabi.rtypes import RuntimeTypes
from goabi.sched import GoRuntime

_MAX_TYPE_BYTES = 1 << 20
_MAX_WAITERS = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is read: bytes of a string, elements of a container, pointers in a row, values in all."""

    string_bytes: int = 1024
    items: int = 64
    depth: int = 4
    values: int = 10_000


@dataclass(frozen=True, slots=True)
class GoString:
    """A string: the first bytes, and how many there are."""

    data: bytes
    length: int

    def __str__(self) -> str:
        return self.data.decode("utf-8", "replace") + ("…" if len(self.data) < self.length else "")


@dataclass(frozen=True, slots=True)
class GoSequence:
    """An array or slice: the first elements, length and capacity (an array's are equal); `addr` 0 for nil."""

    items: tuple["Value", ...]
    length: int
    capacity: int
    addr: int


@dataclass(frozen=True, slots=True)
class GoStruct:
    """A struct: its type's name and its fields in order."""

    type_name: str
    fields: dict[str, "Value"]


@dataclass(frozen=True, slots=True)
class GoPointer:
    """A pointer; `target` is None for nil, and where the limit of depth was reached."""

    addr: int
    target: "Value | None"


@dataclass(frozen=True, slots=True)
class GoMap:
    """A map: the first pairs, in the table's order, and how many there are; `addr` 0 for nil."""

    entries: tuple[tuple["Value", "Value"], ...]
    length: int
    addr: int


@dataclass(frozen=True, slots=True)
class GoChan:
    """A channel: what its buffer holds (oldest first), and who waits, as addresses of goroutines.

    A sender is with the value that it wants to send (None when the limit of depth was reached).
    """

    addr: int
    length: int
    capacity: int
    closed: bool
    items: tuple["Value", ...]
    receivers: tuple[int, ...]
    senders: tuple[tuple[int, "Value | None"], ...]


@dataclass(frozen=True, slots=True)
class GoInterface:
    """An interface value: the name of the dynamic type ("" for nil) and the value."""

    type_name: str
    value: "Value | None"


@dataclass(frozen=True, slots=True)
class GoFunc:
    """A function value: the name of its code ("" for nil), and where its closure is."""

    name: str
    addr: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of a value that cannot be read: why."""

    why: str


Value: TypeAlias = (
    bool
    | int
    | float
    | complex
    | GoString
    | GoSequence
    | GoStruct
    | GoPointer
    | GoMap
    | GoChan
    | GoInterface
    | GoFunc
    | Unreadable
)


class ValueReader:
    """Decodes values in a program's memory. Not locked."""

    def __init__(self, runtime: GoRuntime, limits: Limits | None = None) -> None:
        self._runtime = runtime
        self._memory = runtime.memory
        self._limits = limits or Limits()
        self._types = RuntimeTypes(runtime.memory, runtime.layouts, runtime.binary.module, runtime.bias)
        self._left = 0

    def read_variable(self, name: str) -> Value:
        """A package-level variable by its full name. Raises: `ValueDecodeError` when it is not known."""
        dwarf = self._runtime.binary.dwarf
        variable = dwarf.find_variable(name) if dwarf is not None else None
        if variable is None:
            raise ValueDecodeError(f"no variable {name} in the debugging information")
        return self.read_value(variable.type, variable.addr + self._runtime.bias)

    def read_value(self, go_type: GoType, addr: int) -> Value:
        """The value of that type at an address of the process."""
        self._left = self._limits.values
        return self._read(go_type, addr, self._limits.depth)

    def decode_value(self, go_type: GoType, raw: bytes) -> Value:
        """The value of that type whose bytes are given (registers, say); what it points at is read."""
        self._left = self._limits.values
        return self._decode(go_type, raw, self._limits.depth, 0)

    # -- one value --------------------------------------------------------------------------------------------

    def _read(self, go_type: GoType, addr: int, depth: int) -> Value:
        if go_type.size > _MAX_TYPE_BYTES:
            return Unreadable(f"{go_type.name} has {go_type.size} bytes")
        try:
            raw = self._memory.read(addr, go_type.size)
        except MemoryFaultError as error:
            return Unreadable(str(error))
        return self._decode(go_type, raw, depth, addr)

    def _decode(self, go_type: GoType, raw: bytes, depth: int, addr: int) -> Value:
        self._left -= 1
        if self._left < 0:
            return Unreadable("too many values")
        try:
            return self._decode_kind(go_type, raw, depth, addr)
        except (GoAbiError, LookupError) as error:
            return Unreadable(str(error))
        except struct.error as error:
            return Unreadable(f"{go_type.name}: {error}")

    def _decode_kind(self, go_type: GoType, raw: bytes, depth: int, addr: int) -> Value:
        kind = go_type.kind
        if kind in SIGNED_INTEGERS:
            return int.from_bytes(raw[: go_type.size], "little", signed=True)
        if kind in UNSIGNED_INTEGERS:
            return int.from_bytes(raw[: go_type.size], "little")
        if kind is Kind.BOOL:
            return raw[0] != 0
        if kind in (Kind.FLOAT32, Kind.FLOAT64):
            return float(struct.unpack_from("<f" if kind is Kind.FLOAT32 else "<d", raw)[0])
        if kind in (Kind.COMPLEX64, Kind.COMPLEX128):
            return complex(*struct.unpack_from("<ff" if kind is Kind.COMPLEX64 else "<dd", raw))
        if kind is Kind.STRING:
            return self._decode_string(raw)
        if kind is Kind.SLICE:
            pointer, length, capacity = struct.unpack_from("<QQQ", raw)
            if length > capacity:
                raise ValueDecodeError(f"a slice of length {length} and capacity {capacity}")
            return GoSequence(
                self._read_items(go_type.elem, pointer, length, depth), length, capacity, pointer
            )
        if kind is Kind.ARRAY:
            size, count = go_type.elem.size, go_type.count
            shown = range(min(count, self._limits.items))
            items = tuple(
                self._decode(go_type.elem, raw[i * size : i * size + size], depth, addr + i * size)
                for i in shown
            )
            return GoSequence(items, count, count, addr)
        if kind is Kind.STRUCT:
            fields = {
                field.name: self._decode(
                    field.type, raw[field.offset : field.offset + field.type.size], depth, addr + field.offset
                )
                for field in go_type.fields
            }
            return GoStruct(go_type.name, fields)
        if kind is Kind.INTERFACE:
            return self._decode_interface(go_type, raw, depth)
        (pointer,) = struct.unpack_from("<Q", raw)
        if kind is Kind.POINTER:
            return GoPointer(pointer, self._follow(go_type, pointer, depth))
        if kind is Kind.MAP:
            return self._decode_map(go_type, pointer, depth)
        if kind is Kind.CHAN:
            return self._decode_chan(go_type, pointer, depth)
        if kind is Kind.FUNC:
            return self._decode_func(pointer)
        raise ValueDecodeError(f"{go_type.name} is of a kind that has no values")

    def _follow(self, go_type: GoType, pointer: int, depth: int) -> Value | None:
        if not pointer or depth <= 0:
            return None
        return self._read(go_type.elem, pointer, depth - 1)

    def _decode_string(self, raw: bytes) -> GoString:
        pointer, length = struct.unpack_from("<QQ", raw)
        if length >> 48:
            raise ValueDecodeError(f"a string of {length} bytes")
        shown = min(length, self._limits.string_bytes)
        return GoString(self._memory.read(pointer, shown) if shown else b"", length)

    def _read_items(self, elem: GoType, pointer: int, length: int, depth: int) -> tuple[Value, ...]:
        shown, size = min(length, self._limits.items), elem.size
        if not shown:
            return ()
        if depth <= 0:
            return ()
        if shown * size > _MAX_TYPE_BYTES:
            shown = max(1, _MAX_TYPE_BYTES // size)
        raw = self._memory.read(pointer, shown * size)
        return tuple(
            self._decode(elem, raw[i * size : i * size + size], depth - 1, pointer + i * size)
            for i in range(shown)
        )

    def _decode_interface(self, go_type: GoType, raw: bytes, depth: int) -> GoInterface:
        word, data = struct.unpack_from("<QQ", raw)
        if not word:
            return GoInterface("", None)
        if not go_type.empty_interface:
            itab = self._runtime.layouts["itab"]
            word = read_words(self._memory, word + itab.offset("Type" if itab.has("Type") else "_type"), 1)[0]
        dynamic = self._types.type_at(word)
        if depth <= 0:
            return GoInterface(dynamic.name, None)
        if self._types.is_direct(word):
            return GoInterface(dynamic.name, self._decode(dynamic, data.to_bytes(8, "little"), depth, 0))
        return GoInterface(dynamic.name, self._read(dynamic, data, depth - 1))

    def _decode_map(self, go_type: GoType, pointer: int, depth: int) -> GoMap:
        if not pointer:
            return GoMap((), 0, 0)
        length, entries = iter_map_entries(self._memory, self._runtime.layouts, go_type, pointer)
        pairs: list[tuple[Value, Value]] = []
        if depth > 0:
            for key, elem in entries:
                if len(pairs) >= self._limits.items:
                    break
                pairs.append(
                    (self._read(go_type.key, key, depth - 1), self._read(go_type.elem, elem, depth - 1))
                )
        return GoMap(tuple(pairs), length, pointer)

    def _decode_func(self, pointer: int) -> GoFunc:
        if not pointer:
            return GoFunc("", 0)
        (code,) = read_words(self._memory, pointer, 1)
        function = self._runtime.binary.functions.find_function(code - self._runtime.bias)
        return GoFunc(function.name if function is not None else "?", pointer)

    # -- channels ---------------------------------------------------------------------------------------------

    def _decode_chan(self, go_type: GoType, pointer: int, depth: int) -> GoChan:
        if not pointer:
            return GoChan(0, 0, 0, False, (), (), ())
        layout = self._runtime.layouts["hchan"]
        raw = self._memory.read(pointer, layout.size)
        length, capacity = layout.get(raw, "qcount"), layout.get(raw, "dataqsiz")
        first, elem = layout.get(raw, "recvx"), go_type.elem
        if (
            length > capacity
            or (capacity and first >= capacity)
            or layout.get(raw, "elemsize") != elem.size & 0xFFFF
        ):
            raise ValueDecodeError(f"the channel at {pointer:#x} contradicts itself")
        buffer = layout.get(raw, "buf")
        shown = min(length, self._limits.items) if depth > 0 else 0
        items = tuple(
            self._read(elem, buffer + (first + i) % capacity * elem.size, depth - 1) for i in range(shown)
        )
        return GoChan(
            addr=pointer,
            length=length,
            capacity=capacity,
            closed=bool(layout.get(raw, "closed")),
            items=items,
            receivers=tuple(g for g, _ in self._iter_waiters(layout.get(raw, "recvq.first"))),
            senders=tuple(
                (g, self._read(elem, at, depth - 1) if depth > 0 and at else None)
                for g, at in self._iter_waiters(layout.get(raw, "sendq.first"))
            ),
        )

    def _iter_waiters(self, sudog: int) -> Iterator[tuple[int, int]]:
        """The goroutines in a channel's queue, with where each one's element is."""
        layout = self._runtime.layouts["sudog"]
        elem = "elem.vu" if layout.has("elem.vu") else "elem"
        for _ in range(_MAX_WAITERS):
            if not sudog:
                return
            raw = self._memory.read(sudog, layout.size)
            yield layout.get(raw, "g"), layout.get(raw, elem)
            sudog = layout.get(raw, "next")
