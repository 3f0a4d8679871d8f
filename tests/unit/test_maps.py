"""Mappings: the grammar on real and odd lines, lookup at the edges, and gaps near code."""

import contextlib
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepping.errors import SteppingError, TraceeGoneError
from stepping.maps import PAGE_BYTES, USER_START, Maps, Vma, decode_maps, read_maps

TEXT = """\
00400000-0047e000 r-xp 00000000 fe:00 131 /srv/a program (deleted)
0047e000-00514000 r--p 0007e000 fe:00 131 /srv/a program (deleted)
c000000000-c000400000 rw-p 00000000 00:00 0
7fff1000-7fff2000 rw-s 00001000 00:01 77                  /memfd:x\\012y
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def vma(start: int, end: int) -> Vma:
    return Vma(start, end, "rw-p", 0, "00:00", 0, "")


def test_lines() -> None:
    maps = decode_maps(TEXT)
    assert len(maps) == 5
    first, second, shared, heap, vsyscall = maps
    assert first == Vma(0x400000, 0x47E000, "r-xp", 0, "fe:00", 131, "/srv/a program (deleted)")
    assert first.is_executable
    assert not first.is_shared
    assert second.offset == 0x7E000
    assert shared.path == "/memfd:x\\012y"
    assert shared.is_shared
    assert heap.path == ""
    assert vsyscall.size_bytes == 4096
    assert maps.by_path("/srv/a program (deleted)") == [first, second]


def test_half_open() -> None:
    maps = decode_maps(TEXT)
    first = maps.find(0x400000)
    assert first is not None
    assert 0x47DFFF in first
    assert 0x47E000 not in first
    assert "a" not in first
    assert maps.find(0x3FFFFF) is None
    assert maps.find(0x47DFFF) == first
    assert maps.find(0x47E000) != first
    assert maps.find(0x514000) is None


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "1-2",
        "2-1 r--p 0 0:0 0",
        "1-2 r--p 0 0:0 z",
        "1-2 r- 0 0:0 0",
        "-2 r--p 0 0:0 0",
        "1-1 r--p 0 0:0 0",
    ],
)
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(SteppingError, match="maps file"):
        decode_maps(line)


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    with contextlib.suppress(SteppingError):
        assert len(decode_maps(text)) <= text.count("\n") + 1


def test_a_span_is_of_mappings_without_a_gap_that_are_accepted() -> None:
    spans = [
        (0x1000, 0x2000, "rw-p"),
        (0x3000, 0x4000, "rw-p"),
        (0x4000, 0x6000, "rw-p"),
        (0x6000, 0x7000, "r--p"),
    ]
    maps = Maps(Vma(start, end, perms, 0, "00:00", 0, "") for start, end, perms in spans)

    def is_writable(vma: Vma) -> bool:
        return vma.perms[1] == "w"

    assert maps.find_span(0x3000, is_writable) == maps.find_span(0x5FFF, is_writable) == range(0x3000, 0x6000)
    assert maps.find_span(0x1800, is_writable) == range(0x1000, 0x2000)
    assert maps.find_span(0x6000, lambda vma: True) == range(0x3000, 0x7000)
    for address in (0x800, 0x2000, 0x6000, 0x9000):
        assert not maps.find_span(address, is_writable)


def test_this_process() -> None:
    maps = read_maps(os.getpid())
    assert maps.find(id(maps)) is not None
    assert any(vma.is_executable for vma in maps)


def test_no_process() -> None:
    with pytest.raises(TraceeGoneError):
        read_maps((1 << 22) + 1)


@example([], 18, 3, 2)
@given(
    st.lists(st.tuples(st.integers(16, 1000), st.integers(1, 50)), max_size=30),
    st.integers(16, 1200),
    st.integers(1, 20),
    st.integers(1, 600),
)
def test_a_gap_is_free_and_in_reach(
    spans: list[tuple[int, int]], near_page: int, pages: int, reach_pages: int
) -> None:
    taken: list[Vma] = []
    for start, count in sorted(spans):
        if not taken or start * PAGE_BYTES >= taken[-1].end:
            taken.append(vma(start * PAGE_BYTES, (start + count) * PAGE_BYTES))
    near, size, reach = near_page * PAGE_BYTES + 123, pages * PAGE_BYTES - 5, reach_pages * PAGE_BYTES
    gap = Maps(taken).find_gap(size, near, reach)

    def fits(start: int) -> bool:
        end = start + pages * PAGE_BYTES
        return (
            start >= USER_START + PAGE_BYTES
            and abs(start - near) <= reach
            and abs(end - near) <= reach
            and all(start >= one.end + PAGE_BYTES or end + PAGE_BYTES <= one.start for one in taken)
        )

    if gap is None:
        assert not any(map(fits, range((near - reach) & -PAGE_BYTES, near + reach, PAGE_BYTES)))
    else:
        assert gap % PAGE_BYTES == 0
        assert fits(gap)
