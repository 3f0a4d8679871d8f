"""The copy of a mapped file: which chunks are missing, what is written back, how changes are repeated."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptserver.hosts.mapped_file import CHUNK_BYTES, FileFacts, MappedFile


def facts(size: int, mtime: int = 1) -> FileFacts:
    return FileFacts(8, 77, 0o100644, 0, size, (mtime, 0, mtime, 0))


@pytest.fixture
def file() -> Iterator[MappedFile]:
    file = MappedFile(facts(2 * CHUNK_BYTES + 100))
    yield file
    file.close()


def content(file: MappedFile) -> bytes:
    return os.pread(file.fd, file.facts.size + 1, 0)


def test_only_what_is_mapped_and_exists_is_missing(file: MappedFile) -> None:
    assert file.missing(0, 1) == [0]
    assert file.missing(CHUNK_BYTES - 1, 2) == [0, 1]
    assert file.missing(4096, 1 << 40) == [0, 1, 2]
    assert file.missing(1 << 30, 4096) == []
    file.fill(1, b"x" * CHUNK_BYTES)
    assert file.missing(0, 1 << 40) == [0, 2]
    assert file.size_bytes == CHUNK_BYTES


def test_a_late_answer_does_not_undo_what_the_program_wrote(file: MappedFile) -> None:
    file.fill(0, b"server" + bytes(CHUNK_BYTES - 6))
    os.pwrite(file.fd, b"memory", 0)
    file.fill(0, b"server" + bytes(CHUNK_BYTES - 6))
    assert content(file)[:6] == b"memory"


def test_an_answer_never_makes_the_file_longer(file: MappedFile) -> None:
    file.fill(2, b"y" * CHUNK_BYTES)
    assert os.fstat(file.fd).st_size == 2 * CHUNK_BYTES + 100


def test_a_file_that_has_changed_is_fetched_again(file: MappedFile) -> None:
    file.fill(0, b"a" * CHUNK_BYTES)
    file.take_facts(facts(CHUNK_BYTES, mtime=2))
    assert file.missing(0, 1 << 40) == [0]
    assert os.fstat(file.fd).st_size == CHUNK_BYTES
    file.fill(0, b"b" * CHUNK_BYTES)
    file.take_own_change(facts(CHUNK_BYTES + 5, mtime=3))
    assert file.missing(0, CHUNK_BYTES) == []


def test_the_program_gets_a_descriptor_that_cannot_write_unless_it_may(file: MappedFile) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(file.fd_to_map(writable=False), b"x")
    assert os.pwrite(file.fd_to_map(writable=True), b"x", 0) == 1


def test_what_a_call_wrote_is_not_written_back(file: MappedFile) -> None:
    for number in range(3):
        file.fill(number, bytes(CHUNK_BYTES))
    file.begin_writing()
    file.write(CHUNK_BYTES - 2, b"call")
    assert list(file.take_changes()) == []
    os.pwrite(file.fd, b"memory", CHUNK_BYTES + 2)
    assert list(file.take_changes()) == [(CHUNK_BYTES + 2, b"memory")]
    assert list(file.take_changes()) == []


changes = st.lists(
    st.tuples(st.integers(0, 2 * CHUNK_BYTES + 90), st.binary(min_size=1, max_size=9000)), max_size=6
)


@given(changes)
def test_what_is_written_back_makes_the_files_the_same(changes: list[tuple[int, bytes]]) -> None:
    file = MappedFile(facts(2 * CHUNK_BYTES + 100))
    try:
        at_server = bytearray(2 * CHUNK_BYTES + 100)
        for number in range(3):
            file.fill(number, bytes(CHUNK_BYTES))
        file.begin_writing()
        for at, data in changes:
            os.pwrite(file.fd, data[: len(at_server) - at], at)
        written = list(file.take_changes())
        for at, data in written:
            at_server[at : at + len(data)] = data
        assert at_server == content(file)
        assert sum(len(data) for _, data in written) <= sum(len(data) for _, data in changes) * 2 + 4096 * 6
    finally:
        file.close()
