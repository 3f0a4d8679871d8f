"""Which calls are answered from what is known, which are posted, and what makes everything be forgotten."""

import errno
import itertools
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from ptserver.hosts.known_files import KnownFiles
from ptserver.messages import (
    Ahead,
    DescriptorState,
    Listed,
    Message,
    Named,
    Reopened,
    Result,
    Revoked,
    Syscall,
    Taken,
    Upcoming,
)
from stepping.errors import MemoryFaultError
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS

PID = 100
AT_FDCWD = (1 << 64) - 100
DATA = b"what the file begins with"
STAT = (b"\0" * 24 + (0o100644).to_bytes(4, "little")).ljust(48, b"\0") + (len(DATA)).to_bytes(8, "little")
STAT = STAT.ljust(144, b"\0")


class Host:
    """Stands for the host around KnownFiles; the session opens what it is told to open."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.answers: dict[int, tuple[int, int, dict[int, bytes]]] = {}
        self.made: list[str] = []
        self._ids = itertools.count(1)
        self._names: dict[int, Any] = {}
        self.known = KnownFiles(
            PID,
            PID,
            (0, 1, 2),
            self.sent.append,
            self.sent.append,
            self._answer,
            self._make,
            lambda: next(self._ids),
            lambda: None,
            "amd64",
        )

    def _answer(self, call: Any, value: int, error: int, outs: dict[int, bytes]) -> None:
        self.answers[call.id] = (value, error, outs)

    def _make(self, call: Any) -> None:
        self.made.append(call.row.name)

    def call(
        self,
        name: str,
        *args: int,
        ins: dict[int, bytes] | None = None,
        outs: dict[int, int] | None = None,
        pid: int = PID,
    ) -> tuple[int, int, dict[int, bytes]] | None:
        """Return the answer, or None if the call goes to the session, which then answers 0."""
        call = self._new(name, args, ins or {}, outs or {}, pid)
        if self.known.serve(call):
            return self.answers.get(call.id, (-1, 0, {}))
        self.known.heard(call, Result(call.id))
        return None

    def call_sent(self, name: str, *args: int, path: bytes = b"") -> Any:
        """Return a call that goes to the session, which has not answered."""
        call = self._new(name, args, {1: path}, {}, PID)
        assert not self.known.serve(call)
        return call

    def call_waiting(self, name: str, *args: int, path: bytes = b"") -> Any:
        """Return a call that waits here."""
        call = self._new(name, args, {1: path}, {}, PID)
        assert self.known.serve(call)
        assert call.id not in self.answers
        return call

    def _new(
        self, name: str, args: tuple[int, ...], ins: dict[int, bytes], outs: dict[int, int], pid: int
    ) -> Any:
        registers = (*args, *(0,) * (6 - len(args)))
        return SimpleNamespace(
            id=next(self._ids),
            tid=pid,
            row=SYSCALLS[name],
            process=SimpleNamespace(pid=pid),
            args=registers,
            gathered=SimpleNamespace(args=registers, ins=ins, outs=outs),
        )

    def open(self, fd: int = 5, path: bytes = b"dir/file", **ahead: Any) -> int:
        call = self._new("openat", (AT_FDCWD, 1, os.O_RDONLY), {1: path}, {}, PID)
        assert not self.known.serve(call)
        self.known.take(Ahead(call.id, os.O_RDONLY, STAT, **(ahead or {"data": DATA, "end": True})))
        self.known.heard(call, Result(call.id, fd))
        return fd

    def open_lasting(self, path: bytes = b"dir/file", number: int = 7) -> None:
        """Open and close a file that lasts, as descriptor 5, which is the lowest that is free then."""
        self.known.lasting.heard()
        self.open(5, path, data=DATA, end=True, lasting=number)
        assert self.call("close", 5) == (0, 0, {})
        self.sent.clear()

    def open_again(self, path: bytes = b"dir/file", how: int = os.O_RDONLY) -> tuple[int, int, Any] | None:
        return self.call("openat", AT_FDCWD, 1, how, ins={1: path})

    def stat_path(self, path: bytes = b"dir/file", flags: int = 0) -> Any:
        return self.call("newfstatat", AT_FDCWD, 1, 1, flags, ins={1: path}, outs={2: 144})

    def read(self, size: int, fd: int = 5) -> bytes | None:
        answer = self.call("read", fd, 1, size, outs={1: size})
        return None if answer is None or answer[0] < 0 else answer[2].get(1, b"")

    def posted(self) -> list[tuple[str, tuple[int, ...]]]:
        posted = [(m.name, m.args) for m in self.sent if isinstance(m, Syscall) and m.posted]
        self.sent.clear()
        return posted


class Memory:
    """Stands for the program's: strings, and what is written; there is nothing at 0."""

    def __init__(self, strings: dict[int, bytes]) -> None:
        self._strings = strings
        self.written: dict[int, bytes] = {}

    def read_string(self, address: int, limit: int) -> bytes:
        if address not in self._strings:
            raise MemoryFaultError(address)
        return self._strings[address][:-1]

    def write(self, address: int, data: bytes) -> None:
        if not address:
            raise MemoryFaultError(address)
        self.written[address] = data


def notification(name: str, *args: int) -> Notification:
    """Return what the listener tells of a call."""
    return Notification(1, PID, 0, SYSCALLS[name].numbers["amd64"], 0, 0, *args, *(0,) * (6 - len(args)))


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_small_file_is_read_without_asking(host: Host) -> None:
    host.open()
    assert host.call("fcntl", 5, 3) == (os.O_RDONLY, 0, {})
    assert host.call("fcntl", 5, 4, os.O_NONBLOCK) == (0, 0, {})
    assert host.call("epoll_ctl", 9, 1, 5) == (0, errno.EPERM, {})
    assert host.call("fcntl", 5, 3) == (os.O_NONBLOCK, 0, {})
    assert host.call("fstat", 5, 1, outs={1: 144}) == (0, 0, {1: STAT})
    assert host.call("newfstatat", 5, 1, 1, 0x1000, ins={1: b""}, outs={2: 144}) == (0, 0, {2: STAT})
    assert host.read(10) == DATA[:10]
    assert host.call("pread64", 5, 1, 4, 2, outs={1: 4}) == (4, 0, {1: DATA[2:6]})
    assert host.call("lseek", 5, (1 << 64) - 5, os.SEEK_CUR) == (5, 0, {})
    assert host.read(100) == DATA[5:]
    assert host.read(100) == b""
    assert host.call("close", 5) == (0, 0, {})
    assert host.posted() == [("fcntl", (5, 4, os.O_NONBLOCK, 0, 0, 0)), ("close", (5, 0, 0, 0, 0, 0))]


def test_the_session_knows_the_offset_before_it_makes_another_call(host: Host) -> None:
    host.open()
    host.read(7)
    host.read(2)
    assert host.call("getuid") is None
    assert host.posted() == [("lseek", (5, 9, 0, 0, 0, 0))]
    assert host.call("getuid") is None
    assert host.posted() == []


QUIET = ["getuid", "readlinkat", "epoll_create1"]
CHANGING = ["unlinkat", "renameat2", "pwrite64", "ftruncate"]


@pytest.mark.parametrize("name", QUIET)
def test_quiet_calls_leave_everything_known(host: Host, name: str) -> None:
    host.open()
    assert host.call(name, 9) is None
    assert host.read(4) == DATA[:4]


def test_writing_to_what_is_no_file_is_quiet(host: Host) -> None:
    host.open()
    assert host.call("write", 1, 1, 5, ins={1: b"hello"}) is None
    assert host.read(4) == DATA[:4]
    assert host.call("dup2", 9, 1) is None
    host.open()
    assert host.call("write", 1, 1, 5, ins={1: b"hello"}) is None
    assert host.read(4) is None, "1 may be a file now"


@pytest.mark.parametrize("name", [*CHANGING, "write", "read", "recvfrom", "wait4"])
def test_other_calls_make_contents_be_asked_for_again(host: Host, name: str) -> None:
    host.open()
    assert host.read(4) == DATA[:4]
    if name in ("read", "recvfrom", "wait4"):
        call: Any = SimpleNamespace(
            id=1000, row=SYSCALLS[name], process=SimpleNamespace(pid=PID), args=(8, 1, 10, 0, 0, 0),
            gathered=SimpleNamespace(ins={}, outs={1: 10}),
        )  # fmt: skip
        assert not host.known.serve(call)
        assert host.call("fstat", 5, 1, outs={1: 144}) is not None, "it has not returned yet"
        host.known.heard(call, Result(1000, 3))
    else:
        assert host.call(name, 8) is None
    assert host.call("fstat", 5, 1, outs={1: 144}) is None
    host.sent.clear()
    assert host.read(4) is None
    (asked,) = host.sent
    assert isinstance(asked, Syscall)
    assert (asked.name, asked.args[0], asked.args[3]) == ("pread64", 5, 4)
    host.known.take_own(Result(asked.id, 6, 0, {1: b"better"}))
    assert list(host.answers.values())[-1] == (4, 0, {1: b"bett"})


@pytest.mark.parametrize(
    "name", ["dup", "dup3", "sendmsg", "sendfile", "ioctl", "clone", "execve", "close_range"]
)
def test_what_may_share_an_offset_makes_descriptors_be_forgotten(host: Host, name: str) -> None:
    host.open()
    host.read(3)
    assert host.call(name, 5) is None
    assert host.posted() == [("lseek", (5, 3, 0, 0, 0, 0))]
    assert host.call("read", 5, 1, 4, outs={1: 4}) is None
    assert host.call("close", 5) is None


def test_another_process_makes_everything_be_forgotten(host: Host) -> None:
    host.open()
    assert host.call("read", 5, 1, 4, outs={1: 4}, pid=PID + 1) is None
    assert host.call("read", 5, 1, 4, outs={1: 4}) is None


def test_a_folder_is_listed_and_its_entries_known(host: Host) -> None:
    listing = (Listed(8192, b"first", 77), Listed(8192, b"", 77))
    names = (Named(b"file", STAT),)
    host.open(6, b"dir", folder=True, listing=listing, names=names)
    assert host.call("getdents64", 6, 1, 8192, outs={1: 8192}) == (5, 0, {1: b"first"})
    assert host.call("getdents64", 6, 1, 8192, outs={1: 8192}) == (0, 0, {})
    for dirfd, path in ((AT_FDCWD, b"dir/file"), (6, b"file")):
        assert host.call("newfstatat", dirfd, 1, 1, 0x100, ins={1: path}, outs={2: 144}) == (0, 0, {2: STAT})
    memory: Any = Memory({8: b"dir/file\0", 24: b"dir/other\0"})
    number = SYSCALLS["newfstatat"].numbers["amd64"]
    for path, room, answer in ((8, 64, (0, 0)), (24, 64, None), (8, 0, None), (0, 64, None)):
        found = host.known.quick(
            Notification(1, PID, 0, number, 0, 0, AT_FDCWD, path, room, 0x100, 0, 0), memory
        )
        assert found == answer
    assert memory.written == {64: STAT}
    assert host.call("newfstatat", AT_FDCWD, 1, 1, 0x100, ins={1: b"dir/other"}, outs={2: 144}) is None
    assert host.call("newfstatat", AT_FDCWD, 1, 1, 0x100, ins={1: b"file"}, outs={2: 144}) is None
    assert host.call("unlinkat", 9) is None
    assert host.call("newfstatat", 6, 1, 1, 0x100, ins={1: b"file"}, outs={2: 144}) is None


def tell_of(host: Host, number: int, path: bytes = b"next") -> None:
    names = (Named(b"file", STAT),)
    host.known.take(Upcoming(path, os.O_DIRECTORY, Ahead(number, 0, STAT, folder=True, names=names)))


def open_folder(host: Host, path: bytes = b"next", how: int = os.O_DIRECTORY) -> int | None:
    """Return the number that it gets at once, None if the session is asked."""
    answer = host.call("openat", AT_FDCWD, 1, how, ins={1: path})
    return None if answer is None else answer[0]


def taken(host: Host) -> list[tuple[int, int]]:
    found = [(m.id, m.fd) for m in host.sent if isinstance(m, Taken)]
    host.sent.clear()
    return found


def test_a_folder_that_was_told_of_is_opened_as_the_number_that_is_free(host: Host) -> None:
    host.open(7)
    tell_of(host, 1)
    assert open_folder(host) is None  # which number is next was not known
    assert taken(host) == [(1, -1)]
    host.open(7)
    assert host.call("close", 7) == (0, 0, {})
    tell_of(host, 2)
    assert open_folder(host) == 7
    assert taken(host) == [(2, 7)]
    for dirfd, path in ((AT_FDCWD, b"next/file"), (7, b"file")):
        assert host.call("newfstatat", dirfd, 1, 1, 0x100, ins={1: path}, outs={2: 144}) == (0, 0, {2: STAT})
    tell_of(host, 3)
    assert open_folder(host) is None


@pytest.mark.parametrize("name", ["unlinkat", "dup", "epoll_wait"])
def test_a_folder_that_was_told_of_is_forgotten_like_all_else(host: Host, name: str) -> None:
    host.open(7)
    host.call("close", 7)
    tell_of(host, 1)
    call: Any = host.call_sent(name, 7)
    host.known.heard(call, Result(call.id, 1))
    assert taken(host) == [(1, -1)]
    assert open_folder(host) is None


def test_what_was_told_before_a_posted_write_to_a_file_was_made_is_not_used(host: Host) -> None:
    host.open(7)
    host.call("close", 7)
    host.known.take(DescriptorState(4, "file", 100))
    assert host.call("write", 4, 1, 5, ins={1: b"12345"}) == (5, 0, {})
    tell_of(host, 1)
    assert taken(host) == [(1, -1)]
    assert host.call("statfs", 1) is None
    tell_of(host, 2)
    assert open_folder(host) == 7


def test_folders_that_nobody_opens_are_given_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    tell_of(host, 1)
    tell_of(host, 2)
    assert taken(host) == [(1, -1)]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    assert host.call("statfs", 1) is None
    assert taken(host) == [(2, -1)]


def test_entries_seen_from_a_descriptor_are_known_until_it_is_closed(host: Host) -> None:
    call = host.call_sent("newfstatat", 9, 1, 1, 0x100, path=b"other")
    host.known.take(Ahead(call.id, 0, STAT, names=(Named(b"file", STAT),)))
    host.known.heard(call, Result(call.id))
    assert host.call("newfstatat", 9, 1, 1, 0x100, ins={1: b"file"}, outs={2: 144}) == (0, 0, {2: STAT})
    assert host.call("close", 9) is None
    assert host.call("newfstatat", 9, 1, 1, 0x100, ins={1: b"file"}, outs={2: 144}) is None


def test_a_folder_is_read_on_by_the_session_where_no_more_is_known(host: Host) -> None:
    host.open(6, b"dir", folder=True, listing=(Listed(8192, b"first", 77),))
    assert host.call("getdents64", 6, 1, 8192, outs={1: 8192}) == (5, 0, {1: b"first"})
    assert host.call("getdents64", 6, 1, 8192, outs={1: 8192}) is None
    assert host.posted() == [("lseek", (6, 77, 0, 0, 0, 0))]


def test_a_read_that_fails_is_made_as_it_is(host: Host) -> None:
    host.open(data=b"", end=False)
    assert host.read(4) is None
    (asked,) = host.sent
    assert isinstance(asked, Syscall)
    assert host.known.take_own(Result(asked.id, 0, errno.EIO))
    assert host.made == ["read"]


def test_a_call_that_was_given_up_may_have_changed_something(host: Host) -> None:
    host.open()
    host.known.heard_late(Result(50, 5))
    assert host.call("fstat", 5, 1, outs={1: 144}) is None
    host.sent.clear()
    assert host.read(4) is None


def test_an_answer_that_nobody_asked_for_is_told(host: Host) -> None:
    assert not host.known.take_own(Result(99))


def test_a_lasting_file_is_opened_without_asking_whatever_the_program_hears(host: Host) -> None:
    host.open_lasting()
    assert host.call("epoll_wait", 9, 1, 8, 0, outs={1: 96}) is None  # and it brings an event
    host.known.heard(host.call_sent("recvfrom", 8, 1, 10), Result(900, 3))
    assert host.stat_path() == (0, 0, {2: STAT})
    assert host.stat_path(flags=0x100) == (0, 0, {2: STAT})
    assert host.open_again() == (5, 0, {})
    host.known.heard(host.call_sent("recvfrom", 8, 1, 10), Result(901, 3))
    assert host.call("epoll_ctl", 9, 1, 5) == (0, errno.EPERM, {})
    assert host.call("lseek", 5, 0, os.SEEK_END) == (len(DATA), 0, {})
    assert host.call("lseek", 5, 0, os.SEEK_SET) == (0, 0, {})
    assert host.read(100) == DATA
    assert host.call("fstat", 5, 1, outs={1: 144}) == (0, 0, {1: STAT})
    assert host.call("close", 5) == (0, 0, {})
    assert host.sent == [], "the session has heard nothing of it"
    assert host.open_again(how=os.O_RDONLY | os.O_NOFOLLOW) is None
    assert host.open_again(b"dir/other") is None


def test_a_lasting_file_is_known_until_it_is_revoked(host: Host) -> None:
    host.open_lasting()
    assert host.open_again() == (5, 0, {})
    assert host.read(4) == DATA[:4]
    host.known.take(Revoked((7,)))
    assert host.sent == [Reopened(7, 5), Reopened(7, -1)]
    assert host.stat_path() is None
    assert host.read(4) is None, "the session is asked, which has it"
    assert host.posted()[-1] == ("lseek", (5, 4, os.SEEK_SET, 0, 0, 0))
    assert host.open_again() is None


def test_a_lasting_file_that_is_revoked_before_its_open_returns_is_not_known(host: Host) -> None:
    call = host.call_sent("openat", AT_FDCWD, 1, os.O_RDONLY, path=b"dir/file")
    host.known.lasting.heard()
    host.known.take(Ahead(call.id, os.O_RDONLY, STAT, data=DATA, end=True, lasting=7))
    host.known.take(Revoked((7,)))
    host.known.heard(call, Result(call.id, 5))
    assert host.sent == [Reopened(7, -1)]
    assert host.call("close", 5) is None
    assert host.open_again() is None


def test_a_lasting_file_is_not_known_if_the_session_is_silent(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.open_lasting()
    later = time.monotonic() + 1.01
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert host.stat_path() is None, "the session is asked, and answers"
    assert host.stat_path() is not None


@pytest.mark.parametrize(
    ("name", "args", "made"),
    [
        ("accept4", (3, 0, 0, 0), True),  # it gets a number
        ("dup", (5,), True),
        ("readlinkat", (AT_FDCWD, 1, 1, 100), True),  # of /proc/self/fd
        ("mmap", (0, 4096, 1, 2, 5, 0), True),
        ("flock", (5, 1), True),
        ("getsockopt", (8, 1, 1, 1, 1), False),
        ("fsync", (8,), False),
        ("fsync", (5,), True),
    ],
)
def test_a_descriptor_is_made_before_a_call_that_could_see_it(
    host: Host, name: str, args: tuple[int, ...], made: bool
) -> None:
    host.open_lasting()
    assert host.open_again() == (5, 0, {})
    assert host.read(4) == DATA[:4]
    assert host.call(name, *args, ins={1: b"/proc/self/fd/5"}) is None
    assert (host.sent[:1] == [Reopened(7, 5)]) == made
    if made:
        assert host.posted()[0] == ("lseek", (5, 4, os.SEEK_SET, 0, 0, 0))


@pytest.mark.parametrize("name", ["chdir", "fchdir", "setuid", "unshare"])
def test_paths_that_may_lead_elsewhere_are_asked_for(host: Host, name: str) -> None:
    host.open_lasting()
    assert host.call(name, 5, ins={0: b"there"}) is None
    assert host.stat_path() is None


def test_opens_wait_until_it_is_known_which_number_they_get(host: Host) -> None:
    host.open_lasting()
    assert host.open_again() == (5, 0, {})
    first = host.call_sent("openat", AT_FDCWD, 1, os.O_RDONLY, path=b"dir/file")  # there is no free number
    assert host.sent == [Reopened(7, 5)]
    second = host.call_waiting("openat", AT_FDCWD, 1, os.O_RDONLY, path=b"dir/file")
    third = host.call_waiting("openat", AT_FDCWD, 1, os.O_RDONLY, path=b"dir/file")
    assert host.known.abandon(third)
    assert host.call("close", 5) == (0, 0, {})
    host.known.heard(first, Result(first.id, 6))
    assert host.answers[second.id] == (5, 0, {})
    assert third.id not in host.answers
    assert host.made == []


def test_opens_that_wait_are_made_if_no_number_is_known(host: Host) -> None:
    host.open_lasting()
    assert host.open_again() == (5, 0, {})
    first = host.call_sent("openat", AT_FDCWD, 1, os.O_RDONLY, path=b"dir/file")
    host.call_waiting("openat", AT_FDCWD, 1, os.O_RDONLY, path=b"dir/file")
    host.known.heard(first, Result(first.id, 6))
    assert host.made == ["openat"]


def test_lasting_files_are_known_by_arguments_alone(host: Host) -> None:
    host.open_lasting()
    memory = Memory({4096: b"dir/file\0", 8192: b"dir/other\0"})
    for path, value in ((4096, 5), (8192, None)):
        answer = host.known.quick(notification("openat", AT_FDCWD, path, os.O_RDONLY), memory)
        assert answer == (None if value is None else (value, 0))
    quick = [
        ("newfstatat", (AT_FDCWD, 4096, 100, 0), (0, 0)),
        ("epoll_ctl", (4, 1, 5, 1), (0, errno.EPERM)),
        ("lseek", (5, 3, os.SEEK_SET), (3, 0)),
        ("read", (5, 200, 100), (len(DATA) - 3, 0)),
        ("read", (5, 200, 100), (0, 0)),
        ("fstat", (5, 300), (0, 0)),
        ("fstat", (5, 0), None),  # a bad address is for others to tell
        ("close", (5,), (0, 0)),
        ("close", (5,), None),
        ("lseek", (5, 3, os.SEEK_SET), None),
    ]
    for name, args, answer in quick:
        assert host.known.quick(notification(name, *args), memory) == answer, name
    assert memory.written == {100: STAT, 200: b"", 300: STAT}
    assert host.sent == []
