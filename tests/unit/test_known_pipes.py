"""Which calls on pipes are answered by the host, and what makes it ask."""

import itertools
import os
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from ptserver.hosts.known_pipes import KnownPipes
from ptserver.messages import Result

READING, WRITING, EPOLL = 7, 8, 5
F_SETFD, F_GETFL, F_SETFL = 2, 3, 4
ADD, DEL = 1, 2


class Host:
    """Stands for the host around KnownPipes; both ends of the program's pipe are in its epoll instance."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, tuple[int, ...]]] = []
        self._answers: list[tuple[int, int]] = []
        self._ids = itertools.count(1)
        self.pipes = KnownPipes(
            lambda name, args: self.posted.append((name, args)),
            lambda call, value, error, outs: self._answers.append((value, error)),
        )
        self.make("epoll_create1", os.O_CLOEXEC, value=EPOLL)
        pair = struct.pack("=ii", READING, WRITING)
        self.make("pipe2", 1, os.O_CLOEXEC | os.O_NONBLOCK, outs={0: pair})
        self.make("epoll_ctl", EPOLL, ADD, READING)
        self.make("epoll_ctl", EPOLL, ADD, WRITING)

    def call(self, *args: int) -> Any:
        return SimpleNamespace(id=next(self._ids), args=(*args, *(0,) * (6 - len(args))))

    def make(self, name: str, *args: int, value: int = 0, outs: dict[int, bytes] | None = None) -> None:
        call = self.call(*args)
        self.pipes.follow(name, call, Result(call.id, value, outs=outs or {}))

    def share(self, name: str, *args: int, own: bool = True) -> None:
        self.pipes.shares(name, self.call(*args), own=own)

    def control(self, *args: int) -> int | None:
        return self._answers.pop()[0] if self.pipes.control(self.call(*args)) else None

    def unwatch(self, fd: int) -> bool:
        return self.pipes.unwatch(self.call(EPOLL, DEL, fd))


@pytest.fixture
def host() -> Host:
    return Host()


def test_flags_are_those_that_the_pipe_was_made_and_left_with(host: Host) -> None:
    assert host.control(READING, F_GETFL) == os.O_RDONLY | os.O_NONBLOCK
    assert host.control(WRITING, F_GETFL) == os.O_WRONLY | os.O_NONBLOCK
    assert host.control(WRITING, F_SETFL, os.O_WRONLY) == 0
    assert host.control(WRITING, F_GETFL) == os.O_WRONLY
    assert host.posted == [("fcntl", (WRITING, F_SETFL, os.O_WRONLY, 0, 0, 0))]
    assert host.control(WRITING, F_SETFL, os.O_WRONLY | os.O_DIRECT) is None
    assert host.control(WRITING, 1) is None
    assert host.control(99, F_GETFL) is None


def test_a_pipe_is_taken_out_of_an_instance_once(host: Host) -> None:
    assert host.unwatch(READING)
    assert host.posted == [("epoll_ctl", (EPOLL, DEL, READING, 0, 0, 0))]
    assert not host.unwatch(READING)
    assert not host.pipes.unwatch(host.call(EPOLL, ADD, WRITING))
    host.make("close", EPOLL)
    assert not host.unwatch(WRITING)


def test_after_a_fork_only_what_no_other_process_can_change_is_known(host: Host) -> None:
    host.share("clone")
    host.share("dup3", 3, 4, own=False)
    assert host.control(READING, F_GETFL) is None
    assert host.pipes.can_close(READING)
    assert host.unwatch(READING)
    host.share("epoll_ctl", EPOLL, DEL, WRITING, own=False)
    assert not host.unwatch(WRITING)
    assert host.pipes.can_close(WRITING)


@pytest.mark.parametrize("name", ["dup2", "sendmsg", "close_range", "fcntl"])
def test_what_may_give_numbers_to_others_makes_all_unknown(host: Host, name: str) -> None:
    host.share(name, READING)
    assert not host.pipes.can_close(READING)
    assert not host.unwatch(READING)


def test_what_is_about_processes_or_other_files_changes_nothing(host: Host) -> None:
    host.share("pidfd_send_signal", 3)
    host.share("fcntl", 3, F_SETFL, os.O_NONBLOCK)
    assert host.control(READING, F_GETFL) is not None
    host.share("fcntl", READING, F_SETFL, os.O_DIRECT)
    assert host.control(READING, F_GETFL) is None
    assert host.unwatch(READING)


def test_an_instance_that_other_programs_may_have_is_not_trusted(host: Host) -> None:
    host.make("fcntl", EPOLL, F_SETFD)
    assert not host.unwatch(READING)
    host.make("epoll_create1", 0, value=6)
    host.make("epoll_ctl", 6, ADD, READING)
    assert not host.pipes.unwatch(host.call(6, DEL, READING))


def test_what_was_written_to_tells_of_failures_when_it_is_closed(host: Host) -> None:
    host.pipes.written(WRITING)
    assert not host.pipes.can_close(WRITING)
    assert host.pipes.can_close(READING)
    host.pipes.closed(READING)
    assert not host.pipes.can_close(READING)
