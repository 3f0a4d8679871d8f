"""A core dump of a Go program, looked into. See `ptserver.inspection.inspector`.

Not trusted: the core. Its program is compared with what the core holds of it, so that a program built anew since is
not taken for the one that dumped.
"""

from collections.abc import Iterator

from goabi.binary import GoBinary
from goabi.core import CoreFile
from goabi.elf import ElfFile
from goabi.errors import GoAbiError, MemoryFaultError
from goabi.goroutine import Goroutine
from goabi.memory import read_u64
from goabi.unwind import DEFAULT_MAX_FRAMES, Stack, Unwinder
from ptserver.inspection.core_format import TIME_OWNER, TIME_TYPE
from ptserver.inspection.find_process import InspectError
from ptserver.inspection.inspector import Inspected, Sighting, open_binary

_PAGE = 4096
_TIME_BYTES = 8


class _Image:
    """The program's file as memory, for what the core leaves out. Faults before it is `load`ed."""

    def __init__(self) -> None:
        self._binary: GoBinary | None = None
        self._bias = 0

    def load(self, binary: GoBinary, bias: int) -> None:
        """Say which program, and what was added to its addresses."""
        self._binary, self._bias = binary, bias

    def read(self, addr: int, size: int, /) -> bytes:
        """See `MemoryReader.read`."""
        if self._binary is None:
            raise MemoryFaultError(addr, size, "not in the core")
        try:
            return self._binary.elf.read(addr - self._bias, size)
        except MemoryFaultError as error:
            raise MemoryFaultError(addr, size, "not in the core") from error


class InspectedCore(Inspected):
    """A core dump; see `inspection.inspect_core`."""

    def __init__(self, path: str, exe: str | None = None, *, force: bool = False) -> None:
        image = _Image()
        try:
            # The files that the core names are trusted for nothing but the program's own.
            self._core = CoreFile(path, image, use_files=False)
        except FileNotFoundError:
            raise InspectError(f"there is no file {path!r}; a process is named by its number") from None
        except GoAbiError as error:
            raise InspectError(f"not a core dump: {error}") from error
        try:
            binary = self._open_program(path, exe, force=force)
            try:
                bias = binary.elf.load_bias(self._core.entry)
                _check_same(self._core, binary, bias, path)
                image.load(binary, bias)
                super().__init__(f"core {path} of {binary.path}", binary, self._core, bias)
                self._direct = Unwinder(self.runtime, self._core.registers_of)
            except BaseException:
                binary.close()
                raise
        except GoAbiError as error:
            self._core.close()
            raise InspectError(f"{path}: {error}") from error
        except BaseException:
            self._core.close()
            raise
        self._procid = self.runtime.layouts["m"].offset("procid")
        self.now_ns = _read_time(path)

    def _open_program(self, path: str, exe: str | None, *, force: bool) -> GoBinary:
        program = exe or self._core.executable
        if program is None:
            raise InspectError(f"{path} does not say which program it is of; name it with --exe")
        try:
            return open_binary(program, f"{program}, which {path} is of,", "", force=force)
        except OSError as error:
            raise InspectError(
                f"the program of {path}, {program}, cannot be opened ({error.strerror}); name it with --exe"
            ) from error

    def iter_sightings(self, *, details: bool = False) -> Iterator[Sighting]:
        """See `Inspected.iter_sightings`."""
        for goroutine in self.runtime.iter_goroutines():
            yield self._sight(goroutine, details=details)
        self.skipped = self.runtime.skipped

    def find(self, goid: int) -> Sighting | None:
        """See `Inspected.find`."""
        goroutine = self.runtime.find_goroutine(goid)
        return None if goroutine is None else self._sight(goroutine, details=True)

    def unwind(self, sighting: Sighting, max_frames: int = DEFAULT_MAX_FRAMES) -> Stack:
        """See `Inspected.unwind`."""
        return self._direct.unwind_goroutine(sighting.goroutine, max_frames)

    def close(self) -> None:
        """See `Inspected.close`."""
        self.binary.close()
        self._core.close()

    def _sight(self, goroutine: Goroutine, *, details: bool) -> Sighting:
        sighting = Sighting(goroutine)
        if goroutine.m:
            try:
                sighting.tid = read_u64(self._core, goroutine.m + self._procid)
            except MemoryFaultError:
                pass
        if details:
            self.read_details(sighting)
        return sighting


def _read_time(path: str) -> int | None:
    """Return the program's clock when it dumped, which only cores made by `core_dump` tell."""
    with ElfFile(path, types=("CORE",)) as elf:
        for note in elf.iter_notes():
            if note.owner == TIME_OWNER and note.type == TIME_TYPE and len(note.data) == _TIME_BYTES:
                return int.from_bytes(note.data, "little")
    return None


def _check_same(core: CoreFile, binary: GoBinary, bias: int, path: str) -> None:
    """Compare where the program begins, and its first page, which holds its headers and usually its build id."""
    first = binary.elf.load_segments[0]
    same = bias % _PAGE == 0 and (bias == 0 or binary.elf.header.is_pie)
    try:
        dumped = core.read(first.vaddr + bias, min(_PAGE, first.filesz))
    except MemoryFaultError:
        dumped = b""  # the core has not kept it
    if not same or dumped != binary.elf.read(first.vaddr, len(dumped)):
        raise InspectError(f"{binary.path} is not the program that {path} is of; name that with --exe")
