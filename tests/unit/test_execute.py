"""Calls made in this process from the table alone, and what a hostile description of one cannot do."""

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptserver.shadow.execute import Executed, execute
from ptserver.shadow.execute_arena import Arena
from stepping.syscalls import SYSCALLS

AT_FDCWD = 2**64 - 100


def call(
    name: str, *args: int, ins: dict[int, bytes] | None = None, outs: dict[int, int] | None = None
) -> Executed:
    registers = [arg % 2**64 for arg in args] + [0] * (6 - len(args))
    return execute(SYSCALLS[name], registers, ins or {}, outs or {})


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "data").write_bytes(b"0123456789" * 10)
    number = os.open(tmp_path / "data", os.O_RDWR)
    yield number
    os.close(number)


def test_open_read_write_close(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "new")
    flags = os.O_RDWR | os.O_CREAT
    number, failure, outs = call("openat", AT_FDCWD, 0x7000, flags, 0o640, ins={1: path})
    assert (failure, outs) == (0, {})
    assert call("pwrite64", number, 0x7000, 5, 0, ins={1: b"hello"}) == (5, 0, {})
    assert call("pread64", number, 0x7000, 99, 1, outs={1: 99}) == (4, 0, {1: b"ello"})
    assert call("lseek", number, -2, os.SEEK_END) == (3, 0, {})
    assert call("close", number) == (0, 0, {})
    assert call("close", number) == (0, errno.EBADF, {})
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_out_buffers_come_back_as_far_as_they_are_valid(fd: int, tmp_path: Path) -> None:
    value, _, outs = call("fstat", fd, 0x7000, outs={1: 144})
    assert value == 0
    assert struct.unpack_from("=QQQ", outs[1])[1] == os.fstat(fd).st_ino
    os.symlink("target", tmp_path / "link")
    path = os.fsencode(tmp_path / "link")
    assert call("readlink", 1, 1, 100, ins={0: path}, outs={1: 100}) == (6, 0, {1: b"target"})
    assert call("getcwd", 1, 4096, outs={0: 4096})[2] == {0: os.fsencode(os.getcwd()) + b"\0"}
    assert call("readlink", 1, 1, 100, ins={0: b"/nowhere"}, outs={1: 100}) == (0, errno.ENOENT, {})


def test_vectors_are_one_buffer(fd: int) -> None:
    assert call("preadv", fd, 1, 3, 0, outs={1: 12}) == (12, 0, {1: b"012345678901"})
    assert call("pwritev", fd, 1, 3, 5, ins={1: b"abc"}) == (3, 0, {})
    assert os.pread(fd, 10, 0) == b"01234abc89"
    assert call("preadv", fd, 1, 0, 0, outs={1: 0}) == (0, 0, {})
    assert call("preadv", fd, 1, -1, 0, outs={1: 0})[1] == errno.EINVAL
    assert call("pwritev", fd, 1, 2**32 - 1, 0, ins={1: b""})[1] == errno.EINVAL


def test_buffers_of_any_size(fd: int) -> None:
    data = os.urandom(3 << 20)
    assert call("pwrite64", fd, 1, len(data), 0, ins={1: data})[0] == len(data)
    value, _, outs = call("pread64", fd, 1, len(data), 0, outs={1: len(data)})
    assert (value, outs[1] == data) == (len(data), True)
    assert call("pread64", fd, 1, 0, 0, outs={1: 0}) == (0, 0, {})


def test_direct_io_finds_its_buffers_aligned(tmp_path: Path) -> None:
    try:
        number = os.open(tmp_path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError:
        pytest.skip("the file system of the temporary folder has no direct I/O")
    data = os.urandom(8192)
    assert call("pwrite64", number, 1, len(data), 0, ins={1: data}) == (len(data), 0, {})
    assert call("pread64", number, 1, len(data), 0, outs={1: len(data)}) == (len(data), 0, {1: data})
    assert call("pwritev", number, 1, 2, 0, ins={1: data}) == (len(data), 0, {})
    assert call("pwrite64", number, 1, 8192, 1, ins={1: data})[1] == errno.EINVAL
    os.close(number)


def test_numbers_and_pointers_of_requests(fd: int) -> None:
    assert call("fcntl", fd, fcntl.F_SETFD, 1) == (0, 0, {})
    assert call("fcntl", fd, fcntl.F_GETFD, 0) == (1, 0, {})
    lock = struct.pack("=hhxxxxqqixxxx", fcntl.F_WRLCK, 0, 0, 10, 0)
    assert call("fcntl", fd, 36, 0x7000, ins={2: lock}, outs={2: 32})[2][2][:2] == struct.pack(
        "=h", fcntl.F_UNLCK
    )
    reading, writing = os.pipe()
    os.write(writing, b"abc")
    fionread = 0x541B
    assert call("ioctl", reading, fionread, 0x7000, ins={2: bytes(4)}, outs={2: 4})[2] == {2: b"\3\0\0\0"}
    assert call("ioctl", reading, fionread, 0x7000)[1] == errno.EFAULT
    os.close(reading)
    os.close(writing)


def test_inout_buffers_come_back_even_from_a_failed_call(fd: int) -> None:
    fds = struct.pack("=ihh", fd, 1, 0)
    assert call("poll", 1, 1, 0, ins={0: fds}, outs={0: 8}) == (1, 0, {0: struct.pack("=ihh", fd, 1, 1)})
    handle = struct.pack("=Ii", 0, 0)
    value, failure, outs = call(
        "name_to_handle_at", AT_FDCWD, 1, 1, 1, 0, ins={1: b"/", 2: handle, 3: bytes(8)}, outs={2: 8, 3: 8}
    )
    if failure == errno.EOVERFLOW:
        assert struct.unpack_from("=I", outs[2])[0] > 0
    else:
        assert (value, failure) in [(0, errno.EOPNOTSUPP), (0, errno.EPERM)]


def test_a_null_pointer_stays_one_and_a_pointer_without_bytes_faults(fd: int) -> None:
    assert call("utimensat", fd, 0, 0, 0) == (0, 0, {})
    assert call("utimensat", fd, 0, 0x7000, 0)[1] == errno.EFAULT
    assert call("pread64", fd, 0x7000, 4, 0)[1] == errno.EFAULT
    assert call("pwrite64", fd, 0x7000, 4, 0)[1] == errno.EFAULT
    assert call("openat", AT_FDCWD, 0x7000, 0)[1] == errno.EFAULT
    assert call("openat", AT_FDCWD, 0, 0)[1] == errno.EFAULT


def test_counts_never_exceed_the_buffers_that_came(fd: int) -> None:
    assert call("pread64", fd, 1, 2**62, 0, outs={1: 4}) == (4, 0, {1: b"0123"})
    assert call("pwrite64", fd, 1, 2**62, 0, ins={1: b"ab"}) == (2, 0, {})
    assert call("fstat", fd, 1, outs={1: 1})[2][1] == os.fstat(fd).st_dev.to_bytes(8, "little")[:1]
    assert call("utimensat", fd, 0, 1, 0, ins={2: bytes(31)})[1] == errno.EFAULT
    assert call("readlink", 1, 1, -1, ins={0: b"/proc/self/exe"}, outs={1: 10})[1] == errno.EINVAL
    assert call("select", 1024, 1, 0, 0, 1, ins={1: bytes(8), 4: bytes(16)}, outs={1: 8})[1] == errno.EINVAL


def test_masks_are_not_this_threads(fd: int) -> None:
    everything = b"\xff" * 8
    zero = bytes(16)
    ins = {0: struct.pack("=ihh", fd, 1, 0), 2: zero, 3: everything}
    assert call("ppoll", 1, 1, 1, 1, 8, ins=ins, outs={0: 8, 2: 16})[0] == 1
    assert call("pselect6", 0, 0, 0, 0, 1, 1, ins={4: zero, 5: everything}, outs={4: 16})[:2] == (0, 0)


def test_what_the_table_cannot_describe_is_refused() -> None:
    assert call("io_setup", 1, 1)[1] == errno.ENOSYS
    assert call("execve", 1, 1, 1, ins={0: b"/bin/true", 1: b"true", 2: b""})[1] == errno.ENOSYS
    assert call("ioctl", 0, 0x8912, 0x7000)[1] == errno.ENOTTY  # SIOCGIFCONF: holds an address


def test_threads_have_buffers_of_their_own(fd: int) -> None:
    reading, writing = os.pipe()
    results: list[Executed] = []
    threads = [
        threading.Thread(target=lambda: results.append(call("read", reading, 1, 3, outs={1: 3})))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert call("pread64", fd, 1, 3, 0, outs={1: 3})[2] == {1: b"012"}
    os.write(writing, b"aaabbbcccddd")
    for thread in threads:
        thread.join()
    assert sorted(result[2][1] for result in results) == [b"aaa", b"bbb", b"ccc", b"ddd"]
    os.close(reading)
    os.close(writing)


def test_an_arena_aligns_grows_and_shrinks() -> None:
    arena = Arena()
    arena.reserve(100)
    assert arena.take(5) % 64 == 0
    assert arena.take(1024) % 4096 == 0
    arena.reserve(5 << 20)
    assert arena.size_bytes >= 5 << 20
    arena.memory[arena.size_bytes - 1] = 7
    assert ctypes.string_at(arena.address + arena.size_bytes - 1, 1) == b"\x07"
    arena.reserve(100)
    assert arena.size_bytes <= 1 << 20
