"""The stub's marker is found in read-only segments, wherever it lies, and nowhere else."""

import struct
from pathlib import Path

import pytest

from goabi.elf_header import PF_R, PF_W, PF_X
from goabi.errors import NotElfError
from ptserver.stub import marker as marker_module
from ptserver.stub.hypercalls import MARKER_RUN, STUB_ABI, encode_marker
from ptserver.stub.marker import StubInfo, find_stub_marker

HEADERS_BYTES = 64 + 2 * 56
SLICE = marker_module._SLICE_BYTES


def program(
    path: Path, first: bytes, second: bytes = b"", flags: int = PF_R, second_flags: int = PF_R
) -> Path:
    """An ELF program of two segments."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, 0x400000, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    segments = b""
    offset = HEADERS_BYTES
    for content, permissions in ((first, flags), (second, second_flags)):
        size = len(content)
        segments += struct.pack("<IIQQQQQQ", 1, permissions, offset, 0x400000 + offset, 0, size, size, 1)
        offset += size
    path.write_bytes(header + segments + first + second)
    return path


@pytest.mark.parametrize(
    "before", [0, 1, SLICE - 60, SLICE - 20, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE - 3, 2 * SLICE + 300]
)
def test_found_wherever_it_lies(tmp_path: Path, before: int) -> None:
    path = program(tmp_path / "p", bytes(before) + encode_marker("linux") + bytes(100))
    assert find_stub_marker(path) == StubInfo(STUB_ABI, "linux")


def test_found_at_the_end_of_the_second_segment(tmp_path: Path) -> None:
    path = program(tmp_path / "p", bytes(10), encode_marker("plan9", abi=2))
    found = find_stub_marker(path)
    assert found == StubInfo(2, "plan9")
    assert not found.supported


@pytest.mark.parametrize("flags", [PF_R | PF_X, PF_R | PF_W])
def test_not_looked_for_in_code_or_variables(tmp_path: Path, flags: int) -> None:
    assert find_stub_marker(program(tmp_path / "p", encode_marker("linux"), flags=flags)) is None


def test_what_looks_like_its_beginning_is_passed_over(tmp_path: Path) -> None:
    false = encode_marker("linux")[:-1] + b"!" + encode_marker("linux")[:36]
    assert find_stub_marker(program(tmp_path / "p", false)) is None
    path = program(tmp_path / "q", false * 3 + encode_marker("linux"))
    assert find_stub_marker(path) == StubInfo(STUB_ABI, "linux")


@pytest.mark.parametrize("length", [1, 32, SLICE - 8, SLICE, 3 * SLICE + 5])
def test_found_after_a_run_of_the_byte_that_it_starts_with(tmp_path: Path, length: int) -> None:
    path = program(tmp_path / "p", MARKER_RUN[:1] * length + encode_marker("linux"))
    assert find_stub_marker(path) == StubInfo(STUB_ABI, "linux")
    assert find_stub_marker(program(tmp_path / "q", MARKER_RUN[:1] * length)) is None


def test_a_marker_cut_by_the_segments_end_is_none(tmp_path: Path) -> None:
    whole = encode_marker("linux")
    assert find_stub_marker(program(tmp_path / "p", whole[:-1], whole[-1:])) is None


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(encode_marker("linux"))
    with pytest.raises(NotElfError):
        find_stub_marker(path)
