"""Which variables of a program are remote: from what a user names to addresses, or one line that says why not.

    --remote-var NAME                a package-level variable, by its full name, such as main.counter
    --remote-type TYPE               all package-level variables of that type, such as main.Gauge
    --remote-range [NAME=]START-END  addresses as linked, hexadecimal, such as hits=0x593ff8-0x594000

Refused are what cannot be remote with all that a program may do to it: code, constants, Go's own runtime, and ranges
that cut a variable's word in two. Variables with pointers can be remote where no other program shares them: what they
lead to is in this one's memory. They stay where they are, since the garbage collector looks for them there.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from goabi.binary import GoBinary
from goabi.elf import ElfFile, Symbol
from goabi.elf_header import PF_W, PF_X
from goabi.errors import GoAbiError
from ptserver.errors import PtServerError
from ptserver.remote_memory.options import Wanted
from ptserver.remote_memory.shared import MAX_NAME_BYTES, MAX_VARIABLE_BYTES
from stepping.remote_memory import RemoteVariable
from stepping.static_references import Reference, UnclearReferenceError, find_references
from stepping.static_references_arm64 import find_page_references

_RANGE = re.compile(r"(?:(?P<name>[^=]+)=)?(?:0x)?(?P<start>[0-9a-fA-F]+)-(?:0x)?(?P<end>[0-9a-fA-F]+)")
_WORD = 8
#: Larger variables stay: most of their pages are their own anyway.
_MAX_MOVED_BYTES = 256 << 10
_SHF_EXECINSTR = 4
_STT_OBJECT, _STT_FUNC, _STT_TLS = 1, 2, 6
_RUNTIME = ("runtime.", "runtime/", "internal/")


class RemoteVariableError(PtServerError):
    """What was named cannot be remote."""

    exit_status = 64


@dataclass(frozen=True)
class Plan:
    """The remote variables of a program, at the addresses of its link.

    moved: those that get pages of their own, with what refers to them in the code; in_place: the others, with why
    they are not moved. entry: where the program begins.
    """

    moved: dict[RemoteVariable, list[Reference]]
    in_place: dict[RemoteVariable, str]
    entry: int

    def biased(self, bias: int) -> "Plan":
        """Return the plan for a program that was loaded *bias* beyond where it was linked."""

        def there(variable: RemoteVariable) -> RemoteVariable:
            return RemoteVariable(variable.address + bias, variable.size, variable.name)

        return Plan(
            {
                there(variable): [Reference(place + bias, target + bias) for place, target in references]
                for variable, references in self.moved.items()
            },
            {there(variable): why for variable, why in self.in_place.items()},
            self.entry + bias,
        )


def plan(path: str, wanted: Wanted, *, emulated: bool = False, shared: bool = True) -> Plan:
    """Return the plan for the program at *path*, which will be executed natively, or *emulated*.

    shared: whether other programs may have the same variables.

    Raises:
        RemoteVariableError: something that is wanted cannot be.
        goabi.errors.GoAbiError, OSError: the file cannot be read.
    """
    try:
        with GoBinary.open(path) as binary:
            return _Planner(binary.elf, binary, emulated, shared).plan(wanted)
    except GoAbiError:
        with ElfFile(path) as elf:  # not Go's
            return _Planner(elf, None, emulated, shared).plan(wanted)


class _Planner:
    def __init__(self, elf: ElfFile, binary: GoBinary | None, emulated: bool, shared: bool) -> None:
        self._elf = elf
        self._shared = shared
        self._binary = binary
        if elf.header.arch != "amd64" and not emulated:
            raise RemoteVariableError("remote variables need a program for amd64, or --engine=emulate")

    def plan(self, wanted: Wanted) -> Plan:
        names = [
            *wanted.variables,
            *(name for type_name in wanted.types for name in self._of_type(type_name)),
        ]
        variables = [self._named(name) for name in dict.fromkeys(names)]
        named = set(variables)
        variables += [self._range(text) for text in wanted.ranges]
        _check_disjoint(variables)
        for variable in variables:
            self._check_place(variable)
        moved: dict[RemoteVariable, list[Reference]] = {}
        in_place = {variable: "a range stays where it is" for variable in variables if variable not in named}
        for variable in variables:
            if variable in named and self._holds_pointers(variable):
                in_place[variable] = "the garbage collector looks there for the pointers that it holds"
        free = [variable for variable in variables if variable not in in_place]
        for variable, references in self._references(free).items():
            if isinstance(references, UnclearReferenceError):
                in_place[variable] = str(references)
            else:
                moved[variable] = references
        return Plan(moved, in_place, self._elf.header.entry)

    # From names to addresses.

    def _named(self, name: str) -> RemoteVariable:
        symbol = self._elf.find_symbol(name)
        if symbol is None and self._binary is None:
            # Other linkers than Go's let names share their ends, which a search does not find.
            symbol = next((one for one in self._elf.iter_symbols() if one.name == name), None)
        if symbol is not None and symbol.type == _STT_FUNC:
            raise RemoteVariableError(f"{name} is a function; only variables can be remote")
        if symbol is not None and symbol.type == _STT_TLS:
            raise RemoteVariableError(f"{name} belongs to each thread by itself; it cannot be remote")
        if symbol is not None:
            address, size = symbol.addr, symbol.size
        else:
            variable = None
            if self._binary is not None and self._binary.dwarf is not None:
                variable = self._binary.dwarf.find_variable(name)
            if variable is None:
                raise RemoteVariableError(self._unknown(name))
            address, size = variable.addr, variable.type.size
        if size == 0:
            raise RemoteVariableError(f"{name} has no bytes, so it cannot be remote")
        if size > MAX_VARIABLE_BYTES:
            raise RemoteVariableError(f"{name} has {size} bytes; at most {MAX_VARIABLE_BYTES} can be remote")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise RemoteVariableError(f"a name of more than {MAX_NAME_BYTES} bytes: {name[:40]}...")
        return RemoteVariable(address, size, name)

    def _of_type(self, name: str) -> list[str]:
        """Return the names of the variables of a type."""
        dwarf = self._binary.dwarf if self._binary is not None else None
        if dwarf is None:
            raise RemoteVariableError(f"{self._elf.path} has no debugging information, so no types are known")
        wanted = dwarf.find_type(name)
        if wanted is None:
            raise RemoteVariableError(f"{self._elf.path} has no type {name}")
        found = []
        for symbol in self._elf.iter_symbols():
            if symbol.type == _STT_OBJECT and symbol.size == wanted.size:
                variable = dwarf.find_variable(symbol.name)
                if variable is not None and variable.addr == symbol.addr and variable.type.name == name:
                    found.append(symbol.name)
        if not found:
            raise RemoteVariableError(f"{self._elf.path} has no package-level variable of type {name}")
        return found

    def _unknown(self, name: str) -> str:
        if not self._elf.has_symbols and (self._binary is None or self._binary.dwarf is None):
            return (
                f"{self._elf.path} has neither a symbol table nor debugging information, so {name} is not found: "
                "build it without -s, or name a range"
            )
        function = self._function_with_local(name)
        if function is not None:
            return (
                f"{name.rpartition('.')[2]} is a local variable of {function}: it lives on a stack or in a register, "
                "and only package-level variables can be remote"
            )
        names = [symbol.name for symbol in self._elf.iter_symbols() if symbol.type == _STT_OBJECT]
        close = difflib.get_close_matches(name, names, 1) or [
            other for other in names if other.rpartition(".")[2] == name
        ]
        hint = (
            f"; did you mean {close[0]}?" if close else "; a local variable, or one that nobody uses, is none"
        )
        return f"{self._elf.path} has no variable {name}{hint}"

    def _function_with_local(self, name: str) -> str | None:
        """Return the function that *name*, as in ``main.main.x`` or ``main.x``, may be a local variable of."""
        dwarf = self._binary.dwarf if self._binary is not None else None
        owner, _, local = name.rpartition(".")
        if self._binary is None or dwarf is None or not owner:
            return None
        functions = self._binary.functions
        if functions.find_function_by_name(owner) is not None:
            return owner if dwarf.has_local(owner, local) else None
        return next(
            (
                function.name
                for function in functions.iter_functions()
                if function.name.startswith(f"{owner}.") and dwarf.has_local(function.name, local)
            ),
            None,
        )

    def _range(self, text: str) -> RemoteVariable:
        match = _RANGE.fullmatch(text)
        if match is None:
            raise RemoteVariableError(f"{text!r} is not a range: START-END or NAME=START-END, in hexadecimal")
        start, end = int(match["start"], 16), int(match["end"], 16)
        name = match["name"] or f"{start:#x}-{end:#x}"
        if start >= end:
            raise RemoteVariableError(f"the range {text} ends before it begins")
        if end - start > MAX_VARIABLE_BYTES:
            raise RemoteVariableError(f"the range {text} has more than {MAX_VARIABLE_BYTES} bytes")
        if start % _WORD or end % _WORD:
            raise RemoteVariableError(
                f"the range {text} begins or ends within a word: an operand could be remote by half; "
                f"use multiples of {_WORD}"
            )
        self._check_whole(text, start, end)
        return RemoteVariable(start, end - start, name)

    def _check_whole(self, text: str, start: int, end: int) -> None:
        """Refuse to cut a variable of at most two words, which one instruction may touch as a whole."""
        for symbol in self._elf.iter_symbols():
            inner = any(symbol.addr < place < symbol.addr + symbol.size for place in (start, end))
            if inner and symbol.type == _STT_OBJECT and symbol.size <= 2 * _WORD:
                raise RemoteVariableError(
                    f"the range {text} cuts {symbol.name} ({symbol.size} bytes at {symbol.addr:#x}) in two"
                )

    # What can be remote.

    def _check_place(self, variable: RemoteVariable) -> None:
        segment = next(
            (
                segment
                for segment in self._elf.load_segments
                if segment.vaddr <= variable.address < segment.vaddr + segment.memsz
            ),
            None,
        )
        if segment is None or variable.end > segment.vaddr + segment.memsz:
            raise RemoteVariableError(
                f"{variable.name} is not within the program's own variables; heap, stacks, thread-local storage "
                "and the vDSO cannot be remote"
            )
        if segment.flags & PF_X:
            raise RemoteVariableError(f"{variable.name} lies in the program's code, which cannot be remote")
        if not segment.flags & PF_W:
            raise RemoteVariableError(f"{variable.name} is a constant, which cannot be remote")
        self._check_owner(variable)
        if self._shared and self._holds_pointers(variable):
            raise RemoteVariableError(
                f"{variable.name} holds pointers (or strings, slices, maps, interfaces): they lead into this "
                "program's memory and mean nothing to others, so it cannot be at a server that programs share"
            )

    def _check_owner(self, variable: RemoteVariable) -> None:
        for symbol in self._symbols_in(variable):
            if self._binary is not None and symbol.name.startswith(_RUNTIME):
                raise RemoteVariableError(
                    f"{symbol.name} belongs to Go's runtime, which cannot do without it for a moment"
                )

    def _symbols_in(self, variable: RemoteVariable) -> Iterable[Symbol]:
        return (
            symbol
            for symbol in self._elf.iter_symbols()
            if symbol.size and symbol.addr < variable.end and variable.address < symbol.addr + symbol.size
        )

    def _holds_pointers(self, variable: RemoteVariable) -> bool:
        """Go's linker keeps variables with pointers apart from those without."""
        if self._binary is None:
            return False
        module = self._binary.module
        free = ((module.noptrdata, module.end_noptrdata), (module.noptrbss, module.end_noptrbss))
        return not any(low <= variable.address and variable.end <= high for low, high in free)

    def _references(
        self, variables: Sequence[RemoteVariable]
    ) -> dict[RemoteVariable, list[Reference] | UnclearReferenceError]:
        """Return what refers to each of *variables*, or why it is not certain that this would be all."""
        found: dict[RemoteVariable, list[Reference] | UnclearReferenceError] = {}
        for variable in variables:
            found[variable] = []
            try:
                self._check_no_pointer_to(variable)
            except UnclearReferenceError as error:
                found[variable] = error
        clear = [variable for variable, references in found.items() if references == []]
        spans = [(variable.address, variable.end) for variable in clear]
        for address, code in self._code() if clear else ():
            if self._elf.header.arch == "arm64":
                references_of_all = find_page_references(code, address, spans)
            else:
                references_of_all = find_references(code, address, spans, self._function_of)
            for variable, more in zip(clear, references_of_all, strict=True):
                known = found[variable]
                if isinstance(more, UnclearReferenceError):
                    found[variable] = more
                elif not isinstance(known, UnclearReferenceError):
                    known += more
        return found

    def _code(self) -> Iterator[tuple[int, bytes]]:
        """Yield all code with its address: of the sections, if there are any, else of the segments."""
        sections = [section for section in self._elf.sections.values() if section.flags & _SHF_EXECINSTR]
        for section in sections:
            yield section.addr, self._elf.read(section.addr, section.size)
        if not sections:
            for segment in self._elf.load_segments:
                if segment.flags & PF_X:
                    yield segment.vaddr, self._elf.segment_bytes(segment)

    def _function_of(self, address: int) -> tuple[int, int] | None:
        if self._binary is None:
            return None
        function = self._binary.functions.find_function(address)
        return None if function is None else (function.entry, function.end)

    def _check_no_pointer_to(self, variable: RemoteVariable) -> None:
        """Refuse to move what a pointer in the program's data leads to: a word there may be a number as well."""
        if self._binary is None:
            raise UnclearReferenceError(variable.address, "is not Go's")
        if self._elf.header.type == "DYN":
            places = [
                place
                for place, target in self._elf.relocations[1].items()
                if variable.address <= target < variable.end
            ]
            if places:
                raise UnclearReferenceError(places[0], "is a pointer to it")
            return
        if variable.size > _MAX_MOVED_BYTES:
            raise UnclearReferenceError(variable.address, f"has {variable.size} bytes")
        for segment in self._elf.load_segments:
            if not segment.flags & PF_X:
                data = self._elf.segment_bytes(segment)
                for upper in range(variable.address >> 8, (variable.end - 1 >> 8) + 1):
                    self._check_words(data, segment.vaddr, upper.to_bytes(_WORD - 1, "little"), variable)

    def _check_words(self, data: bytes, address: int, upper: bytes, variable: RemoteVariable) -> None:
        """Refuse if *data*, at *address*, has a word that leads to *variable*. upper: all its bytes but the first."""
        at = data.find(upper)
        while at >= 0:
            place = address + at - 1
            value = int.from_bytes(data[at - 1 : at + _WORD - 1], "little") if at else 0
            if place % _WORD == 0 and variable.address <= value < variable.end:
                raise UnclearReferenceError(place, "may be a pointer to it")
            at = data.find(upper, at + 1)


def _check_disjoint(variables: Sequence[RemoteVariable]) -> None:
    ordered = sorted(variables)
    for first, second in itertools.pairwise(ordered):
        if first.end > second.address:
            raise RemoteVariableError(f"{first.name} and {second.name} overlap")
    names = [variable.name for variable in variables]
    for name in names:
        if names.count(name) > 1:
            raise RemoteVariableError(f"two remote variables are called {name}")
