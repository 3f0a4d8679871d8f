"""Build Go programs with the stub: the overlay that adds it, and the command line of `go` that uses the overlay.

`go build -overlay=FILE` takes a JSON object `{"Replace": {path: other path}}` and reads the other file wherever it
would read the first. All paths of the stub are new ones, so no file of Go's is replaced, and neither GOROOT nor the
user's module is written to: what is made here (the JSON, one generated Go file) lies in a temporary folder for as
long as `go` runs. An overlay of the user's own is merged in.

`stub_overlay` is pure but for reading GOROOT; `run_go` must be called from the main thread, for it handles signals.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from ptserver.errors import PtServerError
from ptserver.stub.hypercalls import DEFAULT_GOOSREMOTE, encode_marker
from ptserver.stub.toolchain import SUPPORTED_GO, GoToolchain, GoUnsuitableError, find_go, read_toolchain

_SOURCES = Path(__file__).parent
_FILES = {
    "runtime/zz_remote_stub.go": "runtime_stub.go",
    "runtime/zz_remote_start.go": "runtime_start.go",
    "runtime/remote/remote.go": "remote.go",
}
_SYSCALL_TARGET = "runtime/zz_remote_syscall.go"
_SYSCALL_FILES = {
    # The folder of package runtime's own syscall package: Go has moved it twice.
    "internal/runtime/syscall/linux": "runtime_syscall_1_26.go",
    "internal/runtime/syscall": "runtime_syscall_1_23.go",
    "runtime/internal/syscall": "runtime_syscall_1_21.go",
}
_MARKER_TARGET = "runtime/zz_remote_marker.go"

STUB_GOARCHES = ("amd64", "arm64")
REMOTE_BUILDMODE = "remote"
PROGRAM_BUILDMODES = ("default", "exe", "pie")

_BOOLEAN_FLAGS = frozenset(
    {
        *(
            "a",
            "asan",
            "benchmem",
            "buildvcs",
            "c",
            "cover",
            "failfast",
            "fullpath",
            "i",
            "json",
            "linkshared",
        ),
        *("modcacherw", "msan", "n", "race", "short", "trimpath", "v", "work", "x"),
    }
)
_GOFLAGS_FIELD = re.compile(r"""'([^']*)'|"([^"]*)"|(\S+)""")


class BuildUsageError(PtServerError):
    """What was asked for cannot be built with the stub."""

    exit_status = 64


def stub_overlay(goroot: Path, marker_file: Path) -> dict[str, str]:
    """Return the `Replace` map that adds the stub to the Go in `goroot`; `marker_file` is the generated file.

    Raises: GoUnsuitableError when this GOROOT has no place that the stub knows.
    """
    source = goroot / "src"
    for folder, name in _SYSCALL_FILES.items():
        if (source / folder / "syscall_linux.go").is_file():
            files = _FILES | {_SYSCALL_TARGET: name}
            break
    else:
        raise GoUnsuitableError(f"{goroot} is no GOROOT that the stub knows: use {SUPPORTED_GO}")
    replace = {str(source / target): str(_SOURCES / name) for target, name in files.items()}
    replace[str(source / _MARKER_TARGET)] = str(marker_file)
    return replace


def marker_source(goosremote: str) -> str:
    """Return the Go file that says which OS abstraction the program wants. Raises: ValueError for a bad name."""
    text = "".join(
        chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in encode_marker(goosremote)
    )
    return f'package runtime\n\nconst remoteMarker = "{text}"\n'


@contextlib.contextmanager
def overlay(
    goroot: Path, goosremote: str = DEFAULT_GOOSREMOTE, replace: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """Make the overlay for the Go in `goroot`, and give the path of its JSON, valid inside the `with` block.

    `replace` is another overlay's map, to be merged in. Raises: BuildUsageError for a `goosremote` that is no name,
    GoUnsuitableError, OSError when the temporary folder cannot be written.
    """
    try:
        text = marker_source(goosremote)
    except ValueError as error:
        raise BuildUsageError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="ptserver-overlay-") as folder:
        marker_file = Path(folder) / "marker.go"
        marker_file.write_text(text)
        layer = Path(folder) / "overlay.json"
        layer.write_text(json.dumps({"Replace": {**(replace or {}), **stub_overlay(goroot, marker_file)}}))
        yield layer


def run_go(subcommand: str, arguments: Sequence[str]) -> int:
    """Run `go SUBCOMMAND ARGUMENTS` with the stub added; returns go's exit status (128 + n if signal n ended it).

    GOOSREMOTE of the environment names the OS abstraction. `-buildmode=remote` may be among the arguments, and an
    `-overlay` of the user's. Raises: GoNotFoundError, GoUnsuitableError, BuildUsageError, OSError.
    """
    left, folder = take_leading_folder(arguments)
    left, buildmode = take_flag(left, "buildmode", interspersed=subcommand == "test")
    if buildmode not in (None, REMOTE_BUILDMODE):
        if buildmode not in PROGRAM_BUILDMODES:
            raise BuildUsageError(
                f"-buildmode={buildmode} makes no program: only a program can have the stub"
            )
        left = [f"-buildmode={buildmode}", *left]
    left, user_overlay = take_flag(left, "overlay", interspersed=subcommand == "test")
    go = read_toolchain(find_go(), cwd=folder)
    _check_target(go)
    if user_overlay is None:
        user_overlay = goflags_value(go.goflags, "overlay")
    replace = read_overlay(Path(folder or ".") / user_overlay) if user_overlay else {}
    goosremote = os.environ.get("GOOSREMOTE") or DEFAULT_GOOSREMOTE
    with overlay(go.goroot, goosremote, replace) as layer:
        return _run([go.command, subcommand, *(["-C", folder] if folder else []), f"-overlay={layer}", *left])


def asks_for_stub(arguments: Sequence[str], *, interspersed: bool = False) -> bool:
    """Whether the arguments of a go subcommand have `-buildmode=remote` among their flags."""
    left, _ = take_leading_folder(arguments)
    return take_flag(left, "buildmode", interspersed=interspersed)[1] == REMOTE_BUILDMODE


def take_flag(
    arguments: Sequence[str], name: str, *, interspersed: bool = False
) -> tuple[list[str], str | None]:
    """Return `arguments` without the flag `-NAME=V`, `--NAME=V` or `-NAME V`, and its last V (None if absent).

    Flags end where the go command takes them to end: at the first argument that is neither a flag nor a flag's
    value; with `interspersed` (as `go test` has it), only at `-args`.
    """
    left: list[str] = []
    value = None
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        flag, equals, inline = argument.lstrip("-").partition("=")
        is_flag = argument.startswith("-") and flag != "" and not argument.startswith("---")
        if argument == "--" or (is_flag and flag == "args") or not (is_flag or interspersed):
            return [*left, argument, *queue], value
        if is_flag and flag == name:
            value = inline if equals else (queue.pop(0) if queue else "")
            continue
        left.append(argument)
        if is_flag and not equals and flag not in _BOOLEAN_FLAGS and queue and not interspersed:
            left.append(queue.pop(0))
    return left, value


def take_leading_folder(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the arguments without a leading `-C DIR`, and DIR: the go command wants it first."""
    left = list(arguments)
    if left and left[0].lstrip("-").split("=")[0] == "C" and left[0].startswith("-"):
        _, equals, folder = left.pop(0).partition("=")
        if not equals:
            if not left:
                raise BuildUsageError("-C needs a folder")
            folder = left.pop(0)
        return left, folder
    return left, None


def goflags_value(goflags: str, name: str) -> str | None:
    """Return the value of the last `-NAME=V` in GOFLAGS, None if there is none.

    Source: cmd/internal/quoted: a field may be quoted as a whole, and there are no escapes.
    """
    value = None
    for field in _GOFLAGS_FIELD.finditer(goflags):
        text = next(group for group in field.groups() if group is not None)
        flag, equals, inline = text.partition("=")
        if flag in (f"-{name}", f"--{name}") and equals:
            value = inline
    return value


def read_overlay(path: Path) -> dict[str, str]:
    """Return the `Replace` map of the user's overlay. Raises: BuildUsageError when it is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BuildUsageError(f"cannot read the overlay {path}: {error.strerror}") from error
    except ValueError as error:
        raise BuildUsageError(f"the overlay {path} is not JSON: {error}") from error
    replace = content.get("Replace") if isinstance(content, dict) else None
    if replace is None:
        replace = {}
    if not isinstance(content, dict) or not isinstance(replace, dict):
        raise BuildUsageError(f'the overlay {path} is not of the form {{"Replace": {{path: path}}}}')
    if not all(isinstance(other, str) for other in replace.values()):
        raise BuildUsageError(f"the overlay {path} replaces a path by something that is no path")
    return replace


def _check_target(go: GoToolchain) -> None:
    if go.goos != "linux" or go.goarch not in STUB_GOARCHES:
        raise BuildUsageError(
            f"no stub for GOOS={go.goos} GOARCH={go.goarch}: only for linux on {' and '.join(STUB_GOARCHES)}"
        )


def _run(command: Sequence[str]) -> int:
    """Run a child to its end. The terminal's signals reach it by themselves; others are passed on."""
    previous = {}
    with subprocess.Popen(command) as child:

        def pass_on(number: int, _: FrameType | None) -> None:
            if number in (signal.SIGTERM, signal.SIGHUP):
                child.send_signal(number)

        try:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
                previous[number] = signal.signal(number, pass_on)
            status = child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    return 128 - status if status < 0 else status
