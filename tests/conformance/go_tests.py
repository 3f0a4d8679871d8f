"""Runs the tests of Go's own packages, natively and served, and reads what became of each."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.gofixtures import CACHE, ROOT, environment, full_version, goroot, toolchain

PACKAGES = ("io/fs", "path/filepath", "bufio", "os", "os/exec", "io", "internal/poll", "log/syslog")

#: Those that take longer, served.
LONGER_PACKAGES = (
    "archive/tar",
    "archive/zip",
    "compress/bzip2",
    "compress/flate",
    "compress/gzip",
    "compress/lzw",
    "compress/zlib",
    "context",
    "crypto/tls",
    "database/sql",
    "mime/multipart",
    "net",
    "net/http",
    "net/rpc",
    "os/signal",
    "sync",
    "syscall",
    "time",
)

#: Tests of package os that run the same code on thousands of combinations of names.
COMBINATORIAL = "^TestRoot(Multi|Consistency)"

#: Tests of package os that take long, served, because they copy much or make thousands of calls.
LONG = "^Test(Root|CopyFile|CopyFS|LargeCopyViaNetwork|SpliceFile|SendFile|RemoveAll|LongPath)"

#: A test of net/http that fails natively too, where the `go` command can download nothing.
DOWNLOADS = "^TestCmdGoNoHTTPServer$"

_RESULT = re.compile(r"^\s*--- (PASS|FAIL|SKIP): (\S+)", re.MULTILINE)
_ROW = re.compile(r"^\| `([\w/]+)` \| `(\w+)` \| (.+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Results:
    """By name of the test (with its subtests'): PASS, FAIL or SKIP."""

    outcomes: Mapping[str, str]


def build_tests(package: str) -> Path:
    """Return the test executable of a package of the standard library, built once."""
    go = toolchain()
    name = package.replace("/", "_")
    target = CACHE / "fixtures" / f"tests-{full_version(go)}" / f"{name}.test"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            subprocess.run([go, "test", "-c", "-o", made, package], check=True, env=environment(), cwd=folder)
            os.rename(made, target)
    return target


def folder_of(package: str) -> Path:
    """Return where the tests expect to run."""
    return goroot() / "src" / package


def read_results(output: bytes) -> Results:
    text = output.decode(errors="backslashreplace")
    return Results({name: outcome for outcome, name in _RESULT.findall(text)})


def differences(native: Results, served: Results) -> set[str]:
    """Return the names of the top-level tests of which any part ended differently."""
    names = native.outcomes.keys() | served.outcomes.keys()
    return {
        name.partition("/")[0] for name in names if native.outcomes.get(name) != served.outcomes.get(name)
    }


def documented(package: str) -> dict[str, str]:
    """Return the reasons that docs/differences.md gives, by top-level test."""
    text = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    return {test: reason for row_package, test, reason in _ROW.findall(text) if row_package == package}


def arguments(more: Sequence[str]) -> list[str]:
    return ["-test.short", "-test.v", *more]
