"""Writes that a host has answered itself: made at once, or held in order; failures are told once, and to whom."""

import errno
import itertools
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptserver.errors import ProtocolError
from ptserver.hosts.known_streams import room_for
from ptserver.messages import DescriptorState, Message, Syscall
from ptserver.sessions.behind import WriteBehind
from ptserver.sessions.descriptor_states import DescriptorStates
from ptserver.shadow.execute import Executed
from ptserver.shadow.workers import Workers

PID, THREAD, OTHER, THIRD = 100, 100, 101, 102
FIRST_OWN = 1 << 20


class Session:
    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.made: list[tuple[str, int]] = []
        self.taken: list[Syscall] = []
        self._ids = itertools.count(1)
        self.workers: Workers[int] = Workers(lambda fd: fd)
        self.states = DescriptorStates(self.sent.append, lambda fd, device: True, FIRST_OWN)
        self.behind = WriteBehind(self.states, self.workers, self._made, self._take, os.dup)

    def _made(self, row: object, args: object, executed: Executed) -> None:
        self.made.append((getattr(row, "name", ""), executed[1]))

    def _take(self, message: Syscall) -> None:
        if message.posted:
            self.behind.write(message)
        elif not self.behind.holds(message):
            self.taken.append(message)

    def write(self, fd: int, data: bytes, tid: int = THREAD) -> None:
        args = (fd, 8, len(data), 0, 0, 0)
        self.behind.write(Syscall(next(self._ids), tid, PID, "write", args, {1: data}, posted=True))

    def call(self, name: str, fd: int = 0, tid: int = THIRD) -> Syscall:
        return Syscall(next(self._ids), tid, PID, name, (fd, 0, 0, 0, 0, 0))

    def wait(self) -> None:
        """Let a worker end."""
        poll = select.poll()
        poll.register(self.workers.fileno(), select.POLLIN)
        assert poll.poll(20_000)
        for key, executed in self.workers.take_finished():
            assert self.behind.finished(key, executed)

    def room(self) -> int:
        state = self.sent[-1]
        assert isinstance(state, DescriptorState)
        return state.room


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session()
    yield made
    made.workers.retire_idle()
    os.close(made.workers.fileno())


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


def test_what_fits_is_written_at_once(session: Session, pipe: tuple[int, int], tmp_path: Path) -> None:
    reader, writer = pipe
    session.write(writer, b"one ")
    session.write(writer, b"two")
    assert os.read(reader, 100) == b"one two"
    left, right = socket.socketpair()
    with left, right, (tmp_path / "file").open("wb", buffering=0) as file:
        session.write(left.fileno(), b"by a socket")
        assert right.recv(100) == b"by a socket"
        session.write(file.fileno(), b"to a file")
        assert (tmp_path / "file").read_bytes() == b"to a file"
    assert session.behind.is_quiet
    assert session.made == []


def test_room_is_what_a_pipe_takes(session: Session, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    session.states.wrote(writer)
    assert session.room() == 16 * 4096
    os.write(writer, b"abc")
    session.states.wrote(writer)
    assert session.room() == 13 * 4096
    session.write(writer, b"x" * session.room())
    assert session.behind.is_quiet
    os.read(reader, 1 << 20)


@pytest.mark.parametrize("size", [1, 100, 3000])
def test_a_socket_takes_what_there_is_room_for(session: Session, size: int) -> None:
    left, right = socket.socketpair()
    with left, right:
        session.states.wrote(left.fileno())
        room = session.room()
        while (room := room - room_for("unix", size)) >= 0:
            session.write(left.fileno(), b"x" * size)
            assert session.behind.is_quiet


def test_the_rest_waits_and_what_could_tell_waits_behind_it(session: Session, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    other_end = os.dup(writer)
    filled = b"f" * (16 * 4096)
    os.write(writer, filled)
    session.write(writer, b"first ")
    assert session.behind.is_busy
    session.write(other_end, b"second", tid=OTHER)  # the same pipe
    held = [session.call("fstat", 5, THREAD), session.call("fsync", writer), session.call("clone")]
    free = [session.call(name, writer if name == "read" else 5, 104) for name in ("read", "fstat", "close")]
    for call in held:
        assert session.behind.holds(call), call.name
    for call in free:
        assert not session.behind.holds(call), call.name
    got = b""
    while not got.endswith(b"second"):
        got += os.read(reader, 1 << 20)
        if session.behind.is_busy:
            session.wait()
    assert got == filled + b"first second"
    while session.behind.is_busy:
        session.wait()
    assert session.taken == held
    os.close(other_end)


def test_what_might_empty_a_stream_and_its_close_wait_for_no_write(
    session: Session, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    os.write(writer, b"f" * (16 * 4096))
    session.write(writer, b"last")
    free = [
        session.call("read", reader, THREAD),
        session.call("epoll_pwait", 3, THREAD),
        session.call("close", writer, THREAD),
        Syscall(1 << 20, THIRD, PID, "fcntl", (reader + 100, 3, 0, 0, 0, 0)),
    ]
    for call in free:
        assert not session.behind.holds(call), call.name
    os.close(writer)
    session.behind.forget(writer, writer)
    got = b""
    while chunk := os.read(reader, 1 << 20):
        got += chunk
        if session.behind.is_busy:
            session.wait()
    assert got.endswith(b"last")
    assert session.behind.is_quiet


def test_a_failure_of_what_is_closed_is_not_the_next_descriptors(
    session: Session, pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    os.write(writer, b"f" * (16 * 4096))
    session.write(writer, b"lost")
    session.behind.forget(writer, writer)
    os.close(reader)
    session.wait()
    assert session.behind.failure_for(session.call("close", writer)) == 0


def test_a_call_that_is_held_can_be_cancelled(session: Session, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"f" * (16 * 4096))
    session.write(writer, b"x")
    call = session.call("fsync", writer)
    assert session.behind.holds(call)
    assert session.behind.cancel(call.id)
    assert not session.behind.cancel(call.id)
    os.read(reader, 1 << 20)
    session.wait()
    assert session.taken == []


def test_a_failure_is_told_once_and_what_follows_is_dropped(session: Session) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    session.write(writer, b"nobody")
    assert session.made == [("write", errno.EPIPE)]
    assert session.room() == 0
    session.write(writer, b"reads this")
    assert len(session.made) == 1
    assert not session.behind.is_quiet
    assert session.behind.failure_for(session.call("read", writer)) == 0
    assert session.behind.failure_for(session.call("write", writer + 1)) == 0
    assert session.behind.failure_for(session.call("close", writer)) == errno.EPIPE
    assert session.behind.failure_for(session.call("close", writer)) == 0
    session.write(writer, b"again")
    assert len(session.made) == 2
    session.behind.forget(writer, writer)  # its number stands for something else now
    assert session.behind.is_quiet
    os.close(writer)


def test_own_descriptors_are_nobodys_to_write_to(session: Session) -> None:
    with pytest.raises(ProtocolError):
        session.write(FIRST_OWN, b"x")
    with pytest.raises(ProtocolError):
        session.states.take(FIRST_OWN, 1)


def test_sockets_tell_what_is_there_and_whether_that_is_all(session: Session) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as peer,
        select.epoll() as epoll,
    ):
        conn, _ = listener.accept()
        with conn:
            events = select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP
            event = events.to_bytes(4, "little") + (77).to_bytes(8, "little")
            epoll.register(conn, events)
            session.states.watches(epoll.fileno(), 1, conn.fileno(), event)

            def happened(mask: int = select.EPOLLIN, data: int = 77) -> DescriptorState:
                occurred = mask.to_bytes(4, "little") + data.to_bytes(8, "little")
                session.states.happened(epoll.fileno(), occurred)
                state = session.sent[-1]
                assert isinstance(state, DescriptorState)
                return state

            peer.send(b"a request")
            epoll.poll(20)
            state = happened()
            assert (state.data, state.watched, state.taken) == (b"a request", epoll.fileno(), 0)
            assert state.room > 4096
            session.states.take(conn.fileno(), 2)
            state = happened()
            assert (state.data, state.taken) == (b"request", 2)
            session.states.read(conn.fileno())
            assert session.sent[-1] is state  # there is something left
            session.states.take(conn.fileno(), 7)
            session.states.read(conn.fileno())
            state = session.sent[-1]  # type: ignore[assignment]
            assert (state.data, state.watched, state.taken) == (b"", epoll.fileno(), 9)
            session.states.shut_down(conn.fileno(), socket.SHUT_RD)
            assert happened().room > 4096
            session.states.shut_down(conn.fileno(), socket.SHUT_WR)
            assert happened().room == 0
            peer.send(b"the last")
            peer.shutdown(socket.SHUT_WR)
            while not epoll.poll(20)[0][1] & select.EPOLLRDHUP:
                pass
            state = happened()
            assert (state.data, state.watched) == (b"the last", -1)
            assert happened(select.EPOLLIN | select.EPOLLRDHUP).data == b""
            assert happened(data=78).kind == "epoll"  # nobody knows whose that is
