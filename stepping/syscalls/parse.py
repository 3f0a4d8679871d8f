"""Turns the rows of the table (grammar in `model.py`) into `Syscall` objects."""

import re
from collections.abc import Iterable

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

_ARG = re.compile(
    r"(?P<name>\w+):(?P<kind>\w+)(?:\[(?P<length>[^;\]]+)(?:;(?P<valid>[^\]]+))?\])?(?:/(?P<decoder>\w+))?"
)
_LENGTH = re.compile(r"(?P<indirect>\*)?(?P<base>\w+)(?:\*(?P<scale>\d+))?")
_ARCHES: tuple[Arch, ...] = ("amd64", "arm64")


class TableError(ValueError):
    """A row of the table does not follow the grammar; a mistake in ptserver, never in its input."""


def parse_table(text: str) -> dict[str, Syscall]:
    """Return the rows of *text* by name, in order; blank lines and `#` comments are skipped.

    Raises:
        TableError: a row does not follow the grammar, or a name stands twice.
    """
    rows: dict[str, Syscall] = {}
    for line in text.splitlines():
        row = line.partition("#")[0].strip()
        if not row:
            continue
        syscall = parse_row(row)
        if syscall.name in rows:
            raise TableError(f"{syscall.name} stands twice")
        rows[syscall.name] = syscall
    return rows


def parse_row(row: str) -> Syscall:
    """Return the syscall that one row describes.

    Raises:
        TableError: the row does not follow the grammar.
    """
    signature, _, tail = row.partition("->")
    result, _, only = tail.strip().partition(" only ")
    name, *numbers = signature.split()[:3]
    fields = signature.split()[3:]
    try:
        klass, wait, *arg_words = fields
        names = [word.partition(":")[0] for word in arg_words]
        return Syscall(
            name=name,
            numbers={
                arch: Sysno(int(number))
                for arch, number in zip(_ARCHES, numbers, strict=True)
                if number != "-"
            },
            klass=SyscallClass(klass),
            may_wait={"wait": True, "-": False}[wait],
            args=tuple(_parse_arg(word, names) for word in arg_words),
            result=ResultKind(result.strip()),
            only_if=_parse_only(only, names) if only else None,
        )
    except (ValueError, KeyError) as error:
        raise TableError(f"bad row {row!r}: {error}") from error


def _parse_arg(word: str, names: list[str]) -> Arg:
    match = _ARG.fullmatch(word)
    if match is None:
        raise TableError(f"bad argument {word!r}")
    length, valid = match["length"], match["valid"]
    return Arg(
        name=match["name"],
        kind=ArgKind(match["kind"]),
        length=_parse_length(length, names) if length else None,
        valid=_parse_length(valid, names) if valid else None,
        decoder=match["decoder"] or "",
    )


def _parse_length(text: str, names: Iterable[str]) -> Length:
    match = _LENGTH.fullmatch(text)
    if match is None:
        raise TableError(f"bad length {text!r}")
    base, scale = match["base"], int(match["scale"] or 1)
    if base.isdigit():
        return Length(None, int(base))
    arg = RESULT if base == "ret" else list(names).index(base)
    return Length(arg, scale, indirect=bool(match["indirect"]))


def _parse_only(text: str, names: list[str]) -> OnlyIf:
    condition, _, value = text.strip().partition("=")
    name, _, mask = condition.partition("&")
    return OnlyIf(names.index(name), int(mask, 0), int(value, 0))
