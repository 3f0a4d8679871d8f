"""Makes the table of runtime layouts from real builds: `python -m goabi.gen_layouts GO...`.

Each GO is a `go` executable of one supported release; for each, a tiny program is built for amd64 and arm64 and
its DWARF is read. What is printed is the JSON that belongs into `goabi/_generated_layouts.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from goabi.dwarf import Dwarf
from goabi.elf import ElfFile
from goabi.elf_header import ArchName
from goabi.layouts import Layouts, layouts_from_dwarf
from goabi.version import GoVersion

ARCH_NAMES: tuple[ArchName, ...] = ("amd64", "arm64")

# The map and the channel keep their types in the DWARF; the rest of the runtime is there anyway.
_PROGRAM = """package main

func main() {
	m := map[string]int{}
	c := make(chan int, 1)
	for i := 0; i < len(m)+20; i++ {
		m[string(rune('a'+i))] = i
	}
	select {
	case c <- len(m):
	default:
	}
	println(len(m), <-c)
}
"""


def derive_row(go: Path, arch: ArchName) -> tuple[str, dict[str, Any]]:
    """The release ("1.27") and the table's row for one toolchain and architecture. Runs the compiler.

    Raises: `subprocess.CalledProcessError` when the build fails, `GoAbiError` when its DWARF lacks something.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "main.go"), Path(folder, "program")
        source.write_text(_PROGRAM)
        environment = os.environ | {
            "GOOS": "linux",
            "GOARCH": arch,
            "CGO_ENABLED": "0",
            "GOTOOLCHAIN": "local",
            "GO111MODULE": "off",
            "GOFLAGS": "",
            "GOEXPERIMENT": "",
        }
        environment.pop("GOROOT", None)
        subprocess.run(
            [go, "build", "-o", program, source],
            check=True,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
        )
        text = subprocess.run(
            [go, "version"], check=True, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True
        ).stdout.split()[2]
        with ElfFile(program) as elf:
            layouts = layouts_from_dwarf(Dwarf(elf), elf)
    return "{}.{}".format(*GoVersion.parse(text).release), row_from_layouts(layouts, text)


def row_from_layouts(layouts: Layouts, built_with: str) -> dict[str, Any]:
    """A row of the table, in the form that JSON gives back."""
    return {
        "built_with": built_with,
        "structs": {
            name: [layout.size, {path: list(place) for path, place in layout.fields.items()}]
            for name, layout in layouts.structs.items()
        },
        "wait_reasons": list(layouts.wait_reasons),
    }


def encode_table(table: dict[str, dict[str, Any]]) -> str:
    """The table as JSON with one struct to a line, so that a difference between versions can be seen."""
    releases = []
    for release, rows in sorted(table.items()):
        arches = []
        for arch, row in rows.items():
            structs = ",\n".join(
                f"    {json.dumps(name)}: {json.dumps(layout)}" for name, layout in row["structs"].items()
            )
            arches.append(
                f' {json.dumps(arch)}: {{\n   "built_with": {json.dumps(row["built_with"])},\n'
                f'   "structs": {{\n{structs}}},\n   "wait_reasons": {json.dumps(row["wait_reasons"])}}}'
            )
        releases.append(f"{json.dumps(release)}: {{\n" + ",\n".join(arches) + "}")
    return "{" + ",\n".join(releases) + "}\n"


def main() -> None:
    """Print the table for the toolchains named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("go", nargs="+", type=Path, help="a go executable, one per release")
    table: dict[str, dict[str, Any]] = {}
    for go in parser.parse_args().go:
        for arch in ARCH_NAMES:
            release, row = derive_row(go.resolve(), arch)
            table.setdefault(release, {})[arch] = row
    sys.stdout.write(encode_table(table))


if __name__ == "__main__":
    main()
