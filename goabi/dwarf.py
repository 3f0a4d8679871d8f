"""Debugging information: types, variables and parameters by name. One of the two importers of pyelftools.

pyelftools reads some 30,000 entries a second, and a large program has millions. So nothing is ever walked: Go's
compiler writes names in line (DW_FORM_string, the first attribute), and every unit's entries have one-byte
abbreviation codes, hence an entry is found by a search for its name in the section's bytes and then parsed and
checked where it lies. DWARF 4 (to Go 1.24) and 5 (since Go 1.25) both. Not locked: use from one thread.

Source: cmd/internal/dwarf/dwarf.go, cmd/link/internal/ld/dwarf.go (Go 1.21 to 1.27).
"""

import io
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from goabi.elf import ElfFile
from goabi.errors import DwarfError
from goabi.gotypes import Field, GoType, Kind

if TYPE_CHECKING:
    from elftools.dwarf.die import DIE

_AT_GO_KIND = 0x2900
_AT_GO_KEY = 0x2901
_AT_GO_ELEM = 0x2902
_LANGUAGE_GO = 0x16
_TYPE_TAGS = frozenset(
    f"DW_TAG_{name}_type" for name in ("structure", "base", "pointer", "array", "subroutine", "unspecified")
) | {"DW_TAG_typedef"}
_MAX_TYPEDEFS = 16
_SECTIONS = {
    "debug_info_sec": ".debug_info",
    "debug_abbrev_sec": ".debug_abbrev",
    "debug_str_sec": ".debug_str",
    "debug_loc_sec": ".debug_loc",
    "debug_ranges_sec": ".debug_ranges",
    "debug_line_sec": ".debug_line",
    "debug_addr_sec": ".debug_addr",
    "debug_str_offsets_sec": ".debug_str_offsets",
    "debug_line_str_sec": ".debug_line_str",
    "debug_loclists_sec": ".debug_loclists",
    "debug_rnglists_sec": ".debug_rnglists",
}
_UNUSED_SECTIONS = (
    *("debug_aranges_sec", "debug_frame_sec", "eh_frame_sec", "debug_pubtypes_sec", "debug_pubnames_sec"),
    *("debug_sup_sec", "gnu_debugaltlink_sec", "debug_types_sec"),
)


@dataclass(frozen=True, slots=True)
class Variable:
    """A package-level variable: its link-time address and type."""

    name: str
    addr: int
    type: GoType


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a function, in order of declaration; results come after arguments."""

    name: str
    type: GoType
    is_result: bool


class Dwarf:
    """The debugging information of a file. Raises: `DwarfError` when there is none."""

    def __init__(self, elf: ElfFile) -> None:
        info = elf.section_data(".debug_info")
        if not info:
            raise DwarfError(f"{elf.path}: no debugging information (built with -ldflags=-w or stripped)")
        self._elf = elf
        self._info = info
        self._types: dict[int, GoType] = {}

    @cached_property
    def _dwarf(self) -> Any:
        from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

        def section(name: str) -> Any:
            data = self._info if name == ".debug_info" else self._elf.section_data(name)
            if data is None:
                return None
            return DebugSectionDescriptor(io.BytesIO(data), name, 0, len(data), 0)

        machine = {"amd64": "x64", "arm64": "AArch64"}[self._elf.header.arch]
        arguments = {argument: section(name) for argument, name in _SECTIONS.items()}
        arguments |= dict.fromkeys(_UNUSED_SECTIONS)
        return DWARFInfo(config=DwarfConfig(True, machine, 8), **arguments)

    @cached_property
    def _unit_offsets(self) -> list[int]:
        """Where the units begin, by their lengths alone."""
        offsets, position = [], 0
        while position + 12 <= len(self._info):
            (length,) = struct.unpack_from("<I", self._info, position)
            if length >= 0xFFFFFFF0 or position + 4 + length > len(self._info):
                raise DwarfError(f"the unit at {position:#x} of .debug_info is damaged or of 64-bit DWARF")
            offsets.append(position)
            position += 4 + length
        return offsets

    # -- entries ----------------------------------------------------------------------------------------------

    def _parse(self, offset: int) -> "DIE":
        """The entry at an offset of .debug_info."""
        # Imported here, as all of pyelftools: most runs need no debugging information.
        from elftools.common.exceptions import DWARFError, ELFParseError
        from elftools.construct.core import ConstructError
        from elftools.dwarf.die import DIE

        index = bisect_right(self._unit_offsets, offset) - 1
        if index < 0:
            raise DwarfError(f"no unit holds offset {offset:#x} of .debug_info")
        try:
            unit = self._dwarf.get_CU_at(self._unit_offsets[index])
            # An indexed address makes pyelftools parse the unit's first entry in the midst of another, and
            # lose its place: have it parsed before.
            unit.get_top_DIE()
            die = DIE(cu=unit, stream=self._dwarf.debug_info_sec.stream, offset=offset)
            if die.size <= 0:
                raise DwarfError(f"the entry at {offset:#x} of .debug_info is damaged")
        except _damage(DWARFError, ELFParseError, ConstructError) as error:
            raise DwarfError(f"the entry at {offset:#x} of .debug_info is damaged: {error!r:.80}") from error
        return die

    def _iter_children(self, die: "DIE") -> Iterator["DIE"]:
        """The entry's direct children, by parsing on from its end."""
        if not die.has_children:
            return
        offset, depth = die.offset + die.size, 0
        while True:
            child = self._parse(offset)
            offset += child.size
            if child.is_null():
                if depth == 0:
                    return
                depth -= 1
                continue
            if depth == 0:
                yield child
            if child.has_children:
                depth += 1

    def _iter_named(self, name: str, tags: frozenset[str]) -> Iterator["DIE"]:
        """The entries of Go units with one of the tags and exactly that name."""
        needle = name.encode() + b"\0"
        position = self._info.find(needle)
        while position >= 0:
            # The byte before is the abbreviation code (Go uses less than 128) if the whole name starts here.
            if position >= 12 and 0 < self._info[position - 1] < 0x80:
                die = self._parse_candidate(position - 1, needle)
                if die is not None and die.tag in tags and self._is_go_unit(die):
                    yield die
            position = self._info.find(needle, position + 1)

    def _parse_candidate(self, offset: int, needle: bytes) -> "DIE | None":
        index = bisect_right(self._unit_offsets, offset) - 1
        if index < 0 or offset < self._unit_offsets[index] + 11:
            return None
        try:
            die = self._parse(offset)
        except DwarfError:
            return None  # this was not the start of an entry
        if die.is_null():
            return None
        first = next(iter(die.attributes.values()), None)
        if first is None or first.name != "DW_AT_name" or first.form != "DW_FORM_string":
            return None
        return die if first.offset == offset + 1 and first.value == needle[:-1] else None

    def _is_go_unit(self, die: "DIE") -> bool:
        top = self._parse(die.cu.cu_die_offset)
        language = top.attributes.get("DW_AT_language")
        return language is not None and language.value == _LANGUAGE_GO

    def _reference(self, die: "DIE", attribute: str | int) -> int:
        value = _attributes(die).get(attribute)
        if value is None:
            raise DwarfError(f"the entry at {die.offset:#x} of .debug_info lacks attribute {attribute}")
        target = _number(value)
        return target if value.form == "DW_FORM_ref_addr" else target + int(die.cu.cu_offset)

    # -- types ------------------------------------------------------------------------------------------------

    def find_type(self, name: str) -> GoType | None:
        """The type of that full name ("runtime.g", "map[string]int", "*main.T")."""
        for die in self._iter_named(name, _TYPE_TAGS):
            if die.tag == "DW_TAG_typedef" and _AT_GO_KIND not in _attributes(die):
                continue  # only a second name of the type that follows
            return self._type_at(die.offset)
        return None

    def _type_at(self, offset: int) -> GoType:
        known = self._types.get(offset)
        if known is None:
            die = self._parse(offset)
            for _ in range(_MAX_TYPEDEFS):
                if die.tag != "DW_TAG_typedef" or _AT_GO_KIND in _attributes(die):
                    break
                die = self._parse(self._reference(die, "DW_AT_type"))
            known = self._types.get(die.offset)
            if known is None:
                known = self._types[die.offset] = self._make_type(die)
            self._types[offset] = known
        return known

    def _make_type(self, die: "DIE") -> GoType:
        name = _name(die) or "?"
        kind = self._kind(die)
        size = self._size(die, kind)
        if kind is Kind.STRUCT:
            return GoType(name, kind, size, fields=lambda: self._fields(die))
        if kind is Kind.ARRAY:
            elem, count = self._type_later(die, "DW_AT_type"), self._array_count(die)
            return GoType(name, kind, size, count=count, elem=elem)
        if kind is Kind.POINTER:
            return GoType(name, kind, size, elem=self._type_later(die, "DW_AT_type"))
        if kind in (Kind.SLICE, Kind.CHAN):
            return GoType(name, kind, size, elem=self._type_later(die, _AT_GO_ELEM))
        if kind is Kind.MAP:
            return GoType(
                name,
                kind,
                size,
                elem=self._type_later(die, _AT_GO_ELEM),
                key=self._type_later(die, _AT_GO_KEY),
                storage=lambda: self._map_storage(die),
            )
        if kind is Kind.INTERFACE:
            return GoType(name, kind, size, empty_interface=self._is_empty_interface(die))
        return GoType(name, kind, size)

    def _kind(self, die: "DIE") -> Kind:
        attribute = _attributes(die).get(_AT_GO_KIND)
        number = 0 if attribute is None else _number(attribute) & 31
        if number:
            try:
                return Kind(number)
            except ValueError as error:
                raise DwarfError(f"the type at {die.offset:#x} of .debug_info is of kind {number}") from error
        # The linker's own types (map storage and the like) have no kind.
        return {
            "DW_TAG_structure_type": Kind.STRUCT,
            "DW_TAG_array_type": Kind.ARRAY,
            "DW_TAG_pointer_type": Kind.POINTER,
            "DW_TAG_subroutine_type": Kind.FUNC,
        }.get(str(die.tag), Kind.INVALID)

    def _size(self, die: "DIE", kind: Kind) -> int:
        size = die.attributes.get("DW_AT_byte_size")
        if size is not None:
            return _number(size)
        return 16 if kind is Kind.INTERFACE else 8  # what is left is one pointer, or two

    def _type_later(self, die: "DIE", attribute: str | int) -> Any:
        if attribute not in _attributes(die):
            return None
        offset = self._reference(die, attribute)
        return lambda: self._type_at(offset)

    def _fields(self, die: "DIE") -> tuple[Field, ...]:
        fields = []
        for child in self._iter_children(die):
            if child.tag == "DW_TAG_member":
                name = _name(child)
                place = child.attributes.get("DW_AT_data_member_location")
                if name is None or place is None or not isinstance(place.value, int):
                    raise DwarfError(f"the field at {child.offset:#x} of .debug_info is damaged")
                fields.append(Field(name, place.value, self._type_at(self._reference(child, "DW_AT_type"))))
        return tuple(fields)

    def _array_count(self, die: "DIE") -> int:
        for child in self._iter_children(die):
            if child.tag == "DW_TAG_subrange_type":
                count = child.attributes.get("DW_AT_count") or child.attributes.get("DW_AT_upper_bound")
                if count is not None:
                    last = count.name == "DW_AT_upper_bound"
                    return _number(count) + 1 if last else _number(count)
        return 0

    def _map_storage(self, die: "DIE") -> GoType:
        """A map is a typedef of a pointer to its storage struct."""
        pointer = self._type_at(self._reference(die, "DW_AT_type"))
        return pointer.elem if pointer.kind is Kind.POINTER else pointer

    def _is_empty_interface(self, die: "DIE") -> bool:
        for _ in range(_MAX_TYPEDEFS):
            if die.tag != "DW_TAG_typedef":
                break
            die = self._parse(self._reference(die, "DW_AT_type"))
        return _name(die) == "runtime.eface"

    # -- variables and parameters -----------------------------------------------------------------------------

    def find_variable(self, name: str) -> Variable | None:
        """The package-level variable of that full name ("main.counter")."""
        for die in self._iter_named(name, frozenset({"DW_TAG_variable"})):
            location = die.attributes.get("DW_AT_location")
            addr = None if location is None else self._static_address(die, location.value)
            if addr is not None:
                return Variable(name, addr, self._type_at(self._reference(die, "DW_AT_type")))
        return None

    def _static_address(self, die: "DIE", expression: Any) -> int | None:
        raw = bytes(expression) if isinstance(expression, list) else b""
        if len(raw) == 9 and raw[0] == 0x03:  # DW_OP_addr
            return int.from_bytes(raw[1:], "little")
        return None

    def find_parameters(self, function: str) -> tuple[Parameter, ...] | None:
        """The parameters of a function by its full name, arguments and results; None when it is not known."""
        for die in self._iter_named(function, frozenset({"DW_TAG_subprogram"})):
            return tuple(self._iter_parameters(die))
        return None

    def has_local(self, function: str, name: str) -> bool:
        """Whether the function of that full name has a parameter or a local variable *name*, in whichever block."""
        waiting = list(self._iter_named(function, frozenset({"DW_TAG_subprogram"})))
        while waiting:
            for child in self._iter_children(waiting.pop()):
                if child.tag in ("DW_TAG_variable", "DW_TAG_formal_parameter") and _name(child) == name:
                    return True
                if child.tag == "DW_TAG_lexical_block":
                    waiting.append(child)
        return False

    def find_line(self, addr: int) -> tuple[str, int] | None:
        """The source file and line of the instruction at *addr*, of any compiler: all line tables are read for it.

        Raises:
            DwarfError: they are damaged.
        """
        from elftools.common.exceptions import DWARFError, ELFParseError
        from elftools.construct.core import ConstructError

        try:
            for unit in self._dwarf.iter_CUs():
                found = self._line_in(unit, addr)
                if found is not None:
                    return found
        except _damage(DWARFError, ELFParseError, ConstructError) as error:
            raise DwarfError(f"the table of source lines is damaged: {error!r:.80}") from error
        return None

    def _line_in(self, unit: Any, addr: int) -> tuple[str, int] | None:
        unit.get_top_DIE()
        program = self._dwarf.line_program_for_CU(unit)
        if program is None:
            return None
        before = None
        for state in (entry.state for entry in program.get_entries()):
            if state is None:
                continue
            if before is not None and not before.end_sequence and before.address <= addr < state.address:
                # Files are numbered from 1 up to DWARF 4, from 0 since.
                first = 0 if program.header.version >= 5 else 1
                name = program.header.file_entry[before.file - first].name
                return name.decode("utf-8", "replace"), before.line
            before = state
        return None

    def _iter_parameters(self, die: "DIE") -> Iterator[Parameter]:
        for child in self._iter_children(die):
            if child.tag == "DW_TAG_formal_parameter":
                result = child.attributes.get("DW_AT_variable_parameter")
                yield Parameter(
                    _name(child) or "",
                    self._type_at(self._reference(child, "DW_AT_type")),
                    result is not None and bool(result.value),
                )


def _name(die: "DIE") -> str | None:
    """The entry's name; None where it has none, or where damage has given the attribute another form."""
    attribute = die.attributes.get("DW_AT_name")
    if attribute is None or not isinstance(attribute.value, bytes):
        return None
    return attribute.value.decode("utf-8", "replace")


def _number(attribute: Any) -> int:
    if not isinstance(attribute.value, int):
        raise DwarfError(f"{attribute.name} at {attribute.offset:#x} of .debug_info is not a number")
    return attribute.value


def _attributes(die: "DIE") -> dict[Any, Any]:
    """The entry's attributes; Go's own are known to the library by number only."""
    return die.attributes


def _damage(*library: type[Exception]) -> tuple[type[Exception], ...]:
    """What pyelftools raises on damaged input: its own errors, and whatever its parsing trips over."""
    return (
        *library,
        *(KeyError, IndexError, ValueError, TypeError, AttributeError),
        *(struct.error, AssertionError, OverflowError, MemoryError, RecursionError, EOFError),
    )
