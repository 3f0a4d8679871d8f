"""A Go program's file: version, functions, layouts, where its variables are. Each part is read when asked for.

All addresses are link-time addresses; add the load bias for those of a process. Not locked: one per thread.
"""

import os
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

from goabi.code_refs import iter_static_refs
from goabi.elf import ElfFile
from goabi.errors import BuildInfoError, DwarfError, GoVersionError, LayoutError, MemoryFaultError, NotGoError
from goabi.layouts import Layouts, find_layouts, layouts_from_table
from goabi.moduledata import Moduledata, find_moduledata
from goabi.pclntab import Function, FunctionTable
from goabi.version import (
    BUILDINFO_ALIGN,
    BUILDINFO_MAGIC,
    OLDEST_SUPPORTED,
    BuildInfo,
    GoVersion,
    read_build_info,
)

if TYPE_CHECKING:
    from goabi.dwarf import Dwarf

# The function through which nearly all system calls of the standard library go; assembly in every version.
_SYSCALL6_NAMES = (
    "internal/runtime/syscall/linux.Syscall6",  # Since Go 1.26
    "internal/runtime/syscall.Syscall6",  # Since Go 1.23
    "runtime/internal/syscall.Syscall6",
)
_MAX_CODE_BYTES = 1 << 16


class GoBinary:
    """A Go program on disk. `force` allows versions that were never tested, by their DWARF.

    `prefer_table` takes layouts from the generated table even if there is DWARF, which in a large program takes
    a second to unpack. Use as a context manager, or `close()` it.
    """

    def __init__(self, elf: ElfFile, *, force: bool = False, prefer_table: bool = False) -> None:
        self.elf = elf
        self.arch = elf.arch
        self._force = force
        self._prefer_table = prefer_table

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        prefer_table: bool = False,
        copied: bool = False,
    ) -> "GoBinary":
        """The Go program at `path`; `copied`: keeping no descriptor.

        Raises: `OSError`, `ElfError`, `NotGoError`, `ModuledataError`; `GoVersionError` if it is so old that not even
        its functions can be read.
        """
        elf = ElfFile(path, copied=copied)
        try:
            binary = cls(elf, force=force, prefer_table=prefer_table)
            try:
                _ = binary.module  # whether it is Go's at all is to be known at once
            except NotGoError as error:
                binary._name_old_version(error)
                raise
        except BaseException:
            elf.close()
            raise
        return binary

    def _name_old_version(self, error: NotGoError) -> None:
        """Raise a better error than *error*, if the program says which Go built it."""
        try:
            version = self.version
        except (BuildInfoError, GoVersionError):
            return
        if version.release < OLDEST_SUPPORTED:
            raise GoVersionError(
                f"{self.path}: built by {version}, whose tables of functions are not known; "
                "Go 1.21 to 1.27 are supported"
            ) from error

    def __enter__(self) -> "GoBinary":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; nothing can be looked up afterwards."""
        self.elf.close()

    @property
    def path(self) -> str:
        """The file's name as given."""
        return self.elf.path

    @cached_property
    def module(self) -> Moduledata:
        """The linker's record of the program. Raises: `NotGoError`, `ModuledataError`."""
        return find_moduledata(self.elf)

    @cached_property
    def functions(self) -> FunctionTable:
        """The functions and lines. Raises: `PclntabError`."""
        header = self.module.pc_header
        view = self.elf.view_at(header.addr, self.module.pclntab_bytes)
        return FunctionTable(self.module, view, self.elf)

    @cached_property
    def build_info(self) -> BuildInfo:
        """Go's version, the modules and the settings of the build. Raises: `BuildInfoError`, `GoVersionError`."""
        section = self.elf.sections.get(".go.buildinfo")
        if section is not None and section.addr:
            return read_build_info(self.elf, section.addr)
        for segment in self.elf.writable_segments:
            addr = self.elf.find_in_segment(segment, BUILDINFO_MAGIC, BUILDINFO_ALIGN)
            if addr is not None:
                return read_build_info(self.elf, addr)
        raise BuildInfoError(f"{self.path}: no build information, so Go's version is not known")

    @property
    def version(self) -> GoVersion:
        """The Go that built the program. Raises: `BuildInfoError`, `GoVersionError`."""
        return self.build_info.version

    @cached_property
    def dwarf(self) -> "Dwarf | None":
        """The debugging information, if there is any."""
        from goabi.dwarf import Dwarf  # here, for most uses need none

        try:
            return Dwarf(self.elf)
        except DwarfError:
            return None

    @cached_property
    def layouts(self) -> Layouts:
        """Where the fields of the runtime's structures are. Raises: `LayoutError`, `DwarfError`..."""
        if self._prefer_table and self.version.is_supported:
            try:
                return layouts_from_table(self.version, self.elf.header.arch)
            except LayoutError:
                pass  # an experiment of which only the DWARF knows what it moved
        return find_layouts(self.version, self.elf.header.arch, self.dwarf, self.elf, force=self._force)

    # -- variables --------------------------------------------------------------------------------------------

    def find_variable_addr(self, name: str) -> int | None:
        """The link-time address of a package-level variable, by symbol table or DWARF; None when stripped."""
        symbol = self.elf.find_symbol(name)
        if symbol is not None:
            return symbol.addr
        # Without symbols there is DWARF only when built with -ldflags='-s -w=0'.
        variable = self.dwarf.find_variable(name) if self.dwarf is not None else None
        return variable.addr if variable is not None else None

    def iter_candidates(self, function_name: str) -> tuple[int, ...]:
        """Addresses of static variables that a function's code may refer to, aligned to a word, in order.

        Raises: `NotGoError` when there is no such function.
        """
        function = self.functions.find_function_by_name(function_name)
        if function is None:
            raise NotGoError(
                f"{self.path}: Go's runtime has no function {function_name}; is the file damaged?"
            )
        try:
            code = self.elf.read(function.entry, min(function.end - function.entry, _MAX_CODE_BYTES))
        except MemoryFaultError as error:
            raise NotGoError(f"{self.path}: the code of {function_name} lies outside of the file") from error
        module = self.module
        ranges = (
            (module.noptrdata, module.end_noptrdata),
            (module.data, module.end_data),
            (module.bss, module.end_bss),
            (module.noptrbss, module.end_noptrbss),
        )
        return tuple(
            sorted(
                {
                    target
                    for target in iter_static_refs(self.elf.header.arch, code, function.entry)
                    if target % 8 == 0 and any(low <= target < high for low, high in ranges)
                }
            )
        )

    @cached_property
    def allgs_addr(self) -> int:
        """Where the slice of all goroutines is. Raises: `LayoutError`."""
        addr = self.find_variable_addr("runtime.allgs")
        return addr if addr is not None else self.search_allgs()

    def search_allgs(self) -> int:
        """The same, from the runtime's code alone. Raises: `LayoutError`.

        allgadd appends to one slice, and to nothing else: the only three words in a row that it refers to.
        """
        targets = set(self.iter_candidates("runtime.allgadd"))
        slices = [at for at in sorted(targets) if {at + 8, at + 16} <= targets and at - 8 not in targets]
        if len(slices) != 1:
            raise LayoutError(
                f"{self.path}: stripped, and the list of goroutines cannot be told from its code"
            )
        return slices[0]

    # -- functions of note ------------------------------------------------------------------------------------

    @cached_property
    def syscall6(self) -> Function | None:
        """The function that nearly all system calls go through, or None if the program makes none that way."""
        for name in _SYSCALL6_NAMES:
            function = self.functions.find_function_by_name(name)
            if function is not None:
                return function
        return None

    def check_supported(self) -> None:
        """Raises: `GoVersionError` naming the version, when it is older or newer than what was tested."""
        version = self.version
        if not version.is_supported and not self._force:
            raise GoVersionError(f"{self.path}: built by {version}; Go 1.21 to 1.27 are supported")
