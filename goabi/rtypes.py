"""Types as the running program itself knows them: the records behind every interface value, stripped or not.

    type      = common (`internal/abi.Type`), then by kind:
    array     = elem slice count          chan, pointer, slice = elem
    map       = key elem group            (until Go 1.23 the bucket's type in place of the group's)
    struct    = pkgpath fields[]          field = name type offset        interface = pkgpath methods[]
    name      = flags:u8 varint-length text ...

Nothing of it is trusted. Source: internal/abi/type.go, internal/abi/map*.go (Go 1.21 to 1.27).
"""

from goabi.errors import MemoryFaultError, ValueDecodeError
from goabi.gotypes import Field, GoType, Kind
from goabi.layouts import Layouts
from goabi.memory import MemoryReader, read_u64, read_words
from goabi.moduledata import Moduledata

_DIRECT = 0x20
_EXTRA_STAR = 0x02
_MAX_NAME_BYTES = 1 << 14
_MAX_FIELDS = 1 << 12
_MAX_TYPE_BYTES = 1 << 30
_CACHE_LIMIT = 1 << 14


class RuntimeTypes:
    """The type records of a program in memory. Not locked."""

    def __init__(self, memory: MemoryReader, layouts: Layouts, module: Moduledata, bias: int) -> None:
        self._memory = memory
        self._layout = layouts["rtype"]
        self._names = module.types + bias
        self._names_bytes = module.end_types - module.types
        self._types: dict[int, tuple[GoType, bool]] = {}

    def type_at(self, addr: int) -> GoType:
        """The type whose record is at `addr`. Raises: `ValueDecodeError`, `MemoryFaultError`."""
        return self._entry(addr)[0]

    def is_direct(self, addr: int) -> bool:
        """Whether an interface holds such a value in its data word itself, instead of a pointer to it."""
        return self._entry(addr)[1]

    def _entry(self, addr: int) -> tuple[GoType, bool]:
        entry = self._types.get(addr)
        if entry is None:
            if len(self._types) >= _CACHE_LIMIT:
                self._types.clear()
            entry = self._types[addr] = self._read(addr)
        return entry

    def _read(self, addr: int) -> tuple[GoType, bool]:
        layout = self._layout
        raw = self._memory.read(addr, layout.size)
        flags, kind_bits, size = layout.get(raw, "TFlag"), layout.get(raw, "Kind_"), layout.get(raw, "Size_")
        # Since Go 1.26 the bit is among the flags, where it was free before.
        direct = bool((kind_bits | flags) & _DIRECT)
        try:
            kind = Kind(kind_bits & 0x1F)
        except ValueError as error:
            raise ValueDecodeError(f"there is no type at {addr:#x}: its kind is {kind_bits & 31}") from error
        if kind is Kind.INVALID or size > _MAX_TYPE_BYTES:
            raise ValueDecodeError(f"there is no type at {addr:#x}: kind {kind_bits}, {size} bytes")
        name = self._name_at_offset(layout.get(raw, "Str"))
        if flags & _EXTRA_STAR:
            name = name.removeprefix("*")
        return self._make(addr + layout.size, name, kind, size), direct

    def _make(self, extra: int, name: str, kind: Kind, size: int) -> GoType:
        """`extra` is where the part begins that the kind decides about."""
        memory = self._memory
        if kind is Kind.ARRAY:
            elem, _, count = read_words(memory, extra, 3)
            return GoType(name, kind, size, count=count, elem=lambda: self.type_at(elem))
        if kind in (Kind.CHAN, Kind.POINTER, Kind.SLICE):
            elem = read_u64(memory, extra)
            return GoType(name, kind, size, elem=lambda: self.type_at(elem))
        if kind is Kind.MAP:
            key, elem, group = read_words(memory, extra, 3)
            return GoType(
                name,
                kind,
                size,
                elem=lambda: self.type_at(elem),
                key=lambda: self.type_at(key),
                storage=lambda: self.type_at(group),
            )
        if kind is Kind.STRUCT:
            return GoType(name, kind, size, fields=lambda: self._fields(name, extra))
        if kind is Kind.INTERFACE:
            return GoType(name, kind, size, empty_interface=read_words(memory, extra, 3)[2] == 0)
        return GoType(name, kind, size)

    def _fields(self, name: str, extra: int) -> tuple[Field, ...]:
        _, pointer, count = read_words(self._memory, extra, 3)
        if count > _MAX_FIELDS:
            raise ValueDecodeError(f"{name} has {count} fields")
        words = read_words(self._memory, pointer, 3 * count) if count else ()
        return tuple(
            Field(self._name_at(words[at]), words[at + 2], self.type_at(words[at + 1]))
            for at in range(0, 3 * count, 3)
        )

    def _name_at_offset(self, offset: int) -> str:
        # A type made at run time has its name elsewhere, under a number that is no offset.
        return self._name_at(self._names + offset) if 0 < offset < self._names_bytes else "?"

    def _name_at(self, addr: int) -> str:
        length = shift = 0
        position = addr + 1
        while True:
            byte = self._memory.read(position, 1)[0]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > 21:
                raise ValueDecodeError(f"the name at {addr:#x} has no length")
        if length > _MAX_NAME_BYTES:
            raise ValueDecodeError(f"the name at {addr:#x} has {length} bytes")
        try:
            return self._memory.read(position, length).decode("utf-8", "replace") if length else ""
        except MemoryFaultError as error:
            raise ValueDecodeError(f"the name at {addr:#x} cannot be read") from error
