"""The machine code that tells Unicorn what may be touched says what its table says, and counts blocks exactly."""

import ctypes
import mmap
import platform

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepping.emulation.exits import HostCode

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the machine code is for x86-64 hosts; others use Python"
)

READ, WRITE, FETCH = 16, 17, 18  # enum uc_mem_type
PAGES = 64


class Page(ctypes.Structure):
    _fields_ = (("physical", ctypes.c_uint64), ("protection", ctypes.c_uint32))


FILL = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.POINTER(Page),
    ctypes.POINTER(ctypes.c_int32),
)
BLOCK = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.POINTER(ctypes.c_int32)
)
STOP = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


@given(
    table=st.lists(st.integers(0, 7), min_size=PAGES, max_size=PAGES),
    page=st.integers(0, PAGES - 1) | st.integers(1 << 32, (1 << 52) - 1),
    access=st.sampled_from([READ, WRITE, FETCH]),
)
def test_a_page_may_be_touched_as_the_table_says(table: list[int], page: int, access: int) -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[:PAGES] = bytes(table)
    code = HostCode()
    fill = FILL(code.fill_hook(ctypes.addressof(ctypes.c_char.from_buffer(memory))))
    answer, refused = Page(), ctypes.c_int32(-1)
    allowed = fill(None, page << 12, access, ctypes.byref(answer), ctypes.byref(refused))
    expected = page < PAGES and table[page] >> access - READ & 1
    assert allowed == bool(expected)
    if expected:
        assert (answer.physical, answer.protection, refused.value) == (page << 12, table[page], -1)
    else:
        assert refused.value == access - READ


@given(sizes=st.lists(st.integers(1, 1 << 20), min_size=1, max_size=30), budget=st.integers(0, 1 << 22))
def test_a_budget_stops_when_it_is_used_up(sizes: list[int], budget: int) -> None:
    stops: list[int] = []
    stop = STOP(lambda _engine: stops.append(1) or 0)
    address = ctypes.cast(stop, ctypes.c_void_p).value
    assert address is not None
    code = HostCode()
    block = BLOCK(code.budget_hook(address))
    left = ctypes.c_int32(budget)
    for count, size in enumerate(sizes, 1):
        block(None, 0, size, ctypes.byref(left))
        assert len(stops) == (sum(sizes[:count]) > budget)
