"""Turns the rows of the table (grammar in `model.py`) into `Syscall` objects."""

import re
from functools import cache

from stepping.syscalls.model import (
    RESULT,
    Arch,
    Arg,
    ArgKind,
    Length,
    OnlyIf,
    ResultKind,
    Syscall,
    SyscallClass,
    Sysno,
)

# Patterns, not compiled ones: compiling them takes as long as importing all else here.
_ARG = r"(?P<name>[a-z]\w*):(?P<kind>\w+)(?:\[(?P<length>[^;\]]+)(?:;(?P<valid>[^\]]+))?\])?(?:/(?P<decoder>\w+))?"
_LENGTH = (
    r"(?:(?P<base>\d+)\+)?"
    r"(?:(?P<size>\d+)|(?P<indirect>\*)?(?P<arg>[a-z]\w*)(?:@(?P<offset>\d+))?(?:\*(?P<scale>\d+)|(?P<bits>/8))?)"
    r"(?:\|(?P<arm64>\d+))?"
)
_ARCHES: tuple[Arch, ...] = ("amd64", "arm64")


class TableError(ValueError):
    """A row of the table does not follow the grammar; a mistake in ptserver, never in its input."""


def index_rows(text: str) -> dict[str, str]:
    """Return the rows of *text* by name, in order, unparsed; blank lines and `#` comments are skipped.

    Raises:
        TableError: a name stands twice.
    """
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    rows = {line.partition(" ")[0]: line for line in lines}
    if len(rows) < len(lines):
        raise TableError("a name stands twice")
    return rows


def parse_number(row: str, arch: Arch) -> Sysno | None:
    """Return the number that one row gives the call on *arch*, if it has one there.

    Raises:
        TableError: the row does not follow the grammar.
    """
    number = row.split(None, 3)[1 + _ARCHES.index(arch)]
    try:
        return None if number == "-" else Sysno(int(number))
    except ValueError as error:
        raise TableError(f"bad row {row!r}: {error}") from error


def parse_row(row: str) -> Syscall:
    """Return the syscall that one row describes.

    Raises:
        TableError: the row does not follow the grammar.
    """
    signature, arrow, tail = row.partition("->")
    words = signature.split()
    tail, _, only = tail.partition(" only ")
    result, *marks = tail.split() or [""]
    try:
        numbers = {
            arch: Sysno(int(word)) for arch, word in zip(_ARCHES, words[1:], strict=False) if word != "-"
        }
        name, _, _, klass, wait, *arg_words = words
        names = [word.partition(":")[0] for word in arg_words]
        if not arrow or len(set(names)) < len(names) or marks not in ([], ["bound"]):
            raise ValueError("no result, a name twice, or an unknown mark")
        return Syscall(
            name=name,
            numbers=numbers,
            klass=SyscallClass(klass),
            may_wait={"wait": True, "-": False}[wait],
            args=tuple(_parse_arg(word, names) for word in arg_words),
            result=ResultKind(result),
            bound=bool(marks),
            only_if=_parse_only(only, names) if only else None,
        )
    except (ValueError, KeyError) as error:
        raise TableError(f"bad row {row!r}: {error}") from error


def _parse_arg(word: str, names: list[str]) -> Arg:
    arg, length, valid = _split_arg(word)
    if not length:
        return arg
    return arg._replace(
        length=_parse_length(length, names), valid=_parse_length(valid, names) if valid else None
    )


@cache
def _split_arg(word: str) -> tuple[Arg, str, str]:
    """Return an argument without its lengths, and their texts; many calls have the same ones."""
    match = re.fullmatch(_ARG, word)
    if match is None:
        raise ValueError(f"bad argument {word!r}")
    arg = Arg(name=match["name"], kind=ArgKind(match["kind"]), decoder=match["decoder"] or "")
    return arg, match["length"] or "", match["valid"] or ""


def _parse_length(text: str, names: list[str]) -> Length:
    match = re.fullmatch(_LENGTH, text)
    if match is None:
        raise ValueError(f"bad length {text!r}")
    arm64 = int(match["arm64"]) if match["arm64"] else None
    if match["size"]:
        return Length(None, int(match["size"]), scale_arm64=arm64)
    name = match["arg"]
    return Length(
        arg=RESULT if name == "ret" else names.index(name),
        scale=int(match["scale"] or 1),
        indirect=bool(match["indirect"]),
        base=int(match["base"] or 0),
        offset=int(match["offset"] or 0),
        bits=bool(match["bits"]),
        scale_arm64=arm64,
    )


def _parse_only(text: str, names: list[str]) -> OnlyIf:
    condition, _, value = text.strip().partition("=")
    name, _, mask = condition.partition("&")
    return OnlyIf(names.index(name), int(mask, 0), int(value, 0))
