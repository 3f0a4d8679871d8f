"""The published description of the messages is the one that their definitions give."""

import json
from typing import Any

import jsonschema
import msgspec
import pytest

from ptserver import protocol_schema
from ptserver.messages import Hello, Machine, Program, Refused, Result, Syscall, Welcome
from tests.gofixtures import ROOT

FOLDER = ROOT / "docs" / "protocol"
AGAIN = "run python -m ptserver.protocol_schema docs/protocol"

GOOD = [
    Hello((1,), ("json",), "test", Machine("amd64", "6", "h"), Program("/x", ("x",))),
    Welcome(1, "json", "s", "s", "1", "h", "server", {"openat": "serve"}, "serve", environment=(b"A=\xff",)),
    Refused("token", "wrong"),
    Syscall(1, 2, 3, "openat", ((1 << 64) - 1, 0, 0, 0, 0, 0), {1: b"\xff"}, {2: 1 << 23}),
    Result(1, -5, 0, {1: b"x"}),
]

BAD: dict[str, dict[str, Any]] = {
    "no type": {"id": 1},
    "an unknown type": {"type": "nonsense"},
    "an id of 0": {"type": "ping", "id": 0},
    "an argument index of 6": {"type": "result", "id": 1, "outs": {"6": ""}},
    "a register beyond 64 bits": {
        "type": "syscall",
        "id": 1,
        "tid": 1,
        "pid": 1,
        "name": "x",
        "args": [1 << 64] * 6,
    },
    "five registers": {"type": "syscall", "id": 1, "tid": 1, "pid": 1, "name": "x", "args": [0] * 5},
    "a stream -1": {"type": "streamend", "stream": -1},
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    published: dict[str, Any] = json.loads((FOLDER / "schema.json").read_text())
    return published


def test_the_published_schema_is_the_generated_one(schema: dict[str, Any]) -> None:
    assert schema == protocol_schema.schema(), AGAIN


def test_the_published_page_is_the_generated_one() -> None:
    assert (FOLDER / "messages.md").read_text() == protocol_schema.reference(), AGAIN


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("message", GOOD, ids=lambda message: type(message).__name__)
def test_messages_satisfy_it(schema: dict[str, Any], message: msgspec.Struct) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(msgspec.json.encode(message)))


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_what_is_no_message_does_not(schema: dict[str, Any], fields: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(schema).is_valid(fields)


def test_writing_gives_the_published_files(tmp_path: Any) -> None:
    protocol_schema.write(tmp_path)
    for name in ("schema.json", "messages.md"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text(), AGAIN


def test_the_table_cannot_be_broken_by_a_cell() -> None:
    for line in protocol_schema.reference().splitlines():
        if line.startswith("|"):
            assert line.count("|") == 4, line
