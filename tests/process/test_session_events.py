"""Calls that wait for an epoll instance: on the session's loop, without threads, with the instance's own edges."""

import errno
import os
import select
import struct
from collections.abc import Iterator

import pytest
from session_client import Client, Sessions, hello, only_session, sessions

from ptserver.server import RuntimeServer

EVENT = struct.Struct("=Iq")
FOR_EVER = -1


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    with sessions(RuntimeServer, str(tmp_path_factory.mktemp("log") / "log")) as running:
        yield running


@pytest.fixture
def client(running: Sessions) -> Iterator[Client]:
    client = running.open(hello())
    yield client
    client.exit()
    running.wait_ended()


def instance(client: Client, *watched: tuple[int, int]) -> int:
    epfd = client.call("epoll_create1", 0).value
    for fd, events in watched:
        assert client.call("epoll_ctl", epfd, 1, fd, 1, ins={3: EVENT.pack(events, fd)}).errno == 0
    return epfd


def start(client: Client, epfd: int, timeout: int = FOR_EVER, most: int = 8) -> int:
    return client.start("epoll_pwait", epfd, 1, most, timeout, 0, 8, outs={1: 12 * most})


def events(client: Client, call_id: int) -> list[tuple[int, int]]:
    result = client.result(call_id)
    assert result.errno == 0
    assert len(result.outs.get(1, b"")) == 12 * result.value
    return [(data, mask) for mask, data in EVENT.iter_unpack(result.outs.get(1, b""))]


def test_a_wait_ends_when_another_thread_writes(client: Client) -> None:
    eventfd = client.call("eventfd2", 0, os.O_NONBLOCK).value
    epfd = instance(client, (eventfd, select.EPOLLIN))
    for number in range(3):
        waiting = start(client, epfd)
        assert client.call("getuid").errno == 0
        assert client.write(eventfd, (number + 1).to_bytes(8, "little")).value == 8
        assert events(client, waiting) == [(eventfd, select.EPOLLIN)]
        assert client.read(eventfd, 8) == (number + 1).to_bytes(8, "little")


def test_an_edge_is_told_once(client: Client) -> None:
    reading, writing = client.pipe(os.O_NONBLOCK)
    epfd = instance(client, (reading, select.EPOLLIN | select.EPOLLET))
    client.write(writing, b"one")
    assert events(client, start(client, epfd)) == [(reading, select.EPOLLIN)]
    assert events(client, start(client, epfd, 0)) == []  # nothing has been read, and nothing new has come
    assert events(client, start(client, epfd, 20)) == []
    waiting = start(client, epfd)
    client.write(writing, b"two")
    assert events(client, waiting) == [(reading, select.EPOLLIN)]
    assert client.read(reading) == b"onetwo"


def test_one_event_wakes_one_of_many(client: Client) -> None:
    reading, writing = client.pipe(os.O_NONBLOCK)
    epfd = instance(client, (reading, select.EPOLLIN | select.EPOLLET))
    waiting = [start(client, epfd) for _ in range(50)]
    for expected in waiting[:3]:
        client.write(writing, b"x")
        assert events(client, expected) == [(reading, select.EPOLLIN)]
    assert not client.results
    for call_id in waiting[3:]:
        client.cancel(call_id)
        assert client.result(call_id).errno == errno.EINTR


def test_timeouts_end_in_their_order(client: Client) -> None:
    reading, _ = client.pipe()
    epfd = instance(client, (reading, select.EPOLLIN))
    late, early, endless = start(client, epfd, 60), start(client, epfd, 20), start(client, epfd, 100_000)
    assert events(client, early) == []
    assert late not in client.results
    assert events(client, late) == []
    client.cancel(endless)
    assert client.result(endless).errno == errno.EINTR
    moment = struct.pack("=qq", 0, 10_000_000)
    precise = client.start("epoll_pwait2", epfd, 1, 8, 1, 0, 8, ins={3: moment}, outs={1: 96})
    assert events(client, precise) == []


def test_no_thread_waits(client: Client, running: Sessions) -> None:
    reading, _ = client.pipe()
    epfd = instance(client, (reading, select.EPOLLIN))
    waiting = [start(client, epfd) for _ in range(20)]
    assert client.call("getuid").errno == 0
    pid = only_session(running.spawner.pid)
    assert len(os.listdir(f"/proc/{pid}/task")) == 1
    for call_id in waiting:
        client.cancel(call_id)
        client.result(call_id)


def test_closing_the_number_ends_no_wait(client: Client) -> None:
    reading, writing = client.pipe(os.O_NONBLOCK)
    epfd = instance(client, (reading, select.EPOLLIN))
    waiting = start(client, epfd)
    assert client.call("close", epfd).errno == 0
    assert client.call("dup3", writing, epfd, 0).value == epfd
    client.write(epfd, b"it is a pipe now")
    assert events(client, waiting) == [(reading, select.EPOLLIN)]
    assert client.call("epoll_pwait", epfd, 1, 8, 0, 0, 8, outs={1: 96}).errno == errno.EINVAL
