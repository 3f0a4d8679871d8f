"""The two ends of relays against each other, without a connection between them; this process is the program, too."""

import contextlib
import fcntl
import os
import pty
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptserver.errors import ProtocolError
from ptserver.messages import (
    MAX_RELAY_STREAMS,
    Message,
    Relay,
    StreamCredit,
    StreamData,
    StreamEnd,
)
from ptserver.net.poll_loop import PollLoop
from ptserver.rules.relays import HostRelays
from ptserver.sessions.relays import SessionRelays
from ptserver.shadow.relays import RelayEnds

PID = 77
#: The numbers of "the program", and the first that is not its own.
FIRST, LIMIT = 300, 600


class Numbers:
    """Stands for `ptserver.shadow.descriptors.Descriptors`, which changes this process's limits."""

    program_limit = LIMIT

    def copy(self, fd: int) -> int:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LIMIT)

    def keep(self, fd: int) -> int:
        kept = self.copy(fd)
        os.close(fd)
        return kept

    def unlimited(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Both:
    """A host and a session. said: by the host, heard: from the server, in all."""

    def __init__(self) -> None:
        self.loop = PollLoop()
        self.to_server: list[Message] = []
        self.to_host: list[Message] = []
        self.said: list[Message] = []
        self.heard: list[Message] = []
        numbers: Any = Numbers()
        self.host = HostRelays(self.loop, self.to_server.append)
        self.session = SessionRelays(self.loop, self.to_host.append, numbers)
        self.ends = RelayEnds(numbers)
        self._calls = 0

    def announce(self, files: dict[int, int]) -> list[int]:
        self._calls += 1
        call: Any = SimpleNamespace(id=self._calls, process=SimpleNamespace(id=PID))
        relayed = [*self.host.announce(call, files)]
        self.deliver()
        return relayed

    def execute(self, files: dict[int, int]) -> None:
        """Have *files* handed on: then the program has their numbers, as this process."""
        assert sorted(self.announce(files)) == sorted(files)
        self.ends.make(self._calls, self.session.take_own)
        self.ends.place()
        self.session.executed(PID)
        self.ends.forget()
        self.settle()

    def deliver(self) -> None:
        """Deliver what both have said to each other."""
        while self.to_server or self.to_host:
            for message in self._taken(self.to_server, self.said):
                if isinstance(message, Relay):
                    self.session.announce(message)
                    self.ends.want(message)
                else:
                    self.session.take(message)  # type: ignore[arg-type]
            for message in self._taken(self.to_host, self.heard):
                self.host.take(message)  # type: ignore[arg-type]

    def settle(self) -> None:
        """Let both do what they can."""
        for _ in range(20):
            self.loop.later(0, lambda: None)
            self.loop.round(self._before_waiting)
            self.deliver()

    def look(self) -> None:
        """What the session does before it answers a call."""
        self.session.look()
        self.deliver()

    def _before_waiting(self) -> None:
        self.session.watch(congested=False)
        self.host.watch(congested=False)

    @staticmethod
    def _taken(messages: list[Message], log: list[Message]) -> list[Message]:
        taken = [*messages]
        log += taken
        messages.clear()
        return taken


@pytest.fixture
def both() -> Iterator[Both]:
    before = own_descriptors()
    made = Both()
    yield made
    os.closerange(FIRST, LIMIT)
    made.settle()
    made.look()
    assert len(made.session) == 0
    assert not made.host.is_writing
    made.host.stop()
    assert own_descriptors() <= before


def own_descriptors() -> set[str]:
    """What this process has open from FIRST on, but for the session's one set of sockets."""
    found = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) >= FIRST}
    return {fd for fd, link in found.items() if not link.endswith("[eventpoll]")}


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def closing(*fds: int) -> Iterator[None]:
    yield
    for fd in fds:
        os.close(fd)


def test_a_file_is_read_as_far_as_the_program_reads(both: Both, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(range(256)) * 1000)
    with opened(tmp_path / "in", os.O_RDONLY) as file:
        both.execute({FIRST: file})
        assert os.lseek(file, 0, os.SEEK_CUR) == 0
        assert os.read(FIRST, 10) == bytes(range(10))
        both.look()
        assert os.lseek(file, 0, os.SEEK_CUR) == 10
        os.close(FIRST)
        both.look()
        assert both.heard[-1] == StreamEnd(3, 10)
        assert os.lseek(file, 0, os.SEEK_CUR) == 10
        both.execute({FIRST: file})
        read = b""
        while data := os.read(FIRST, 65536):
            read += data
            both.settle()
        assert read == (bytes(range(256)) * 1000)[10:]
        assert os.lseek(file, 0, os.SEEK_CUR) == 256_000


def test_a_program_that_makes_its_pipe_larger_gets_all_the_same(both: Both, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(2_000_000))
    with opened(tmp_path / "in", os.O_RDONLY) as file:
        both.execute({FIRST: file})
        fcntl.fcntl(FIRST, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(FIRST, False)
        read = 0
        while True:
            both.settle()
            with contextlib.suppress(BlockingIOError):
                if not (data := os.read(FIRST, 1 << 20)):
                    break
                read += len(data)
        assert read == os.lseek(file, 0, os.SEEK_CUR) == 2_000_000


def test_what_nobody_has_read_is_still_in_a_pipe(both: Both) -> None:
    reading, writing = os.pipe()
    with closing(reading, writing):
        os.write(writing, b"one two")
        both.execute({FIRST: reading})
        assert os.read(FIRST, 4) == b"one "
        os.close(FIRST)
        both.look()
        assert os.read(reading, 100) == b"two"
        both.execute({FIRST: reading})
        os.write(writing, b"three")
        both.settle()
        assert os.read(FIRST, 100) == b"three"


def test_what_the_program_has_written_is_there_before_an_answer(both: Both, tmp_path: Path) -> None:
    with opened(tmp_path / "out", os.O_WRONLY) as file, closing(copy := os.dup(file)):
        both.execute({FIRST: file, FIRST + 1: copy})
        for size in (1, 60_000):
            os.write(FIRST, bytes(size))
            both.look()
        os.write(FIRST + 1, b"end")
        both.look()
        assert (tmp_path / "out").read_bytes() == bytes(60_001) + b"end"
        assert [type(message) for message in both.said].count(Relay) == 1, "one open file has one relay"
    os.close(FIRST)


def test_a_slow_reader_holds_the_program_up_and_gets_all_in_order(both: Both) -> None:
    reading, writing = os.pipe()
    with closing(reading):
        both.execute({FIRST: writing})
        os.close(writing)
        os.set_blocking(FIRST, False)
        sent = bytearray()
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += bytes([len(sent) // 4096 % 251]) * os.write(
                    FIRST, bytes([len(sent) // 4096 % 251]) * 4096
                )
                both.settle()
        assert 300_000 < len(sent) < 600_000, "a window, and two pipes"
        os.close(FIRST)
        got = bytearray()
        while data := os.read(reading, 65536):
            got += data
            both.settle()
        assert got == sent


@pytest.mark.parametrize("first", ["look", "settle"])
@pytest.mark.parametrize("reads", [False, True])
def test_a_file_open_for_both_is_written_where_it_was_read_to(
    both: Both, tmp_path: Path, reads: bool, first: str
) -> None:
    (tmp_path / "both").write_bytes(b"old content")
    with opened(tmp_path / "both", os.O_RDWR) as file:
        both.execute({FIRST: file})
        if reads:
            assert os.read(FIRST, 100) == b"old content"
        os.write(FIRST, b"new")
        os.close(FIRST)
        getattr(both, first)()
        assert (tmp_path / "both").read_bytes() == (b"old contentnew" if reads else b"new content")
        assert os.lseek(file, 0, os.SEEK_CUR) == (14 if reads else 3)


def test_the_program_hears_that_nobody_reads(both: Both) -> None:
    reading, writing = os.pipe()
    both.execute({FIRST: writing})
    os.close(writing)
    os.close(reading)
    both.settle()
    with pytest.raises(BrokenPipeError):
        os.write(FIRST, b"x")


def test_an_exec_that_fails_changes_nothing(both: Both, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"content")
    placeholder = os.memfd_create("placeholder")
    os.dup2(placeholder, FIRST, inheritable=False)
    with opened(tmp_path / "in", os.O_RDWR) as file, closing(placeholder):
        both.announce({FIRST: file})
        both.ends.make(1, both.session.take_own)
        both.ends.place()
        assert os.fstat(FIRST).st_ino != os.fstat(placeholder).st_ino
        both.ends.withdraw()
        both.session.answered(1)
        both.settle()
        assert os.path.sameopenfile(FIRST, placeholder)
        assert not os.get_inheritable(FIRST)
        assert os.lseek(file, 0, os.SEEK_CUR) == 0
        both.announce({FIRST: file})
        both.session.gone(PID)  # killed before it could
        both.deliver()


def test_many_leave_nothing_behind(both: Both, tmp_path: Path) -> None:
    with opened(tmp_path / "file", os.O_RDWR) as file, opened(tmp_path / "other", os.O_RDONLY) as other:
        for _ in range(MAX_RELAY_STREAMS):
            both.execute({FIRST: file, FIRST + 1: other})
            os.closerange(FIRST, FIRST + 2)
            both.look()


def test_there_is_a_limit_to_how_many_there_are(both: Both, tmp_path: Path) -> None:
    files = {FIRST + n: os.open(tmp_path, os.O_RDONLY) for n in range(2)}
    assert both.announce(files) == [], "folders have no relays"
    with closing(*files.values()), contextlib.ExitStack() as stack:
        many = {FIRST + n: stack.enter_context(opened(tmp_path / "f", os.O_WRONLY)) for n in range(280)}
        assert len(both.announce(many)) == MAX_RELAY_STREAMS
        both.session.gone(PID)
        both.deliver()


def test_what_cannot_be_relayed_is_told(both: Both, tmp_path: Path) -> None:
    with (
        select.epoll() as events,
        socket.socket() as unconnected,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        opened(tmp_path / "f", os.O_RDONLY),
    ):
        datagrams.connect(("127.0.0.1", 9))
        path = os.open(tmp_path / "f", os.O_PATH)
        fds = (events.fileno(), unconnected.fileno(), datagrams.fileno(), path)
        with closing(path):
            assert both.announce({FIRST + n: fd for n, fd in enumerate(fds)}) == []


def test_a_terminal_is_read_as_0_and_written_as_all_else(both: Both) -> None:
    master, slave = pty.openpty()
    copies = [os.dup(slave) for _ in range(3)]
    with closing(master, slave, *copies):
        assert sorted(both.announce(dict(zip((0, 1, 2, 7), (slave, *copies), strict=True)))) == [0, 1, 2, 7]
        relays = [message for message in both.said if isinstance(message, Relay)]
        assert [(relay.fds, bool(relay.input), bool(relay.output)) for relay in relays] == [
            ((0,), True, False),
            ((1, 2, 7), False, True),
        ]
        both.session.gone(PID)
        both.deliver()


def test_what_only_the_program_could_read_is_left_at_its_end(both: Both, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR)
    with closing(fifo):
        both.execute({FIRST: fifo})
        os.set_blocking(FIRST, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(FIRST, bytes(4096))
                both.settle()
        assert both.host.is_writing
        both.host.stop()
        assert not both.host.is_writing
        os.close(FIRST)
        for output in range(3, 5):
            both.session.take(StreamEnd(output))
        both.to_host.clear()


@pytest.mark.parametrize(
    "relay",
    [
        Relay(1, PID, (FIRST,)),
        Relay(1, PID, (FIRST,), input=2),
        Relay(1, PID, (FIRST,), input=9, output=9),
        Relay(1, PID, (LIMIT,), input=9),
        Relay(1, PID, (FIRST, LIMIT + 5), output=9),
    ],
)
def test_a_host_may_not_announce_what_is_not_new_or_not_the_programs(both: Both, relay: Relay) -> None:
    with pytest.raises(ProtocolError):
        both.session.announce(relay)


def test_a_host_keeps_to_what_it_was_given(both: Both) -> None:
    both.session.announce(Relay(1, PID, (FIRST,), input=5, window=100))
    with pytest.raises(ProtocolError, match="not new"):
        both.session.announce(Relay(1, PID, (FIRST,), output=4))
    for message in (StreamData(6, b"x"), StreamCredit(6, 1), StreamEnd(6), StreamCredit(5, 1)):
        with pytest.raises(ProtocolError, match="not carried"):
            both.session.take(message)
    with pytest.raises(ProtocolError, match="more of stream 5"):
        both.session.take(StreamData(5, b"x"))  # nothing was executed yet
    for stream in range(6, 6 + MAX_RELAY_STREAMS - 1):
        both.session.announce(Relay(1, PID, (FIRST,), output=stream))
    with pytest.raises(ProtocolError, match="more than 256"):
        both.session.announce(Relay(1, PID, (FIRST,), output=9999))
    both.session.gone(PID)
    both.to_host.clear()
    both.session.take(StreamEnd(5))  # one that has ended meanwhile


def test_s5_a_server_has_no_more_of_a_descriptor_than_was_handed_on(both: Both, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(300_000))
    reading, writing = os.pipe()
    with opened(tmp_path / "in", os.O_RDONLY) as file, closing(reading, writing):
        call: Any = SimpleNamespace(id=1, process=SimpleNamespace(id=PID))
        both.host.announce(call, {FIRST: file, FIRST + 1: writing})
        of_file, of_pipe = 3, 4
        for message in (
            StreamData(of_file, b"x"),  # it is only read
            StreamCredit(of_pipe, 1),  # it is only written
            StreamData(5, b"x"),  # there is none
            StreamEnd(5),
            StreamData(of_pipe, bytes((256 << 10) + 1)),  # more than the credit
        ):
            with pytest.raises(ProtocolError):
                both.host.take(message)
        both.to_server.clear()
        both.host.take(StreamCredit(of_file, 1 << 30))  # it begins, and the host's own window holds
        both.host.take(StreamCredit(of_file, 1 << 30))  # all is read, although nothing was sent
        for _ in range(5):
            both.loop.later(0, lambda: None)
            both.loop.round(lambda: both.host.watch(congested=False))
        sent = sum(len(message.data) for message in both.to_server if isinstance(message, StreamData))
        assert (sent, os.lseek(file, 0, os.SEEK_CUR)) == (256 << 10, 0)
        both.host.take(StreamEnd(of_file, 1 << 40))
        assert os.lseek(file, 0, os.SEEK_CUR) == 256 << 10
        both.host.take(StreamEnd(of_pipe))
        both.to_server.clear()
