"""The table of messages: what holds for all of them."""

import typing

import msgspec
import pytest

from ptserver import messages
from ptserver.messages import FromWatcher, Message, ToHost, ToServer, ToWatcher

TO_SERVER: tuple[type[Message], ...] = typing.get_args(ToServer)
TO_HOST: tuple[type[Message], ...] = typing.get_args(ToHost)
FROM_WATCHER: tuple[type[Message], ...] = typing.get_args(FromWatcher)
ALL = sorted({*TO_SERVER, *TO_HOST, *FROM_WATCHER, *typing.get_args(ToWatcher)}, key=lambda cls: cls.__name__)


def test_every_message_has_a_direction() -> None:
    defined = {
        thing for thing in vars(messages).values() if isinstance(thing, type) and issubclass(thing, Message)
    }
    assert defined - {Message} == set(ALL)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_the_tag_is_the_name_in_lower_case(cls: type[Message]) -> None:
    info = msgspec.inspect.type_info(cls)
    assert isinstance(info, msgspec.inspect.StructType)
    assert (info.tag_field, info.tag) == ("type", cls.__name__.lower())


def unbounded(kind: msgspec.inspect.Type) -> list[str]:
    """The parts of a type that a peer could make as large as it likes."""
    match kind:
        case msgspec.inspect.IntType(ge=None) | msgspec.inspect.FloatType():
            return ["a number"]
        case msgspec.inspect.StrType(max_length=None) | msgspec.inspect.BytesType(max_length=None):
            return ["a string"]
        case msgspec.inspect.UnionType(types=parts) | msgspec.inspect.TupleType(item_types=parts):
            return [fault for part in parts for fault in unbounded(part)]
        case msgspec.inspect.VarTupleType(item_type=item, max_length=bound):
            return unbounded(item) + (["a list"] if bound is None else [])
        case msgspec.inspect.DictType(key_type=key, value_type=value, max_length=bound):
            return unbounded(key) + unbounded(value) + (["a map"] if bound is None else [])
        case msgspec.inspect.StructType(fields=fields):
            return [f"{field.name}: {fault}" for field in fields for fault in unbounded(field.type)]
        case msgspec.inspect.Metadata(type=inner):
            return unbounded(inner)
    return []


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_field_has_a_bound(cls: type[Message]) -> None:
    assert unbounded(msgspec.inspect.type_info(cls)) == []


def test_the_check_for_bounds_finds_what_has_none() -> None:
    class Loose(msgspec.Struct):
        name: str
        table: dict[str, tuple[int, ...]]

    assert len(unbounded(msgspec.inspect.type_info(Loose))) == 5


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_message_says_who_sends_it(cls: type[Message]) -> None:
    first = (cls.__doc__ or "").partition(":")[0].partition(",")[0]
    expected = (
        "Either way"
        if cls in TO_SERVER and cls in TO_HOST
        else "Host to server"
        if cls in TO_SERVER
        else "Server to host"
        if cls in TO_HOST
        else "Watcher to server"
        if cls in FROM_WATCHER
        else "Server to watcher"
    )
    assert first == expected
