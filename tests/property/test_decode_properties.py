"""Whatever a program passes, its calls are decoded: to text of one line, and to values that JSON can carry."""

import ast
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stepping.syscalls import SYSCALLS, Arch
from stepping.syscalls.decode import decode_call, format_call
from stepping.syscalls.decode_buffers import _ARRAYS, _SPECIAL, find_buffer
from stepping.syscalls.decode_scalars import find_scalar
from stepping.syscalls.decode_values import quote, to_plain, to_text
from stepping.syscalls.flags import find_names, set_names
from stepping.syscalls.requests import _ROWS, _parse
from stepping.syscalls.structs import _all_structs

REGISTERS = st.integers(0, 2**64 - 1) | st.integers(0, 64) | st.sampled_from([2**64 - 1, 2**32 - 1, 2**31])
REQUESTS = st.sampled_from(list(_parse(_ROWS)))
BUFFERS = st.dictionaries(st.integers(0, 5), st.binary(max_size=300), max_size=6)
ERRNOS = st.just(0) | st.integers(0, 600)
VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 64)
ARCHES = st.sampled_from(["amd64", "arm64"])
BUFFER_DECODERS = sorted({*_ARRAYS, *_SPECIAL, *(name.partition(".")[0] for name in _all_structs())})


@given(
    name=st.sampled_from(list(SYSCALLS)),
    args=st.tuples(*[REGISTERS] * 6),
    ins=BUFFERS,
    outs=BUFFERS,
    value=VALUES,
    errno=ERRNOS,
    limit=st.integers(0, 100),
    arch=ARCHES,
)
def test_any_call_is_decoded(
    name: str, args: tuple[int, ...], ins: dict[int, bytes], outs: dict[int, bytes],
    value: int | None, errno: int, limit: int, arch: Arch,
) -> None:  # fmt: skip
    check_call(name, args, ins, outs, value, errno, limit, arch)


@given(request=REQUESTS, ins=BUFFERS, outs=BUFFERS, value=VALUES, errno=ERRNOS, arg=REGISTERS)
def test_any_request_is_decoded(
    request: tuple[str, int], ins: dict[int, bytes], outs: dict[int, bytes],
    value: int | None, errno: int, arg: int,
) -> None:  # fmt: skip
    name, number = request
    index = next(a.length.arg for a in SYSCALLS[name].args if a.kind.value == "reqarg" and a.length)
    args = [arg] * 6
    args[index or 0] = number
    check_call(name, tuple(args), ins, outs, value, errno, 32, "amd64")


def check_call(name: str, args: tuple[int, ...], ins: dict[int, bytes], outs: dict[int, bytes],
               value: int | None, errno: int, limit: int, arch: Arch) -> None:  # fmt: skip
    row = SYSCALLS[name]
    line = format_call(row, args, ins, outs, value, errno, limit=limit, arch=arch)
    assert line.startswith(f"{name}(")
    assert line.isascii()
    assert line.isprintable()
    decoded = decode_call(row, args, ins, outs, value, errno, limit=limit, arch=arch)
    assert json.loads(json.dumps(decoded)) == decoded
    assert set(decoded["args"]) <= {arg.name for arg in row.args}


@given(name=st.sampled_from(BUFFER_DECODERS), data=st.binary(max_size=400), arch=ARCHES)
def test_any_buffer_is_decoded(name: str, data: bytes, arch: Arch) -> None:
    decode = find_buffer(name, arch)
    assert decode is not None
    node = decode(data, arch)
    assert to_text(node, 32).isascii()
    json.dumps(to_plain(node, 32))


@given(name=st.sampled_from(set_names()), value=st.integers(0, 2**32 - 1), arch=ARCHES)
def test_flags_name_every_bit_once(name: str, value: int, arch: Arch) -> None:
    names = find_names(name, arch)
    assert names is not None
    if names.is_enumeration:
        return
    total: Any = 0
    for flag in names.flags_of(value):
        bits = int(flag, 16) if flag.startswith("0x") else names.names[flag]
        assert not total & bits
        total |= bits
    assert total == value


@given(name=st.sampled_from(set_names()), value=st.integers(0, 2**64 - 1))
def test_any_number_is_decoded(name: str, value: int) -> None:
    scalar = find_scalar(name, 64)
    assert scalar is not None
    assert to_text(scalar(value), 32)


@given(data=st.binary(max_size=100))
def test_quoted_text_is_what_c_reads_back(data: bytes) -> None:
    assert ast.literal_eval("b" + quote(data)) == data  # Python has the same escapes
