"""Typed values of a running program: every kind, both kinds of maps, channels with their queues."""

from collections.abc import Iterator

import pytest

from goabi.binary import GoBinary
from goabi.errors import ValueDecodeError
from goabi.rtypes import RuntimeTypes
from goabi.sched import GoRuntime
from goabi.values import (
    GoChan,
    GoFunc,
    GoInterface,
    GoMap,
    GoPointer,
    GoSequence,
    GoString,
    GoStruct,
    Limits,
    Unreadable,
    Value,
    ValueReader,
)
from tests.gofixtures import DEFAULT_GO, GO_VERSIONS, build
from tests.process.goabi.live import stopped

VERSIONS = [pytest.param(go, marks=[] if go == DEFAULT_GO else pytest.mark.goversions) for go in GO_VERSIONS]


@pytest.fixture(params=VERSIONS, scope="module")
def runtime(request: pytest.FixtureRequest) -> Iterator[GoRuntime]:
    path = build("goabi_values", go=request.param)
    with stopped(path) as program, GoBinary.open(path) as binary:
        yield GoRuntime(binary, program.memory, program.bias)


@pytest.fixture
def values(runtime: GoRuntime) -> ValueReader:
    return ValueReader(runtime, Limits(items=2000))


def text(value: str) -> GoString:
    return GoString(value.encode(), len(value.encode()))


def point(x: int, y: int) -> GoStruct:
    return GoStruct("main.point", {"X": x, "Y": y})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aBool", True),
        ("anInt8", -5),
        ("anInt64", -1 << 40),
        ("aUint16", 65535),
        ("aUintptr", 0xDEADBEEF),
        ("aFloat32", 1.5),
        ("aFloat64", 2.25),
        ("aComplex64", 1 - 2j),
        ("aComplex128", 3 + 4.5j),
        ("aCelsius", 36.6),
        ("aString", text("héllo")),
        ("emptyString", text("")),
        ("longString", GoString(b"x" * 1024, 5000)),
        ("nilAny", GoInterface("", None)),
        ("anyInt", GoInterface("int", 42)),
        ("anyString", GoInterface("string", text("inside"))),
        ("aShape", GoInterface("main.point", point(2, 3))),
        ("nilPointer", GoPointer(0, None)),
        ("nilSlice", GoSequence((), 0, 0, 0)),
        ("nilMap", GoMap((), 0, 0)),
        ("nilChan", GoChan(0, 0, 0, False, (), (), ())),
        ("nilFunc", GoFunc("", 0)),
    ],
)
def test_plain_values(values: ValueReader, name: str, expected: Value) -> None:
    found = values.read_variable(f"main.{name}")
    assert type(found) is type(expected)
    assert found == expected


def test_sequences(values: ValueReader) -> None:
    slice_ = values.read_variable("main.aSlice")
    assert isinstance(slice_, GoSequence)
    assert (slice_.items, slice_.length, slice_.capacity) == ((1, 2, 3), 3, 3)
    part = values.read_variable("main.aSubslice")
    assert isinstance(part, GoSequence)
    assert (part.items, part.length, part.capacity) == ((0, 0), 2, 10)
    array = values.read_variable("main.anArray")
    assert isinstance(array, GoSequence)
    assert array.items == (point(1, 2), point(3, 4), point(5, 6))


def test_limits(runtime: GoRuntime) -> None:
    values = ValueReader(runtime, Limits(string_bytes=3, items=5, depth=2))
    string = values.read_variable("main.longString")
    assert str(string) == "xxx…"
    long = values.read_variable("main.longSlice")
    assert isinstance(long, GoSequence)
    assert (len(long.items), long.length) == (5, 1000)
    # A list that leads back to itself ends at the limit of depth.
    value, hops = values.read_variable("main.aNode"), 0
    while isinstance(value, GoPointer) and value.target is not None:
        assert isinstance(value.target, GoStruct)
        value, hops = value.target.fields["Next"], hops + 1
    assert hops == 2
    few = ValueReader(runtime, Limits(values=10)).read_variable("main.anArray")
    assert isinstance(few, GoSequence)
    last = few.items[-1]
    assert isinstance(last, GoStruct)
    assert (
        Unreadable("too many values") in last.fields.values()
        or isinstance(last, Unreadable)
        or last == point(5, 6)
    )


def entries(value: Value) -> dict[Value, Value]:
    assert isinstance(value, GoMap)
    assert len(value.entries) == value.length
    return dict(value.entries)


def test_maps(values: ValueReader) -> None:
    assert entries(values.read_variable("main.emptyMap")) == {}
    assert entries(values.read_variable("main.smallMap")) == {text("one"): 1, text("two"): 2}
    assert entries(values.read_variable("main.bigMap")) == {i: text(str(i)) for i in range(1000)}
    assert entries(values.read_variable("main.deletedMap")) == {97: 97, 98: 98, 99: 99}
    grown = values.read_variable("main.grownMap")
    assert isinstance(grown, GoMap)
    assert {str(key): value for key, value in grown.entries} == {str(i): point(i, -i) for i in range(53)}
    assert len(grown.entries) == 53
    bulky = values.read_variable("main.bulkyMap")
    assert isinstance(bulky, GoMap)
    ((key, elem),) = bulky.entries
    assert isinstance(key, GoSequence)
    assert isinstance(elem, GoSequence)
    assert (key.items, elem.items) == ((1,) + (0,) * 39, (2,) + (0,) * 39)
    members = values.read_variable("main.setMap")
    assert isinstance(members, GoMap)
    assert [key for key, _ in members.entries] == [point(1, 2)]


def test_channels(runtime: GoRuntime, values: ValueReader) -> None:
    buffered = values.read_variable("main.aChan")
    assert isinstance(buffered, GoChan)
    assert (buffered.length, buffered.capacity, buffered.closed) == (4, 4, False)
    assert buffered.items == tuple(map(text, "bcde"))
    closed = values.read_variable("main.closedChan")
    assert isinstance(closed, GoChan)
    assert (closed.items, closed.closed) == ((True,), True)
    waiting = values.read_variable("main.syncChan")
    assert isinstance(waiting, GoChan)
    assert sorted(value for _, value in waiting.senders if isinstance(value, int)) == [100, 101]
    for addr, _ in waiting.senders:
        goroutine = runtime.read_goroutine(addr)
        assert runtime.wait_reason(goroutine) == "chan send"
        assert runtime.waiting_on(goroutine) == (waiting.addr,)
    receiving = values.read_variable("main.recvChan")
    assert isinstance(receiving, GoChan)
    (receiver,) = receiving.receivers
    assert runtime.wait_reason(runtime.read_goroutine(receiver)) == "chan receive"


def test_interfaces_and_functions(values: ValueReader) -> None:
    error = values.read_variable("main.anError")
    assert isinstance(error, GoInterface)
    assert error.type_name == "*errors.errorString"
    assert isinstance(error.value, GoPointer)
    assert error.value.target == GoStruct("errors.errorString", {"s": text("broken")})
    pointed = values.read_variable("main.anyPointer")
    assert isinstance(pointed, GoInterface)
    assert isinstance(pointed.value, GoPointer)
    assert pointed.value.target == point(11, 12)
    mapped = values.read_variable("main.anyMap")
    assert isinstance(mapped, GoInterface)
    assert mapped.type_name == "map[string]bool"
    assert isinstance(mapped.value, GoMap)
    assert mapped.value.entries == ((text("yes"), True),)
    function = values.read_variable("main.aFunc")
    assert isinstance(function, GoFunc)
    assert function.name == "main.double"
    closure = values.read_variable("main.aClosure")
    assert isinstance(closure, GoFunc)
    assert closure.name.startswith("main.main.func")


def test_the_runtimes_own_types_agree_with_dwarf(runtime: GoRuntime, values: ValueReader) -> None:
    """What an interface says of its value's type is what DWARF says of the same type."""
    dwarf = runtime.binary.dwarf
    assert dwarf is not None
    variable, described = dwarf.find_variable("main.pointerShape"), dwarf.find_type("main.node")
    assert variable is not None
    assert described is not None
    itab = int.from_bytes(runtime.memory.read(variable.addr + runtime.bias, 8), "little")
    types = RuntimeTypes(runtime.memory, runtime.layouts, runtime.binary.module, runtime.bias)
    record = int.from_bytes(runtime.memory.read(itab + 8, 8), "little")
    assert types.is_direct(record)
    known = types.type_at(record).elem
    assert (known.name, known.size) == (described.name, described.size)
    assert [(f.name, f.offset, f.type.name, f.type.kind) for f in known.fields] == [
        (f.name, f.offset, f.type.name, f.type.kind) for f in described.fields
    ]


def test_unknown_variable(values: ValueReader) -> None:
    with pytest.raises(ValueDecodeError, match=r"main\.nothing"):
        values.read_variable("main.nothing")


def test_wild_pointer_is_named_in_its_place(runtime: GoRuntime, values: ValueReader) -> None:
    dwarf = runtime.binary.dwarf
    assert dwarf is not None
    pointer = dwarf.find_type("*main.point")
    assert pointer is not None
    value = values.decode_value(pointer, (0x123456789).to_bytes(8, "little"))
    assert isinstance(value, GoPointer)
    assert isinstance(value.target, Unreadable)
    assert "0x123456789" in value.target.why
