"""Damaged binaries: whatever is overwritten or cut off, only GoAbiError comes out, and soon.

The victim is a real binary, read into memory once; each example overwrites a few bytes in the parts that matter.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from goabi.binary import GoBinary
from goabi.core import CoreFile
from goabi.dwarf import Dwarf
from goabi.elf import ElfFile
from goabi.elf_header import read_elf_header
from goabi.errors import GoAbiError
from goabi.layouts import layouts_from_dwarf
from goabi.memory import BytesMemory
from goabi.moduledata import Moduledata
from goabi.pclntab import FunctionTable
from goabi.version import read_build_info
from tests.gofixtures import build

Damage = list[tuple[float, bytes]]
"""Where in a range (0 to 1), and what is written there."""

damages = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=16)), min_size=1, max_size=8
)
many = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def victim() -> bytes:
    return build("hello", flags=("-ldflags=-compressdwarf=false",)).read_bytes()


@functools.cache
def sections() -> dict[str, tuple[int, int]]:
    with ElfFile(build("hello", flags=("-ldflags=-compressdwarf=false",))) as elf:
        return {section.name: (section.offset, section.size) for section in elf.sections.values()}


def damaged(start: int, size: int, damage: Damage) -> bytes:
    image = bytearray(victim())
    for where, data in damage:
        at = start + int(where * size)
        image[at : at + len(data)] = data
    return bytes(image[: len(victim())])


@contextmanager
def only_ours() -> Iterator[None]:
    """Whatever is raised is ours, and its message one line."""
    try:
        yield
    except GoAbiError as error:
        check_line(str(error))


def check_line(text: str) -> None:
    assert text
    assert "\n" not in text


def survive(image: bytes, use: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged")
        path.write_bytes(image)
        with only_ours():
            use(path)


def open_and_name(path: Path) -> None:
    with GoBinary.open(path) as binary:
        name_all(binary.functions, binary.module)


def name_all(functions: FunctionTable, module: Moduledata) -> None:
    step = max(1, (module.max_pc - module.min_pc) // 400)
    for pc in range(module.min_pc, min(module.max_pc, module.min_pc + 400 * step), step):
        with only_ours():
            functions.frames_at(pc)
            function = functions.find_function(pc)
            if function is not None:
                functions.sp_delta(function, pc)
    functions.find_function_by_name("main.main")


@many
@given(damages)
def test_headers(damage: Damage) -> None:
    image = damaged(0, 512, damage)
    survive(image, read_elf_header)
    survive(image, open_and_name)


@many
@given(st.integers(0, 5000) | st.floats(0, 1).map(lambda part: int(part * len(victim()))))
@example(0)
@example(63)
def test_cut_short(size: int) -> None:
    survive(victim()[:size], read_elf_header)
    survive(victim()[:size], open_and_name)


@many
@given(damages, st.booleans())
def test_section_headers_and_symbols(damage: Damage, in_strings: bool) -> None:
    start, size = sections()[".symtab" if in_strings else ".shstrtab"]
    with ElfFile(build("hello", flags=("-ldflags=-compressdwarf=false",))) as elf:
        table = (elf.header.shoff, 64 * elf.header.shnum)

    def use(path: Path) -> None:
        with ElfFile(path) as elf:
            elf.find_symbol("runtime.allgs")
            sum(1 for _ in elf.iter_symbols())
            list(elf.iter_notes())
            for name in elf.sections:
                elf.section_data(name)

    survive(damaged(start, size, damage), use)
    survive(damaged(*table, damage), use)


@many
@given(damages)
def test_function_table(damage: Damage) -> None:
    start, size = sections()[".gopclntab"]
    survive(damaged(start, size, damage), open_and_name)


@many
@given(damages)
def test_head_of_the_function_table(damage: Damage) -> None:
    start, _ = sections()[".gopclntab"]
    survive(damaged(start, 256, damage), open_and_name)


@many
@given(damages)
def test_moduledata(damage: Damage) -> None:
    start, size = sections()[".go.module"]
    survive(damaged(start, size, damage), open_and_name)


@many
@given(damages)
def test_inlining_tables(damage: Damage) -> None:
    start, size = sections()[".go.func"]
    survive(damaged(start, size, damage), open_and_name)


@many
@given(damages)
def test_build_info(damage: Damage) -> None:
    start, size = sections()[".go.buildinfo"]

    def use(path: Path) -> None:
        with GoBinary.open(path) as binary:
            _ = binary.version

    survive(damaged(start, size, damage), use)


@many
@given(st.binary(max_size=200))
def test_build_info_of_any_bytes(data: bytes) -> None:
    with only_ours():
        read_build_info(BytesMemory([(0, b"\xff Go buildinf:\x08\x02" + bytes(16) + data)]), 0)


def read_dwarf(path: Path) -> None:
    with ElfFile(path) as elf:
        dwarf = Dwarf(elf)
        for name in ("runtime.g", "map[string]int", "[]string", "error", "chan int"):
            with only_ours():
                found = dwarf.find_type(name)
                if found is not None and name == "runtime.g":
                    _ = found.fields
        for name in ("runtime.allgs", "main.x"):
            with only_ours():
                dwarf.find_variable(name)
        with only_ours():
            dwarf.find_parameters("os.(*File).Write")
        layouts_from_dwarf(dwarf, elf)


@many
@given(damages, st.sampled_from([".debug_info", ".debug_abbrev", ".debug_addr"]))
@example([(0.95703125, b"\x01")], ".debug_abbrev")  # a name in the form of a number
def test_debugging_information(damage: Damage, name: str) -> None:
    start, size = sections()[name]
    survive(damaged(start, size, damage), read_dwarf)


@many
@given(damages)
def test_debugging_information_of_g(damage: Damage) -> None:
    """Damage where it will be read: at the runtime's own structs."""
    start, size = sections()[".debug_info"]
    at = victim().find(b"runtime.g\0", start, start + size)
    survive(damaged(at - 64, 4096, damage), read_dwarf)


@many
@given(st.binary(max_size=400))
def test_core_of_any_bytes(data: bytes) -> None:
    header = bytearray(victim()[:64])
    header[16] = 4  # ET_CORE

    def use(path: Path) -> None:
        with CoreFile(path) as core:
            _ = core.threads, core.mapped_files, core.executable
            core.read(0x400000, 16)

    survive(bytes(header) + data, use)
