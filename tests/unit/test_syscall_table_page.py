"""The published list of calls."""

from pathlib import Path

import pytest

from stepping.syscalls import SYSCALLS
from stepping.syscalls.describe import describe, page_with_tables

PAGE = Path(__file__).parents[2] / "docs/syscalls.md"


def test_published_list_is_the_present_one() -> None:
    text = PAGE.read_text()
    assert page_with_tables(text) == text, "replace what is between the page's markers by describe()'s text"


def test_every_call_is_listed_once() -> None:
    names = [line.split("(")[0][3:] for line in describe().splitlines() if line.startswith("| `")]
    assert sorted(names) == sorted(SYSCALLS)


def test_what_is_special_about_a_call_is_told() -> None:
    lines = describe().splitlines()
    assert "| `close(fd)` | 3 | 57 |  |" in lines
    assert "| `pause()` | 34 |  | waits |" in lines
    (mmap,) = [line for line in lines if line.startswith("| `mmap(")]
    assert mmap.endswith("| 9 | 222 | bound, a resource only if flags & 0x20 is 0x0 |")


def test_page_needs_its_markers() -> None:
    with pytest.raises(ValueError, match="no markers"):
        page_with_tables("# A page\n")
