"""Which writes and reads a host answers itself, what it sends along, and what makes it forget what it was told."""

import errno
import itertools
import os
from types import SimpleNamespace
from typing import Any

import pytest

from ptserver.hosts.known_streams import KnownStreams
from ptserver.messages import DescriptorKind, DescriptorState
from stepping.errors import MemoryFaultError
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS

EPOLL, SOCKET = 4, 7


class Host:
    def __init__(self) -> None:
        self.posted: list[tuple[str, int, int, bytes]] = []
        self.answers: list[tuple[int, int, bytes]] = []
        self._ids = itertools.count(1)
        self.known = KnownStreams(self._post, self._answer, "amd64")

    def _post(self, tid: int, name: str, args: tuple[int, ...], ins: dict[int, bytes]) -> None:
        self.posted.append((name, args[0], args[2], ins.get(1, b"")))

    def _answer(self, call: Any, value: int, error: int, outs: dict[int, bytes]) -> None:
        self.answers.append((value, error, outs.get(1, b"")))

    def call(self, name: str, *args: int, data: bytes = b"", size: int = 0) -> Any:
        return SimpleNamespace(
            id=next(self._ids),
            tid=1,
            row=SYSCALLS[name],
            args=(*args, *(0,) * (6 - len(args))),
            gathered=SimpleNamespace(
                args=(*args, *(0,) * (6 - len(args))),
                ins={1: data} if data else {},
                outs={1: size} if size else {},
            ),
        )

    def make(self, name: str, *args: int, value: int = 0, shares: bool = False, word: bool = False) -> None:
        """Have the session make a call."""
        call = self.call(name, *args)
        self.known.made(call, shares=shares)
        self.known.heard(call, value, shares=shares, brings_word=word)

    def accept(self, fd: int = SOCKET, flags: int = os.O_NONBLOCK) -> None:
        self.make("accept4", 3, 0, 0, flags, value=fd, word=True)

    def tell(
        self,
        data: bytes = b"",
        *,
        fd: int = SOCKET,
        room: int = 1 << 16,
        taken: int = 0,
        watched: int = EPOLL,
    ) -> None:
        self.known.take(DescriptorState(fd, "tcp", room, data, taken, watched))

    def write(self, data: bytes, fd: int = SOCKET) -> bool:
        return self.known.write(self.call("write", fd, 8, len(data), data=data))

    def read(self, size: int = 100, fd: int = SOCKET) -> tuple[int, int, bytes] | None:
        return self.answers[-1] if self.known.read(self.call("read", fd, 8, size, size=size)) else None


@pytest.fixture
def host() -> Host:
    made = Host()
    made.accept()
    return made


def test_writes_use_up_the_room(host: Host) -> None:
    assert not host.write(b"nobody knows whether")
    host.tell(room=2 * 1024 + 10)
    assert host.write(b"12345678")
    assert host.answers == [(8, 0, b"")]
    assert not host.write(b"901")
    assert host.write(b"90")
    assert host.posted == [("write", SOCKET, 8, b"12345678"), ("write", SOCKET, 2, b"90")]


def test_a_pipe_takes_pages(host: Host) -> None:
    host.known.take(DescriptorState(9, "pipe", 2 * 4096))
    assert host.write(b"x", 9)
    assert not host.write(b"x" * 4097, 9)
    assert host.write(b"x" * 4096, 9)
    assert not host.write(b"x", 9)


def test_only_plain_writes_are_written_behind(host: Host) -> None:
    host.tell()
    addressed = host.call("sendto", SOCKET, 8, 1, 0, 99, 16, data=b"x")
    urgent = host.call("sendto", SOCKET, 8, 1, 1, data=b"x")
    partly_there = host.call("write", SOCKET, 8, 5, data=b"x")
    for call in (addressed, urgent, partly_there, host.call("write", SOCKET, 8, 0)):
        assert not host.known.write(call)
    assert host.known.write(host.call("sendto", SOCKET, 8, 1, 0x4000, data=b"x"))
    assert host.known.write(host.call("writev", SOCKET, 8, 1, data=b"x"))


@pytest.mark.parametrize("kind", ["pipe", "unix", "terminal"])
def test_rooms_of_what_is_local_are_forgotten_where_a_reader_may_have_gone(
    host: Host, kind: DescriptorKind
) -> None:
    for forget in (
        lambda: host.make("close", 20),
        lambda: host.make("wait4", word=True),
        lambda: host.make("read", 0, word=True),
    ):
        host.known.take(DescriptorState(9, kind, 8192))
        host.tell()
        assert host.write(b"x", 9)
        forget()
        assert not host.write(b"x", 9)
        assert host.write(b"x")


def test_reads_are_answered_and_what_they_took_is_taken(host: Host) -> None:
    host.tell(b"a request")
    assert host.read(2) == (2, 0, b"a ")
    assert host.read() == (7, 0, b"request")
    assert host.posted == [("recvfrom", SOCKET, 2, b""), ("recvfrom", SOCKET, 7, b"")]
    host.tell(b"quest and more", taken=4)  # told before the last was taken
    assert host.read() == (9, 0, b" and more")


def test_nothing_is_there_until_an_event_says_so(host: Host) -> None:
    assert host.read() is None
    host.tell(b"all")
    assert host.read() == (3, 0, b"all")
    assert host.read() == (0, errno.EAGAIN, b"")
    host.tell(b"", watched=-1, taken=3)  # an event, and more than can be told
    assert host.read() is None


@pytest.mark.parametrize("call", ["read", "wait4", "accept4", "connect"])
def test_word_of_others_may_say_that_something_is_there(host: Host, call: str) -> None:
    host.tell(b"all")
    host.read()
    host.make("read", 30, value=1, word=True)
    assert host.read() is None
    host.tell(b"all", taken=3)
    host.read()
    host.make("epoll_pwait", EPOLL, value=1, word=True)
    host.make("read", SOCKET, value=1, word=True)
    assert host.read() is None  # the session has read itself
    host.tell(b"", taken=6)
    assert host.read() == (0, errno.EAGAIN, b"")
    host.make(call, 31, word=True)
    assert host.read() is None


def test_sockets_that_block_wait(host: Host) -> None:
    host.accept(8, flags=0)
    host.tell(b"all", fd=8)
    assert host.read(fd=8) == (3, 0, b"all")
    assert host.read(fd=8) is None


def test_who_connects_may_have_sent_itself_something() -> None:
    host = Host()
    host.make("connect", 5)
    host.accept()
    host.tell(b"all")
    assert host.read() == (3, 0, b"all")
    assert host.read() is None


@pytest.mark.parametrize("call", ["dup", "clone", "sendmsg"])
def test_descriptors_that_may_be_shared_are_forgotten(host: Host, call: str) -> None:
    host.tell(b"all")
    host.make(call, SOCKET, shares=True)
    assert host.read() is None
    assert not host.write(b"x")
    host.tell(b"all")
    assert host.read() is None
    assert host.write(b"x")  # there is room for whoever writes


def test_data_is_not_given_twice_if_a_read_is_under_way(host: Host) -> None:
    call = host.call("read", SOCKET, 8, 100, size=100)
    host.known.made(call, shares=False)
    host.tell(b"all")
    assert host.read() is None
    host.known.heard(call, 3, shares=False, brings_word=True)
    host.tell(b"more")
    assert host.read() == (4, 0, b"more")


def test_a_closed_number_is_another_socket(host: Host) -> None:
    host.tell(b"all")
    host.read(1)
    host.make("close", SOCKET)
    assert host.read() is None
    host.tell(b"late")  # told before it was closed
    assert host.read() is None
    host.accept()
    host.tell(b"new")
    assert host.read() == (3, 0, b"new")


@pytest.mark.parametrize("call", ["epoll_ctl", "shutdown"])
def test_what_is_not_watched_any_more_is_asked(host: Host, call: str) -> None:
    host.tell(b"all")
    host.read()
    host.make(call, *((EPOLL, 2, SOCKET) if call == "epoll_ctl" else (SOCKET,)))
    assert host.read() is None


def test_nothing_is_written_behind_to_a_socket_that_was_shut_down(host: Host) -> None:
    call = host.call("shutdown", SOCKET, 1)
    host.known.made(call, shares=False)
    host.tell()  # before the session has shut it down
    host.known.heard(call, 0, shares=False, brings_word=False)
    assert not host.write(b"x")


class _Memory:
    """A program's memory, of which only addresses from 8 on are there."""

    def __init__(self) -> None:
        self.data = bytearray(100)

    def read(self, address: int, size: int) -> bytes:
        self._check(address)
        return bytes(self.data[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        self._check(address)
        self.data[address : address + len(data)] = data

    @staticmethod
    def _check(address: int) -> None:
        if address < 8:
            raise MemoryFaultError(address)


def test_sockets_are_answered_quickly_and_all_else_as_ever(host: Host) -> None:
    memory: Any = _Memory()

    def quick(name: str, fd: int, address: int, size: int) -> tuple[int, int] | None:
        number = SYSCALLS[name].numbers["amd64"]
        return host.known.quick(Notification(1, 1, 0, number, 0, 0, fd, address, size, 0, 0, 0), memory)

    assert quick("read", SOCKET, 8, 10) is None
    assert quick("write", SOCKET, 8, 10) is None
    host.tell(b"request", room=1024 + 10)
    assert quick("fsync", SOCKET, 8, 10) is None
    assert quick("read", SOCKET, 0, 10) is None
    assert quick("read", SOCKET, 8, 0) is None
    assert host.posted == []
    assert quick("read", SOCKET, 8, 3) == (3, 0)
    assert quick("read", SOCKET, 11, 10) == (4, 0)
    assert memory.data[8:15] == b"request"
    assert quick("read", SOCKET, 8, 10) == (0, errno.EAGAIN)
    assert quick("write", SOCKET, 0, 5) is None
    assert quick("write", SOCKET, 8, 7) == (7, 0)
    assert quick("write", SOCKET, 8, 7) is None
    taken, more, written = host.posted
    assert (taken, more) == (("recvfrom", SOCKET, 3, b""), ("recvfrom", SOCKET, 4, b""))
    assert written == ("write", SOCKET, 7, b"request")
    host.known.take(DescriptorState(9, "pipe", 4096))
    assert quick("write", 9, 8, 5) is None
