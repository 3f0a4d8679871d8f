"""Go types as plain data: what a value's bytes mean. Made from DWARF (`goabi.dwarf`) or from the runtime's own
type records (`goabi.rtypes`); who decodes values cannot tell the difference.

Types may refer to themselves, so what a type refers to is resolved when asked for and then kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """Go's kinds, by reflect's numbers. Source: reflect/type.go, internal/abi/type.go."""

    INVALID = 0
    BOOL = 1
    INT = 2
    INT8 = 3
    INT16 = 4
    INT32 = 5
    INT64 = 6
    UINT = 7
    UINT8 = 8
    UINT16 = 9
    UINT32 = 10
    UINT64 = 11
    UINTPTR = 12
    FLOAT32 = 13
    FLOAT64 = 14
    COMPLEX64 = 15
    COMPLEX128 = 16
    ARRAY = 17
    CHAN = 18
    FUNC = 19
    INTERFACE = 20
    MAP = 21
    POINTER = 22
    SLICE = 23
    STRING = 24
    STRUCT = 25
    UNSAFE_POINTER = 26


SIGNED_INTEGERS = frozenset({Kind.INT, Kind.INT8, Kind.INT16, Kind.INT32, Kind.INT64})
UNSIGNED_INTEGERS = frozenset(
    {Kind.UINT, Kind.UINT8, Kind.UINT16, Kind.UINT32, Kind.UINT64, Kind.UINTPTR, Kind.UNSAFE_POINTER}
)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a struct: `offset` in bytes from the struct's start."""

    name: str
    offset: int
    type: "GoType"


class GoType:
    """A type: `name` as Go writes it, `kind`, `size` in bytes. Identity is the object's own.

    `count` is an array's length. `elem`, `key` and `fields` raise `LookupError` where the kind has none:
    `elem` of array, chan, map, pointer, slice; `key` of map; `fields` of struct. `empty_interface` tells
    `any` from an interface with methods. `storage` is what the runtime keeps a map in, where known: the
    struct that the map's pointer leads to.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        size: int,
        *,
        count: int = 0,
        empty_interface: bool = False,
        elem: "Callable[[], GoType] | None" = None,
        key: "Callable[[], GoType] | None" = None,
        fields: "Callable[[], tuple[Field, ...]] | None" = None,
        storage: "Callable[[], GoType] | None" = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.size = size
        self.count = count
        self.empty_interface = empty_interface
        self._makers: dict[str, Callable[[], object] | None] = {
            "elem": elem,
            "key": key,
            "fields": fields,
            "storage": storage,
        }
        self._made: dict[str, object] = {}

    def __repr__(self) -> str:
        return f"GoType({self.name!r}, {self.kind.name}, {self.size})"

    def _get(self, what: str) -> object:
        if what not in self._made:
            maker = self._makers[what]
            if maker is None:
                raise LookupError(f"{self.name} ({self.kind.name.lower()}) has no {what}")
            self._made[what] = maker()
        return self._made[what]

    @property
    def elem(self) -> "GoType":
        """The type of elements, or what a pointer leads to."""
        made = self._get("elem")
        assert isinstance(made, GoType)
        return made

    @property
    def key(self) -> "GoType":
        """The type of a map's keys."""
        made = self._get("key")
        assert isinstance(made, GoType)
        return made

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a struct, in order of declaration."""
        made = self._get("fields")
        assert isinstance(made, tuple)
        return made

    @property
    def storage(self) -> "GoType":
        """The struct behind a map's pointer."""
        made = self._get("storage")
        assert isinstance(made, GoType)
        return made

    def find_field(self, name: str) -> Field | None:
        """The field of that name."""
        return next((field for field in self.fields if field.name == name), None)

    def find_path(self, path: str) -> tuple[int, "GoType"] | None:
        """The offset and type of a field of fields, such as "sched.pc"; None when a step is missing."""
        offset, current = 0, self
        for name in path.split("."):
            if current.kind is not Kind.STRUCT:
                return None
            field = current.find_field(name)
            if field is None:
                return None
            offset, current = offset + field.offset, field.type
        return offset, current
