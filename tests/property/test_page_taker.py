"""Pages that are taken away from a memfd: those and no others, with what they have last."""

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepping.maps import PAGE_BYTES
from stepping.page_taker import PageTaker

_FIRST = 1 << 20  # somewhere
_PAGES = 40


class _File:
    """A memfd, a mapping of some pages of it, and who takes them."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("pages")
        os.ftruncate(self.fd, 1 << 47)
        self.mapping = mmap.mmap(self.fd, _PAGES * PAGE_BYTES, offset=_FIRST * PAGE_BYTES)
        self.taker = PageTaker(self.fd)

    def there(self) -> set[int]:
        """Return which pages the file has."""
        return {
            page
            for page in range(_FIRST, _FIRST + _PAGES)
            if os.lseek(self.fd, page * PAGE_BYTES, os.SEEK_HOLE) != page * PAGE_BYTES
        }

    def close(self) -> None:
        self.taker.close()
        self.mapping.close()
        os.close(self.fd)


@pytest.fixture
def file() -> Iterator[_File]:
    file = _File()
    yield file
    file.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.integers(0, _PAGES - 1), min_size=1).flatmap(
        lambda there: st.tuples(
            st.just(there), st.lists(st.sampled_from(sorted(there)), min_size=1, unique=True)
        )
    )
)
def test_those_pages_are_away_and_no_others(file: _File, pages: tuple[set[int], list[int]]) -> None:
    there, taken = pages
    file.taker.drop(_FIRST * PAGE_BYTES, _PAGES * PAGE_BYTES)
    for page in there:
        file.mapping[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes([page + 1]) * PAGE_BYTES
    numbers = [_FIRST + page for page in taken]
    if file.taker.can_take:
        assert file.taker.take(numbers) == b"".join(bytes([page + 1]) * PAGE_BYTES for page in taken)
    else:
        file.taker.drop_pages(numbers)
    assert file.there() == {_FIRST + page for page in there - set(taken)}
    for page in taken:
        assert file.mapping[page * PAGE_BYTES] == 0
    file.taker.drop(_FIRST * PAGE_BYTES, _PAGES * PAGE_BYTES)


def test_pages_beyond_what_a_pipe_holds_are_taken(file: _File) -> None:
    pages = range(_FIRST, _FIRST + 150)
    for page in pages:
        os.pwrite(file.fd, page.to_bytes(8, "little"), page * PAGE_BYTES)
    if file.taker.can_take:
        data = file.taker.take(pages)
        assert [
            int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), PAGE_BYTES)
        ] == list(pages)
