"""Where the fields of runtime structures are in this binary: from its DWARF, else from the generated table.

The table (`_generated_layouts.json`) is made by `goabi.gen_layouts` from real builds of every supported Go
version. When neither knows, the error says so: nothing is ever guessed.

    table     = { release: { arch: { "built_with": text, "structs": { name: [size, { path: [offset, size] } ] },
                                     "wait_reasons": [text] } } }
"""

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from goabi.elf_header import ArchName
from goabi.errors import LayoutError, MemoryFaultError
from goabi.layout_specs import HARMLESS_EXPERIMENTS, STRUCTS, WAIT_REASONS, StructSpec
from goabi.memory import MemoryReader, read_words
from goabi.version import GoVersion

if TYPE_CHECKING:
    from goabi.dwarf import Dwarf
    from goabi.gotypes import GoType

TABLE_NAME = "_generated_layouts.json"
_MAX_WAIT_REASONS = 256
_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Layout(NamedTuple):
    """One struct: its size, and offset and size of each field, in bytes."""

    name: str
    size: int
    fields: Mapping[str, tuple[int, int]]

    def has(self, field: str) -> bool:
        """Whether this version has the field."""
        return field in self.fields

    def offset(self, field: str) -> int:
        """Where the field is. Raises: `LayoutError`."""
        try:
            return self.fields[field][0]
        except KeyError:
            raise LayoutError(f"this Go's runtime struct {self.name} has no field {field}") from None

    def get(self, raw: bytes, field: str) -> int:
        """The unsigned value of a field in the struct's bytes. Raises: `LayoutError` when it is not there."""
        offset = self.offset(field)
        size = self.fields[field][1]
        if offset + size > len(raw):
            raise LayoutError(f"{len(raw)} bytes are too few for {self.name}.{field}")
        return int.from_bytes(raw[offset : offset + size], "little")

    def unpacker(self, names: Iterable[str]) -> struct.Struct:
        """A `struct.Struct` that takes those fields, in order of offset, out of the struct's bytes at once."""
        position, text = 0, "<"
        for offset, size in sorted(self.fields[name] for name in names):
            if offset < position or size not in _FORMATS:
                raise LayoutError(f"the fields of {self.name} overlap or are no integers")
            text += f"{offset - position}x{_FORMATS[size]}"
            position = offset + size
        return struct.Struct(text)


@dataclass(frozen=True, slots=True)
class Layouts:
    """All structs by the short names of `goabi.layout_specs`; `source` says where they come from."""

    structs: Mapping[str, Layout]
    wait_reasons: tuple[str, ...]
    source: str

    def __getitem__(self, name: str) -> Layout:
        """The struct of that name. Raises: `LayoutError`."""
        try:
            return self.structs[name]
        except KeyError:
            raise LayoutError(f"this Go's runtime has no struct {name}") from None

    def has(self, name: str) -> bool:
        """Whether this version has the struct."""
        return name in self.structs


def find_layouts(
    version: GoVersion, arch: ArchName, dwarf: "Dwarf | None", image: MemoryReader, *, force: bool = False
) -> Layouts:
    """The layouts for a binary: DWARF first, then the table.

    Without `force`, a version that was never tested is refused even when its DWARF would do.
    Raises: `LayoutError` naming the version and what can be done.
    """
    if not version.is_supported and not (force and dwarf is not None):
        way = "; --force tries its debugging information" if dwarf is not None else ""
        raise LayoutError(f"built by {version}; Go 1.21 to 1.27 are supported{way}")
    if dwarf is not None:
        return layouts_from_dwarf(dwarf, image)
    return layouts_from_table(version, arch)


def layouts_from_dwarf(dwarf: "Dwarf", image: MemoryReader) -> Layouts:
    """The layouts as the binary's own debugging information has them. Raises: `LayoutError`, `DwarfError`."""
    structs = {}
    for spec in STRUCTS:
        found = next((t for t in map(dwarf.find_type, spec.dwarf_names) if t is not None), None)
        if found is not None:
            structs[spec.name] = _layout_from_type(spec, found)
        elif not spec.optional:
            raise LayoutError(f"the debugging information lacks {spec.dwarf_names[0]}")
    return Layouts(structs, _read_wait_reasons(dwarf, image), "DWARF")


def _layout_from_type(spec: StructSpec, found: "GoType") -> Layout:
    fields = {}
    for path in (*spec.fields, *spec.optional_fields):
        place = found.find_path(path)
        if place is not None:
            fields[path] = (place[0], place[1].size)
        elif path in spec.fields:
            raise LayoutError(f"{found.name} has no field {path} in this Go version")
    return Layout(spec.name, found.size, fields)


def _read_wait_reasons(dwarf: "Dwarf", image: MemoryReader) -> tuple[str, ...]:
    variable = dwarf.find_variable(WAIT_REASONS)
    if variable is None or not 0 < variable.type.count <= _MAX_WAIT_REASONS:
        raise LayoutError(f"the debugging information lacks {WAIT_REASONS}")
    try:
        words = read_words(image, variable.addr, 2 * variable.type.count)
        return tuple(
            image.read(pointer, min(length, 256)).decode("utf-8", "replace") if length else ""
            for pointer, length in zip(words[::2], words[1::2], strict=True)
        )
    except MemoryFaultError as error:
        raise LayoutError(f"{WAIT_REASONS} points outside of the binary") from error


def layouts_from_table(version: GoVersion, arch: ArchName) -> Layouts:
    """The layouts of the generated table. Raises: `LayoutError`."""
    row = _table().get("{}.{}".format(*version.release), {}).get(arch)
    if row is None:
        raise LayoutError(f"no layouts for {version} on {arch}, and the binary has no debugging information")
    unknown = set(_experiments(version)) - HARMLESS_EXPERIMENTS
    if unknown:
        raise LayoutError(
            f"built with GOEXPERIMENT={','.join(sorted(unknown))} and without debugging information: "
            "the places of runtime fields are not known"
        )
    structs = {
        name: Layout(name, size, {path: (offset, length) for path, (offset, length) in fields.items()})
        for name, (size, fields) in row["structs"].items()
    }
    return Layouts(structs, tuple(row["wait_reasons"]), f"table made with {row['built_with']}")


def _experiments(version: GoVersion) -> list[str]:
    _, _, names = version.text.partition(" X:")
    return [name for name in names.split(" ")[0].split(",") if name]


@cache
def _table() -> dict[str, dict[str, Any]]:
    import json  # here, for who only names functions needs no table

    with open(os.path.join(os.path.dirname(__file__), TABLE_NAME), "rb") as file:
        table: dict[str, dict[str, Any]] = json.load(file)
    return table
