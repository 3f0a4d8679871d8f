"""The session's half of direct sockets: what of a socket it tells, takes, writes, and when it gives it back."""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from ptserver.errors import ProtocolError
from ptserver.messages import (
    DIRECT_WINDOW_BYTES,
    Direct,
    DirectBegin,
    DirectBytes,
    DirectEnd,
    Message,
    Syscall,
)
from ptserver.net.poll_loop import PollLoop
from ptserver.sessions.descriptor_states import DescriptorStates
from ptserver.sessions.direct_sockets import DirectSockets

FIRST_OWN = 1 << 20
GO = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Behind:
    """Of `WriteBehind` what is asked of it."""

    def __init__(self) -> None:
        self.is_quiet = True
        self.failures: dict[int, int] = {}
        self.written: list[Syscall] = []

    def note_failure(self, fd: int, failure: int) -> None:
        self.failures[fd] = failure

    def write(self, message: Syscall) -> None:
        self.written.append(message)


class Setting:
    """A connection of the program's, *ours* is its peer, which an epoll instance of the program's watches."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.ours = socket.create_connection(listener.getsockname())
            self.theirs, _ = listener.accept()
        self.theirs.setblocking(False)
        self.instance = select.epoll()
        self.instance.register(self.theirs.fileno(), GO)
        self.loop = PollLoop()
        self.sent: list[Message] = []
        self.behind = Behind()
        self.states = DescriptorStates(self.sent.append, lambda fd, device: False, FIRST_OWN)
        self.direct = DirectSockets(self.loop, self.sent.append, os.dup, self.states, self.behind)  # type: ignore[arg-type]
        self.fd = self.theirs.fileno()

    def begin(self) -> None:
        self.direct.begin(DirectBegin(self.fd, self.instance.fileno(), GO, 77))

    def told(self, size: int) -> bytes:
        """Return what the host is told of, once it is so much."""
        data, deadline = b"", time.monotonic() + 10
        while len(data) < size and time.monotonic() < deadline:
            self.direct.look()
            for message in self.taken_messages():
                assert type(message) is Direct
                data += b"".join(each.data for each in message.sockets)
        return data

    def received(self, size: int) -> bytes:
        """Return what comes to the peer, once it is so much."""
        data, deadline = b"", time.monotonic() + 10
        while len(data) < size and time.monotonic() < deadline:
            self.direct.flush()
            with contextlib.suppress(BlockingIOError):
                data += self.ours.recv(1 << 20, socket.MSG_DONTWAIT)
        return data

    def taken_messages(self) -> list[Message]:
        messages = self.sent[:]
        self.sent.clear()
        return messages

    def await_end(self) -> None:
        """Wait until the host is to give the socket back."""
        deadline = time.monotonic() + 10
        while DirectEnd(self.fd) not in self.sent and time.monotonic() < deadline:
            self.direct.look()
        assert DirectEnd(self.fd) in self.sent

    def take(self, count: int = 0, data: bytes = b"") -> None:
        self.direct.take(Direct((DirectBytes(self.fd, count, data),)))

    def close(self) -> None:
        self.direct.forget(0, FIRST_OWN)
        self.instance.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.close()


def test_what_comes_is_told_and_stays_until_it_is_taken(setting: Setting) -> None:
    setting.ours.send(b"hello")
    setting.begin()
    assert setting.told(5) == b"hello"
    setting.ours.send(b" again")
    assert setting.told(6) == b" again"
    setting.take(count=7)
    assert setting.theirs.recv(100, socket.MSG_PEEK) == b"gain"


def test_no_more_is_told_than_the_window_and_the_rest_when_there_is_room(setting: Setting) -> None:
    setting.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    setting.begin()
    data = bytes(range(256)) * (DIRECT_WINDOW_BYTES // 256) + b"the rest"
    setting.ours.sendall(data)
    first = setting.told(DIRECT_WINDOW_BYTES)
    setting.direct.look()
    assert (first, setting.sent) == (data[:DIRECT_WINDOW_BYTES], [])
    setting.take(count=1000)
    assert setting.told(8) == b"the rest"


def test_what_the_program_writes_is_written_and_much_of_it_acknowledged(setting: Setting) -> None:
    setting.begin()
    setting.take(data=b"to the peer")
    assert setting.ours.recv(100) == b"to the peer"
    setting.taken_messages()
    setting.take(data=bytes(DIRECT_WINDOW_BYTES // 4))
    (message,) = setting.taken_messages()
    assert message == Direct((DirectBytes(setting.fd, DIRECT_WINDOW_BYTES // 4 + len(b"to the peer")),))


def test_what_does_not_fit_is_written_later(setting: Setting) -> None:
    setting.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    setting.begin()
    data = bytes(range(256)) * (DIRECT_WINDOW_BYTES // 256)
    sent = 0
    while not setting.direct.is_busy:
        setting.take(data=data)
        sent += len(data)
    assert setting.received(sent) == data * (sent // len(data))
    assert not setting.direct.is_busy


def test_a_host_may_not_have_more_on_its_way_than_was_agreed_on(setting: Setting) -> None:
    setting.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    setting.begin()
    while not setting.direct.is_busy:
        setting.take(data=bytes(DIRECT_WINDOW_BYTES))
    setting.take(data=bytes(DIRECT_WINDOW_BYTES))
    with pytest.raises(ProtocolError):
        setting.take(data=bytes(DIRECT_WINDOW_BYTES))


def test_an_end_writes_the_rest_as_a_posted_write_and_watches_again(setting: Setting) -> None:
    setting.begin()
    assert setting.instance.poll(0) == []
    setting.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data, sent = bytes(DIRECT_WINDOW_BYTES), 0
    while not setting.direct.is_busy:
        setting.take(data=data)
        sent += len(data)
    setting.direct.end(DirectEnd(setting.fd, 12))
    (message,) = setting.behind.written
    assert (message.name, message.args[0], message.id, message.posted) == ("write", setting.fd, 12, True)
    assert 0 < len(message.ins[1]) <= sent
    setting.ours.send(b"x")
    ((watched, mask),) = setting.instance.poll(10)
    assert (watched, bool(mask & select.EPOLLIN)) == (77, True)
    assert setting.theirs.recv(10) == b"x"


def test_a_peer_that_ends_gives_the_socket_back_with_all_that_it_said(setting: Setting) -> None:
    setting.begin()
    setting.ours.send(b"last words")
    setting.ours.shutdown(socket.SHUT_WR)
    setting.await_end()
    setting.direct.end(DirectEnd(setting.fd, 1))
    assert setting.theirs.recv(100) == b"last words"
    assert setting.theirs.recv(100) == b""


def test_a_reset_is_left_to_the_program(setting: Setting) -> None:
    setting.begin()
    setting.ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    setting.ours.close()
    setting.await_end()
    setting.direct.end(DirectEnd(setting.fd, 1))
    with pytest.raises(ConnectionResetError):
        setting.theirs.recv(100)


def test_what_was_written_before_a_close_is_still_written(setting: Setting) -> None:
    setting.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    setting.begin()
    sent = 0
    while not setting.direct.is_busy:
        setting.take(data=bytes(DIRECT_WINDOW_BYTES))
        sent += DIRECT_WINDOW_BYTES
    setting.direct.closing(setting.fd)
    setting.theirs.close()
    setting.direct.forget(setting.fd, setting.fd)
    assert len(setting.received(sent)) == sent
    assert (setting.direct.is_busy, setting.ours.recv(1)) == (False, b"")


def test_what_a_host_may_not_have_is_refused(setting: Setting) -> None:
    setting.begin()
    for fd, epfd in ((setting.fd, 3), (FIRST_OWN, 3), (4, FIRST_OWN)):
        with pytest.raises(ProtocolError):
            setting.direct.begin(DirectBegin(fd, epfd, GO, 1))


def test_what_is_not_watched_or_still_written_to_is_given_back_at_once(setting: Setting) -> None:
    setting.behind.is_quiet = False
    setting.begin()
    assert setting.taken_messages() == [DirectEnd(setting.fd)]
    setting.direct.end(DirectEnd(setting.fd, 1))
    assert len(setting.instance.poll(10)) == 1


def test_one_that_is_given_back_at_once_is_told_of_anew(setting: Setting) -> None:
    """The program has read a part of what came, and then found nothing where its socket was to be."""
    setting.behind.is_quiet = False
    setting.ours.send(b"all of it")
    assert setting.instance.poll(10)
    assert setting.theirs.recv(3) == b"all"
    assert not setting.instance.poll(0)
    setting.begin()
    setting.direct.end(DirectEnd(setting.fd, 1))
    ((_, mask),) = setting.instance.poll(10)
    assert mask & select.EPOLLIN


def test_a_host_may_not_speak_of_others(setting: Setting) -> None:
    setting.begin()
    for bad in (DirectBytes(99, 1), DirectBytes(99, 0, b"x"), DirectBytes(setting.fd, 1)):
        with pytest.raises(ProtocolError):
            setting.direct.take(Direct((bad,)))
    with pytest.raises(ProtocolError):
        setting.direct.end(DirectEnd(99, 1))
