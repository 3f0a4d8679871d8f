"""Threads of a program whose process has another id at its server: by which numbers it knows and signals them."""

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ptserver.hosts import processes
from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.processes import RemoteProcesses
from ptserver.net.poll_loop import PollLoop
from stepping.syscalls import SYSCALLS

SIGNO = 10


class Program:
    """This process, which is known as *known_as*. signalled: which threads have been."""

    def __init__(self, known_as: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.process = Process(os.getpid(), known_as)
        self.signalled: list[int] = []
        self.answers: list[tuple[int, int]] = []

        def syscall(number: int, pid: int, tid: Any, signo: Any) -> int:
            self.signalled.append(tid.value)
            return 0

        monkeypatch.setattr(processes, "_libc", SimpleNamespace(syscall=syscall))

        def answer(call: PendingCall, value: int, error: int, outs: dict[int, bytes]) -> None:
            self.answers.append((value, error))

        given: list[Any] = [self.process, {}, {}, {}, PollLoop(), None, answer, *[None] * 5]
        self.processes = RemoteProcesses(*given, first_can_stop=False)

    def make(self, tid: int, name: str, *args: int) -> tuple[int, int]:
        call = SimpleNamespace(
            row=SYSCALLS[name], tid=tid, process=self.process, args=(*args, 0, 0, 0, 0, 0, 0)[:6], answer=None
        )
        assert self.processes.serve(call)  # type: ignore[arg-type]
        return self.answers.pop()

    def signal(self, number: int) -> int:
        """Return which thread here has a signal that is sent to *number*."""
        assert self.make(os.getpid(), "tgkill", self.process.id, number, SIGNO) == (0, 0)
        return self.signalled.pop()


@pytest.fixture
def other() -> Iterator[int]:
    """A thread of this process besides the first."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    done.set()
    thread.join()


def test_the_first_has_the_id_and_others_have_their_own(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program, first = Program(7_000_001, monkeypatch), os.getpid()
    assert program.make(first, "gettid") == (7_000_001, 0)
    assert program.make(other, "gettid") == (other, 0)
    assert program.signal(7_000_001) == first
    assert program.signal(other) == other
    assert program.signal(first) == first, "by which a C library knows it"
    program.process.close()


def test_a_thread_that_has_the_id_here_is_another(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program, first = Program(other, monkeypatch), os.getpid()
    numbers = [program.make(tid, "gettid")[0] for tid in (first, other)]
    assert numbers == [other, first]
    assert [program.signal(number) for number in numbers] == [first, other]
    program.process.close()
