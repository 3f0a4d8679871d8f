"""Files that a program reads itself: what it finds at their numbers, and what is known of the offset afterwards."""

import errno
import os
import time
from collections.abc import Callable, Iterator

import pytest

from ptserver.hosts.known_file import KnownFile
from ptserver.hosts.local_files import LocalFiles
from ptserver.messages import Ahead
from stepping.direct_calls import TABLE_DESCRIPTORS

DATA = b"what is in the file"


class Program:
    """The program's descriptors, its table, and the listener by which they are put there."""

    def __init__(self) -> None:
        self.descriptors: dict[int, int] = {}
        self.put: dict[int, int] = {}
        self.table: dict[int, bool] = {}
        self.puts = 0
        self.later: list[Callable[[], None]] = []
        self.files = LocalFiles(self, self, lambda seconds, call: self.later.append(call), lambda: True)  # type: ignore[arg-type]

    def put_fd(self, notification_id: int, fd: int, number: int) -> None:
        self.close_own(number)
        self.descriptors[number] = os.dup(fd)
        self.put[number] = fd
        self.puts += 1

    def close_own(self, number: int) -> None:
        if number in self.descriptors:
            os.close(self.descriptors.pop(number))

    def set(self, fd: int, *, is_file: bool) -> None:
        self.table[fd] = is_file

    def clear(self, fd: int) -> None:
        del self.table[fd]

    def await_unused(self) -> None:
        pass

    def read(self, fd: int, size: int) -> bytes:
        assert self.table[fd]
        return os.read(self.descriptors[fd], size)


@pytest.fixture
def program() -> Iterator[Program]:
    program = Program()
    yield program
    program.files.close()
    for number in list(program.descriptors):
        program.close_own(number)


def known(data: bytes = DATA, number: int = 7, since: float = 0.0) -> KnownFile:
    stat = bytes(48) + len(data).to_bytes(8, "little") + bytes(88)
    return KnownFile(Ahead(1, 0, stat, data=data, end=True, lasting=number), since=since)


def test_the_program_reads_until_it_is_told_not_to(program: Program) -> None:
    file = known()
    program.files.open(1, 5, file)
    assert program.read(5, 4) == DATA[:4]
    program.files.end(5)
    assert not program.table
    assert file.position == 4
    program.files.end(5)


def test_each_descriptor_has_its_offset(program: Program) -> None:
    files = [known(), known(), known(b"", 8)]
    for fd, file in enumerate(files):
        program.files.open(1, fd, file)
    assert (program.read(0, 3), program.read(1, 5), program.read(2, 5)) == (DATA[:3], DATA[:5], b"")
    program.files.end_all()
    assert [file.position for file in files] == [3, 5, 0]


def test_nobody_can_change_what_is_there(program: Program) -> None:
    program.files.open(1, 5, known())
    path = f"/proc/self/fd/{program.descriptors[5]}"
    with pytest.raises(PermissionError):
        os.truncate(path, 1)
    writable = os.open(path, os.O_RDWR)
    with pytest.raises(OSError, match="not permitted") as failed:
        os.write(writable, b"x")
    assert failed.value.errno == errno.EPERM
    os.close(writable)


def test_what_is_at_the_number_is_used_again_for_the_same_file_only(program: Program) -> None:
    program.files.open(1, 5, known())
    assert program.read(5, 100) == DATA
    program.files.closed(5)
    assert not program.table
    program.files.open(1, 5, known())
    assert program.read(5, 100) == DATA
    assert program.puts == 1
    program.files.closed(5)
    program.files.open(1, 5, known(b"other", 8))
    assert program.read(5, 100) == b"other"
    program.files.closed(5)
    something = os.open("/dev/null", os.O_RDONLY)
    program.put_fd(1, something, 5)
    program.files.open(1, 5, known(b"other", 8))
    assert program.read(5, 100) == b"other"
    os.close(something)


def test_what_was_revoked_is_put_anew(program: Program) -> None:
    program.files.open(1, 5, known())
    program.files.end(5)
    program.files.forget(7)
    program.files.open(1, 5, known(b"new", 9))
    assert program.read(5, 100) == b"new"


def test_it_ends_before_it_is_too_old(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    program.files.open(1, 4, known(since=now - 0.6))
    assert not program.table, "it would be too old before anybody looks"
    program.files.open(1, 5, known(since=now))
    monkeypatch.setattr(time, "monotonic", lambda: now + 0.4)
    program.files.open(1, 6, known(since=now + 0.4))
    (tick,) = program.later
    monkeypatch.setattr(time, "monotonic", lambda: now + 0.55)
    tick()
    assert list(program.table) == [6]
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.05)
    program.later[1]()
    assert not program.table
    assert len(program.later) == 2


def test_a_file_is_laid_at_numbers_where_none_is(program: Program) -> None:
    file = known()
    assert program.files.open(1, 5, file)
    program.files.closed(5)
    program.files.lay(1, [5, 6, 9, TABLE_DESCRIPTORS], file)
    assert program.puts == 3
    assert [program.files.there(fd) for fd in (5, 6, 7, 9)] == [7, 7, 0, 7]
    assert not program.table
