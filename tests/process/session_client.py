"""A stub host written by hand: speaks the protocol with a session's process, and runs no program."""

import contextlib
import itertools
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ptserver.errors import ConnectionLostError
from ptserver.messages import (
    CODECS,
    Cancel,
    Exited,
    Goodbye,
    Hello,
    Machine,
    Message,
    Program,
    Result,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamId,
    Syscall,
    Terminal,
    ToHost,
    Welcome,
)
from ptserver.net.connection import Connection, Stream, client_handshake
from ptserver.server import RuntimeServer
from ptserver.sessions.log import Log
from ptserver.sessions.spawner import Spawner, start_spawner
from ptserver.sessions.start import ADMITTED, SessionConfig

AT_FDCWD = 2**64 - 100
TIMEOUT = 20.0
PID = 4321

M = TypeVar("M")


def hello(
    *,
    streams: tuple[StreamId, ...] = (),
    terminal: Terminal | None = None,
    token: str = "",
    abstraction: str = "linux",
    codecs: tuple[str, ...] = CODECS,
) -> Hello:
    return Hello(
        versions=(1,),
        codecs=codecs,
        software="test",
        machine=Machine("amd64", "6.1", "testhost"),
        program=Program("/bin/program", ("program", "-x"), abstraction=abstraction),
        token=token,
        streams=streams,
        terminal=terminal,
    )


class Client:
    """One session, seen from the stub host. messages: what came and was not asked for; output: by stream."""

    def __init__(self, sock: Stream, greeting: Hello) -> None:
        self.welcome: Welcome
        self.connection: Connection[ToHost]
        self.welcome, self.connection = client_handshake(sock, greeting, TIMEOUT)
        self.messages: list[Message] = []
        self.output: dict[int, bytes] = {1: b"", 2: b""}
        self.stream_ends: set[int] = set()
        self.results: dict[int, Result] = {}
        self._ids = itertools.count(1)

    def send(self, message: Message) -> None:
        self.connection.send(message)
        assert self.connection.drain(TIMEOUT)

    def start(
        self, name: str, *args: int, ins: dict[int, bytes] | None = None, outs: dict[int, int] | None = None
    ) -> int:
        """Send a call and return its id."""
        registers: Any = tuple(arg % 2**64 for arg in args) + (0,) * (6 - len(args))
        call_id = next(self._ids)
        self.send(Syscall(call_id, PID + 1, PID, name, registers, ins or {}, outs or {}))
        return call_id

    def call(
        self, name: str, *args: int, ins: dict[int, bytes] | None = None, outs: dict[int, int] | None = None
    ) -> Result:
        """Make a call and return its result."""
        return self.result(self.start(name, *args, ins=ins, outs=outs))

    def result(self, call_id: int) -> Result:
        self.wait(lambda: call_id in self.results)
        return self.results.pop(call_id)

    def cancel(self, call_id: int) -> None:
        self.send(Cancel(call_id))

    def give_credit(self, *streams: StreamId, size: int = 1 << 20) -> None:
        for stream in streams:
            self.send(StreamCredit(stream, size))

    def wait(self, condition: Callable[[], bool]) -> None:
        """Take messages until *condition* holds."""
        deadline = time.monotonic() + TIMEOUT
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"nothing came; so far {self.messages}, {self.output}"
            if not self.connection.has_received:
                poll.poll(left * 1000)
            self.connection.has_received = False
            for message in self.connection.receive():
                self._take(message)

    def wait_for(self, kind: type[M]) -> M:
        """Return the next message of *kind*."""
        self.wait(lambda: any(isinstance(message, kind) for message in self.messages))
        index = next(i for i, message in enumerate(self.messages) if isinstance(message, kind))
        message = self.messages.pop(index)
        assert isinstance(message, kind)
        return message

    def wait_lost(self) -> None:
        """Take messages until the server says no more, and close the connection."""
        with contextlib.suppress(ConnectionLostError):
            self.wait(lambda: False)
        self.close()

    def open(self, path: str | bytes, flags: int = 0, mode: int = 0o644) -> int:
        result = self.call("openat", AT_FDCWD, 1, flags, mode, ins={1: os.fsencode(path)})
        assert result.errno == 0, os.strerror(result.errno)
        return result.value

    def read(self, fd: int, size: int = 65536) -> bytes:
        result = self.call("read", fd, 1, size, outs={1: size})
        assert result.errno == 0, os.strerror(result.errno)
        return result.outs.get(1, b"")

    def write(self, fd: int, data: bytes) -> Result:
        return self.call("write", fd, 1, len(data), ins={1: data})

    def pipe(self, flags: int = 0) -> tuple[int, int]:
        fds = self.call("pipe2", 1, flags, outs={0: 8}).outs[0]
        return int.from_bytes(fds[:4], "little"), int.from_bytes(fds[4:], "little")

    def exit(self, status: int | None = 0, signo: int = 0) -> None:
        """Let the program end, and wait until the session has."""
        self.send(Exited(status, signo))
        self.wait_for(Goodbye)
        self.wait_lost()

    def close(self) -> None:
        self.connection.close()

    def _take(self, message: ToHost) -> None:
        match message:
            case Result():
                self.results[message.id] = message
            case StreamData():
                self.output[message.stream] += message.data
            case StreamEnd():
                self.stream_ends.add(message.stream)
            case _:
                self.messages.append(message)


class Sessions:
    """A zygote of the test's own, which forks sessions of one server class."""

    def __init__(self, server: type[RuntimeServer], log_path: str, token: str | None = None) -> None:
        self.log_path = log_path
        self._log_fd = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        config = SessionConfig(server, "test 0", Log(self._log_fd), token, hello_seconds=2.0)
        unwanted, other = socket.socketpair()
        self.spawner: Spawner = start_spawner(config, unwanted)
        unwanted.close()
        other.close()
        self._clients: list[Client] = []
        self._admissions: list[socket.socket] = []
        self._names = itertools.count(1)

    def raw(self) -> socket.socket:
        """Return a connection on which nothing has been said."""
        ours, theirs = socket.socketpair()
        answering, asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answering.send(ADMITTED)
        self._admissions.append(answering)
        self.spawner.spawn(f"s{next(self._names)}", theirs, asking)
        return ours

    def open(self, greeting: Hello | None = None) -> Client:
        client = Client(self.raw(), greeting or hello())
        self._clients.append(client)
        return client

    def wait_ended(self) -> tuple[int, int]:
        """Wait for a session's process to end; return its pid and wait status."""
        poll = select.poll()
        poll.register(self.spawner.socket, select.POLLIN)
        assert poll.poll(TIMEOUT * 1000), "the session did not end"
        ended = self.spawner.take_ended()
        assert ended is not None
        assert len(ended) == 1
        return ended[0].pid, ended[0].status

    def log(self) -> str:
        with open(self.log_path) as file:
            return file.read()

    def stop(self) -> int:
        for client in self._clients:
            client.close()
        for admission in self._admissions:
            admission.close()
        os.close(self._log_fd)
        return self.spawner.stop()


@contextlib.contextmanager
def sessions(server: type[RuntimeServer], log_path: str, token: str | None = None) -> Iterator[Sessions]:
    running = Sessions(server, log_path, token)
    try:
        yield running
    finally:
        running.stop()


def children(pid: int) -> set[int]:
    """Return the living children of process *pid*."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return {int(word) for word in file.read().split()}


def only_session(spawner: int) -> int:
    """Return the session's process, where there is one: its guard is the child of *spawner*."""
    (guard,) = children(spawner)
    (session,) = children(guard)
    return session


def wait_for_thread_in(pid: int, syscall: str) -> None:
    """Wait until a thread of process *pid* sleeps in *syscall*: its number and first arguments, as proc(5) has it."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{tid}/syscall") as file:
                if file.read().startswith(syscall):
                    return
        os.sched_yield()
    raise AssertionError(f"no thread of {pid} is in {syscall}")
