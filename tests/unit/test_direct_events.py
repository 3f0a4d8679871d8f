"""Waits for an epoll instance some of whose sockets are direct: what is told, and what the session is asked."""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from ptserver.hosts.direct_events import DirectEvents
from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.machine import native_arch
from ptserver.messages import Result
from ptserver.net.poll_loop import PollLoop
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS
from stepping.syscalls.marshal import Gathered

EVENT = struct.Struct("=IQ" if os.uname().machine == "x86_64" else "=I4xQ")
IN, OUT, RDHUP, EDGE = 0x1, 0x4, 0x2000, 1 << 31
GO = IN | OUT | RDHUP | EDGE
INSTANCE, SOCKET, PIPE, LEVEL = 4, 9, 5, 6
ROW = SYSCALLS["epoll_pwait"]


class Session:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.takes: list[Callable[[Result], None]] = []
        self.cancelled: list[int] = []
        self.woken: list[tuple[int, int, bytes]] = []
        self.brought_back: list[int] = []
        self.made: list[PendingCall] = []

    def ask(self, epfd: int, room: int, milliseconds: int, take: Callable[[Result], None]) -> int:
        self.asked.append((epfd, room, milliseconds))
        self.takes.append(take)
        return len(self.takes)

    def cancel(self, call_id: int) -> None:
        self.cancelled.append(call_id)

    def wake(self, epfd: int, fd: int, event: bytes) -> None:
        self.woken.append((epfd, fd, event))

    def bring_back(self, epfd: int) -> None:
        self.brought_back.append(epfd)

    def make(self, call: PendingCall) -> None:
        self.made.append(call)

    def say(self, *events: tuple[int, int]) -> None:
        """Answer what was asked last."""
        data = b"".join(EVENT.pack(*event) for event in events)
        self.takes.pop()(Result(1, len(events), 0, {1: data}))


class Setting:
    """An instance that watches a pipe, a level, and a direct socket with the pair *ours*, *theirs*."""

    def __init__(self) -> None:
        self.session = Session()
        self.answers: list[tuple[PendingCall, int, int, dict[int, bytes]]] = []
        self.words = 0
        self.events = DirectEvents(
            PollLoop(), self.session, lambda *answer: self.answers.append(answer), self._word, native_arch()
        )
        self.ours, self.theirs = socket.socketpair()
        self.process = Process(os.getpid())
        for fd, mask in ((PIPE, GO), (LEVEL, IN), (SOCKET, GO)):
            self.events.controlled((INSTANCE, 1, fd, 1, 0, 0), EVENT.pack(mask, 100 + fd))
        self.events.add(INSTANCE, self.theirs.fileno(), GO, 100 + SOCKET)

    def _word(self) -> None:
        self.words += 1

    def wait(self, milliseconds: int) -> PendingCall:
        args = (INSTANCE, 4096, 8, milliseconds & (1 << 64) - 1, 0, 0)
        call = PendingCall(
            1, Notification(1, 1, 0, ROW.numbers[native_arch()], 0, 0, *args), self.process, ROW
        )
        call.gathered = Gathered(args, {}, {1: 8 * EVENT.size}, {})
        assert self.events.serve(call)
        return call

    def told(self) -> list[tuple[int, int]]:
        """The events of the one answer that was given."""
        ((_, count, failure, outs),) = self.answers
        self.answers.clear()
        events = list(EVENT.iter_unpack(outs.get(1, b"")))
        assert (count, failure) == (len(events), 0)
        return events

    def close(self) -> None:
        self.events.close()
        self.ours.close()
        self.theirs.close()
        self.process.close()


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.close()


def test_waits_at_the_session_come_back_when_an_instance_gets_its_first_direct_socket(
    setting: Setting,
) -> None:
    assert setting.session.brought_back == [INSTANCE]


def test_what_is_ready_here_is_told_at_once_and_the_session_waits_for_the_rest(setting: Setting) -> None:
    setting.ours.send(b"x")
    setting.wait(-1)
    assert setting.told() == [(IN, 100 + SOCKET)]
    assert setting.session.asked == [(INSTANCE, 128, -1)]
    setting.wait(-1)
    assert setting.answers == []  # an edge is told once
    setting.ours.send(b"y")
    setting.events.look()
    assert setting.told() == [(IN, 100 + SOCKET)]
    assert len(setting.session.asked) == 1


def test_an_edge_that_nobody_waited_for_is_kept(setting: Setting) -> None:
    setting.ours.send(b"x")
    setting.wait(-1)
    setting.told()
    setting.session.say((IN, 100 + PIPE))
    assert (setting.answers, setting.words) == ([], 1)
    setting.wait(-1)
    assert setting.told() == [(IN, 100 + PIPE)]


def test_a_level_is_asked_for_again(setting: Setting) -> None:
    setting.ours.send(b"x")
    setting.wait(-1)
    setting.told()
    setting.session.say((IN, 100 + LEVEL))
    setting.events.made("fstat")
    setting.wait(0)
    assert setting.answers == []
    assert setting.session.asked[-1] == (INSTANCE, 8, 0)
    setting.session.say((IN, 100 + LEVEL))
    assert setting.told() == [(IN, 100 + LEVEL)]


def test_a_wait_that_does_not_wait_asks_only_after_calls_that_could_matter(setting: Setting) -> None:
    setting.wait(0)
    setting.session.say()
    assert setting.told() == []
    setting.wait(0)
    assert setting.told() == []
    setting.events.made("openat")
    setting.wait(0)
    assert setting.told() == []
    assert setting.session.asked == [(INSTANCE, 8, 0), (INSTANCE, 128, -1)]
    setting.events.made("write")
    setting.wait(0)
    assert setting.session.asked[2:] == [(INSTANCE, 8, 0)]


def test_what_comes_from_the_session_wakes_who_waits(setting: Setting) -> None:
    setting.wait(-1)
    setting.session.say((IN, 100 + PIPE), (IN, 100 + LEVEL))
    assert setting.told() == [(IN, 100 + PIPE), (IN, 100 + LEVEL)]


def test_room_in_a_pair_is_told(setting: Setting) -> None:
    setting.wait(-1)
    setting.events.writable((INSTANCE, 100 + SOCKET))
    setting.events.look()
    assert setting.told() == [(OUT, 100 + SOCKET)]


def test_a_closed_descriptor_is_told_of_no_more(setting: Setting) -> None:
    setting.ours.send(b"x")
    setting.wait(-1)
    setting.told()
    setting.session.say((IN, 100 + PIPE))
    setting.events.closed(PIPE)
    setting.wait(-1)
    assert setting.answers == []


def test_a_shared_instance_is_the_sessions_and_tells_again_what_nobody_heard(setting: Setting) -> None:
    setting.ours.send(b"x")
    setting.wait(-1)
    setting.told()
    setting.session.say((IN, 100 + PIPE))
    setting.events.share(INSTANCE)
    assert setting.session.woken == [(INSTANCE, PIPE, EVENT.pack(GO, 100 + PIPE))]
    assert not setting.events.has(INSTANCE)
    assert setting.events.watch_of(SOCKET) is None


def test_who_waits_for_an_instance_that_is_shared_waits_at_the_session(setting: Setting) -> None:
    waiting = setting.wait(-1)
    setting.events.share(INSTANCE)
    assert (setting.session.made, setting.session.cancelled) == ([waiting], [1])
    setting.session.say((OUT, 100 + PIPE))  # the answer to what was cancelled
    assert setting.session.woken == [(INSTANCE, PIPE, EVENT.pack(GO, 100 + PIPE))]


def test_waits_for_a_time_are_interrupted_when_they_come_back(setting: Setting) -> None:
    args = (INSTANCE, 4096, 8, 500, 0, 0)
    number = ROW.numbers[native_arch()]
    call = PendingCall(1, Notification(1, 1, 0, number, 0, 0, *args), setting.process, ROW)
    call.gathered = Gathered(args, {}, {1: 8 * EVENT.size}, {})
    setting.events.come_back(call)
    assert setting.answers == [(call, 0, errno.EINTR, {})]


@pytest.mark.parametrize(
    ("watches", "expected"),
    [
        ([(4, GO)], True),
        ([(4, IN | OUT)], False),
        ([(4, GO), (7, GO)], False),
        ([(4, GO | 1 << 30)], False),
        ([(4, OUT | EDGE)], False),
    ],
    ids=["go", "level", "two", "oneshot", "no reading"],
)
def test_who_may_be_direct(setting: Setting, watches: list[tuple[int, int]], expected: bool) -> None:
    for epfd, mask in watches:
        setting.events.controlled((epfd, 1, 20, 1, 0, 0), EVENT.pack(mask, 7))
    assert (setting.events.watch_of(20) is not None) is expected
