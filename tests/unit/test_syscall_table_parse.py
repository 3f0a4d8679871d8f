"""The grammar of the table's rows."""

import pytest

from stepping.syscalls.model import RESULT, Arg, ArgKind, Length, OnlyIf, ResultKind, SyscallClass, Sysno
from stepping.syscalls.parse import TableError, index_rows, parse_number, parse_row


def parse_argument(word: str) -> Arg:
    return parse_row(f"f 1 2 file - n:size p:in[4] {word} -> int").args[2]


def test_row() -> None:
    row = parse_row("name 10 - memory wait a:int b:fd -> ptr bound only a&0x20=0")
    assert row.name == "name"
    assert row.numbers == {"amd64": Sysno(10)}
    assert row.klass is SyscallClass.MEMORY
    assert row.may_wait
    assert row.bound
    assert row.result is ResultKind.PTR
    assert row.args == (Arg("a", ArgKind.INT), Arg("b", ArgKind.FD))
    assert row.only_if == OnlyIf(0, 0x20, 0)


def test_row_without_arguments() -> None:
    row = parse_row("sync 162 81 file - -> none")
    assert row.args == ()
    assert not row.may_wait
    assert not row.bound
    assert row.numbers == {"amd64": 162, "arm64": 81}


@pytest.mark.parametrize(
    ("word", "length", "value", "size"),
    [
        ("b:out[8]", Length(None, 8), 7, 8),
        ("b:out[n]", Length(0), 7, 7),
        ("b:out[n*8]", Length(0, 8), 7, 56),
        ("b:out[*p]", Length(1, indirect=True), 7, 7),
        ("b:out[*p@4]", Length(1, indirect=True, offset=4), 7, 7),
        ("b:out[8+*b]", Length(2, indirect=True, base=8), 7, 15),
        ("b:out[8+n]", Length(0, base=8), 7, 15),
        ("b:out[n/8]", Length(0, bits=True), 7, 8),
        ("b:out[n/8]", Length(0, bits=True), 64, 8),
        ("b:out[n/8]", Length(0, bits=True), 65, 16),
        ("b:out[n/8]", Length(0, bits=True), 0, 0),
        ("b:out[n]", Length(0), -1, 0),
    ],
)
def test_length(word: str, length: Length, value: int, size: int) -> None:
    argument = parse_argument(word)
    assert argument.length == length
    assert length.of(value) == size


def test_size_on_arm64() -> None:
    length = parse_argument("b:out[n*12|16]").length
    assert length == Length(0, 12, scale_arm64=16)
    assert (length.of(2), length.of(2, "arm64")) == (24, 32)
    constant = parse_argument("b:out[144|128]").length
    assert constant is not None
    assert (constant.of(), constant.of(arch="arm64")) == (144, 128)


def test_valid_part_and_decoder() -> None:
    argument = parse_argument("b:out[n;ret*4]/u32_array")
    assert argument.valid == Length(RESULT, 4)
    assert argument.decoder == "u32_array"


@pytest.mark.parametrize(
    "row",
    [
        "",
        "f",
        "f 1 2 file - a:int",
        "f 1 2 file - a:int ->",
        "f 1 2 file - a:int -> nothing",
        "f 1 2 file - a:int -> int loose",
        "f x 2 file - -> int",
        "f 1 2 files - -> int",
        "f 1 2 file maybe -> int",
        "f 1 2 file - a:whole -> int",
        "f 1 2 file - a:in[b] -> int",
        "f 1 2 file - a:in[n*] n:size -> int",
        "f 1 2 file - a:in[n/7] n:size -> int",
        "f 1 2 file - a:in[n -> int",
        "f 1 2 file - a:int a:int -> int",
        "f 1 2 file - a:int -> int only b&1=0",
        "f 1 2 file - a:int -> int only a&1",
    ],
)
def test_bad_rows_are_refused(row: str) -> None:
    with pytest.raises(TableError):
        parse_row(row)


def test_index_skips_comments_and_blank_lines() -> None:
    rows = index_rows("\n# a comment\nf 1 2 file - -> int\n\ng - 3 file - -> int\n")
    assert list(rows) == ["f", "g"]
    assert parse_number(rows["f"], "arm64") == 2
    assert parse_number(rows["g"], "amd64") is None


def test_a_name_may_stand_once() -> None:
    with pytest.raises(TableError, match="twice"):
        index_rows("f 1 2 file - -> int\nf 3 4 file - -> int")


def test_a_number_must_be_one() -> None:
    with pytest.raises(TableError):
        parse_number("f one 2 file - -> int", "amd64")
