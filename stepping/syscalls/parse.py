"""Turns the rows of the table (grammar in `model.py`) into `Syscall` objects."""

import re
from dataclasses import dataclass

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
    r"(?P<name>[a-z]\w*):(?P<kind>\w+)(?:\[(?P<length>[^;\]]+)(?:;(?P<valid>[^\]]+))?\])?(?:/(?P<decoder>\w+))?"
)
_LENGTH = re.compile(
    r"(?:(?P<base>\d+)\+)?"
    r"(?:(?P<size>\d+)|(?P<indirect>\*)?(?P<arg>[a-z]\w*)(?:@(?P<offset>\d+))?(?:\*(?P<scale>\d+)|(?P<bits>/8))?)"
    r"(?:\|(?P<arm64>\d+))?"
)
_ARCHES: tuple[Arch, ...] = ("amd64", "arm64")


class TableError(ValueError):
    """A row of the table does not follow the grammar; a mistake in ptserver, never in its input."""


@dataclass(frozen=True, slots=True)
class RowText:
    """A row that has not been parsed yet, but for its numbers."""

    text: str
    numbers: dict[Arch, Sysno]


def index_rows(text: str) -> dict[str, RowText]:
    """Return the rows of *text* by name, in order, unparsed; blank lines and `#` comments are skipped.

    Raises:
        TableError: a row has no numbers, or a name stands twice.
    """
    rows: dict[str, RowText] = {}
    for line in text.splitlines():
        words = line.split(maxsplit=3)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3:
            raise TableError(f"bad row {line!r}")
        if words[0] in rows:
            raise TableError(f"{words[0]} stands twice")
        rows[words[0]] = RowText(line, _parse_numbers(line, words[1:3]))
    return rows


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
        name, _, _, klass, wait, *arg_words = words
        names = [word.partition(":")[0] for word in arg_words]
        if not arrow or len(set(names)) < len(names) or marks not in ([], ["bound"]):
            raise ValueError("no result, a name twice, or an unknown mark")
        return Syscall(
            name=name,
            numbers=_parse_numbers(row, words[1:3]),
            klass=SyscallClass(klass),
            may_wait={"wait": True, "-": False}[wait],
            args=tuple(_parse_arg(word, names) for word in arg_words),
            result=ResultKind(result),
            bound=bool(marks),
            only_if=_parse_only(only, names) if only else None,
        )
    except (ValueError, KeyError) as error:
        raise TableError(f"bad row {row!r}: {error}") from error


def _parse_numbers(row: str, words: list[str]) -> dict[Arch, Sysno]:
    try:
        return {
            arch: Sysno(int(number)) for arch, number in zip(_ARCHES, words, strict=True) if number != "-"
        }
    except ValueError as error:
        raise TableError(f"bad row {row!r}: {error}") from error


def _parse_arg(word: str, names: list[str]) -> Arg:
    match = _ARG.fullmatch(word)
    if match is None:
        raise ValueError(f"bad argument {word!r}")
    length, valid = match["length"], match["valid"]
    return Arg(
        name=match["name"],
        kind=ArgKind(match["kind"]),
        length=_parse_length(length, names) if length else None,
        valid=_parse_length(valid, names) if valid else None,
        decoder=match["decoder"] or "",
    )


def _parse_length(text: str, names: list[str]) -> Length:
    match = _LENGTH.fullmatch(text)
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
