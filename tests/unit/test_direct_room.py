"""The host's half of direct sockets: a program that has found no room is told when there is some again."""

import contextlib
import socket
import termios
from types import SimpleNamespace
from typing import Any

import pytest

from ptserver.hosts import direct_sockets
from ptserver.hosts.direct_sockets import DirectSockets
from ptserver.messages import Direct, Message
from ptserver.net.poll_loop import PollLoop

FD, INSTANCE, DATA = 9, 4, 77


class Host:
    """One direct socket; *theirs* is what the program has, *told* who was told of room."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.told: list[tuple[int, int]] = []
        self.given: list[int] = []
        events = SimpleNamespace(
            watch_of=lambda fd: (INSTANCE, 1 << 31 | 1, DATA),
            add=lambda *arguments: None,
            writable=self.told.append,
            look=lambda: None,
        )
        listener = SimpleNamespace(put_fd=lambda notification, fd, number: self.given.append(fd))
        table = SimpleNamespace(set=lambda fd: None)
        known = SimpleNamespace(of_streams=SimpleNamespace(forget_contents=lambda fd: None))
        fakes: list[Any] = [table, PollLoop(), listener, self.sent.append, lambda: 1, None, events, known]
        self.sockets = DirectSockets(*fakes)
        self.sockets._own.add(FD)
        self.sockets.consider(1, FD)
        self.theirs = socket.socket(fileno=socket.dup(self.given[0]))
        self.sent.clear()

    def fill(self) -> int:
        """Have the program write single bytes until there is no room; return how many."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += self.theirs.send(b"x")
        return count

    def collected(self) -> int:
        self.sockets.collect()
        taken = sum(
            len(each.data) for message in self.sent if type(message) is Direct for each in message.sockets
        )
        self.sent.clear()
        return taken

    def close(self) -> None:
        self.theirs.close()
        self.sockets.close()


def test_little_that_is_written_makes_no_event() -> None:
    host = Host()
    host.theirs.send(b"little")
    assert host.collected() == 6
    assert host.told == []
    host.close()


def test_who_found_no_room_is_told_of_it() -> None:
    host = Host()
    written = host.fill()
    assert host.collected() == written
    assert host.told
    host.close()


def test_who_finds_no_room_between_the_look_and_the_read_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    queued, written = direct_sockets._queued, [1]

    def look(sock: socket.socket, request: int) -> int:
        found = queued(sock, request)
        if request == termios.FIONREAD:
            written.append(host.fill())
        return found

    host.theirs.send(b"x")
    monkeypatch.setattr(direct_sockets, "_queued", look)
    assert host.collected() == sum(written)
    assert written[1] < 16 << 10, "all of it comes at once, and is not much"
    assert host.told
    host.close()
