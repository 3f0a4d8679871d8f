"""Accesses of any size at any place, across the borders of remote and local: as if all memory were in one place."""

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepping.remote_filter import address_filter
from stepping.remote_memory import RemoteMap, RemoteVariable, SplitAtomicError
from stepping.seccomp import Verdict
from stepping.tracee_memory import TraceeMemory
from tests.bpf import run, seccomp_data
from tests.property.test_remote_plans import Bytes

START, SIZE = 0x500000, 256


class Places:
    """A process's memory, and the store of each of its variables."""

    def __init__(self, variables: list[RemoteVariable]) -> None:
        self.local = Bytes(bytes(range(256)))
        self.stores = {variable.name: bytearray(variable.size) for variable in variables}

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.local.data[address - START : address - START + size])

    def write(self, address: int, data: bytes) -> None:
        self.local.data[address - START : address - START + len(data)] = data

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        assert 0 <= offset < offset + size <= variable.size
        return bytes(self.stores[variable.name][offset : offset + size])

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        assert 0 <= offset < offset + len(data) <= variable.size
        self.stores[variable.name][offset : offset + len(data)] = data

    def atomic(self, *_: object) -> bytes:
        raise AssertionError("not called here")


@st.composite
def layouts(draw: st.DrawFn) -> list[RemoteVariable]:
    cuts = sorted(draw(st.sets(st.integers(0, SIZE), min_size=2, max_size=8)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    return [RemoteVariable(START + low, high - low, f"v{low}") for low, high in pairs]


accesses = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=64), st.booleans()), max_size=12
)


@given(layouts(), accesses)
def test_pieces_are_put_together(
    variables: list[RemoteVariable], steps: list[tuple[int, bytes, bool]]
) -> None:
    places = Places(variables)
    remote = RemoteMap(variables, cast(TraceeMemory, places), places)
    whole = bytearray(range(256))
    for variable in variables:
        whole[variable.address - START : variable.end - START] = bytes(variable.size)
    for offset, data, writes in steps:
        data = data[: SIZE - offset]
        if writes:
            remote.write(START + offset, data)
            whole[offset : offset + len(data)] = data
        assert remote.read(START + offset, len(data)) == whole[offset : offset + len(data)]
        assert remote.read(START, SIZE) == whole


def test_half_an_atomic_operation_is_refused() -> None:
    variable = RemoteVariable(START + 8, 8, "x")
    places = Places([variable])
    remote = RemoteMap([variable], cast(TraceeMemory, places), places)
    for address in (START + 4, START + 12):
        with pytest.raises(SplitAtomicError):
            remote.atomic(address, "add", bytes(8))
    # A neighbour's is made in the process.
    assert remote.atomic(START + 16, "exchange", b"ABCD") == bytes(range(16, 20))
    assert places.read(START + 16, 4) == b"ABCD"


ADDRESSES = (
    st.integers(0, (1 << 64) - 1)
    | st.integers(0x3059_0000, 0x3059_3000)
    | st.integers(0xFFFF_F000, 0x1_0000_2000)
)
SPANS = [(0x3059_1000, 0x3059_2000), (0xFFFF_F800, 0x1_0000_1000), (0x5555_5555_0000, 0x5555_5555_1000)]


@given(st.lists(ADDRESSES, min_size=6, max_size=6))
def test_the_filter_stops_calls_with_remote_addresses(args: list[int]) -> None:
    wanted = any(low <= value < high for value in args for low, high in SPANS)
    verdict = run(address_filter(SPANS), seccomp_data(1, 0xC000003E, 0, args))
    assert verdict == (Verdict.TRACE if wanted else Verdict.ALLOW).value
