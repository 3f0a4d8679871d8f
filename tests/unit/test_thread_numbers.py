"""Threads of a program whose process has another id at its server: by which numbers it knows and signals them."""

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ptserver.hosts import processes, thread_calls
from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.processes import RemoteProcesses
from ptserver.net.poll_loop import PollLoop
from stepping.syscalls import SYSCALLS

SIGNO = 10
PROCESS = 0


class Program:
    """This process, which is known as *known_as*. signalled: which threads have been; proceeded: calls that go on."""

    def __init__(self, known_as: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.process = Process(os.getpid(), known_as)
        self.signalled: list[int] = []
        self.answers: list[tuple[int, int]] = []
        self.proceeded: list[Any] = []

        def syscall(number: int, pid: int, tid: Any, signo: Any) -> int:
            self.signalled.append(tid.value)
            return 0

        monkeypatch.setattr(processes, "_libc", SimpleNamespace(syscall=syscall))

        def answer(call: PendingCall, value: int, error: int, outs: dict[int, bytes]) -> None:
            self.answers.append((value, error))

        given: list[Any] = [
            self.process,
            {},
            {},
            {},
            PollLoop(),
            None,
            answer,
            self.proceeded.append,
            *[None] * 4,
        ]
        self.processes = RemoteProcesses(*given, first_can_stop=False)

    def make(self, tid: int, name: str, *args: int) -> tuple[int, int]:
        answer = self.ask(tid, name, *args)
        assert answer is not None
        return answer

    def ask(self, tid: int, name: str, *args: int) -> tuple[int, int] | None:
        """Return the answer to a call, None if it is the server's."""
        args = (*args, 0, 0, 0, 0, 0, 0)[:6]
        call = SimpleNamespace(
            row=SYSCALLS[name], tid=tid, process=self.process, args=args, gathered=(args, {}, {}), answer=None
        )
        return self.answers.pop() if self.processes.serve(call) else None  # type: ignore[arg-type]

    def ask_in_vain(self, tid: int, name: str, *args: int) -> None:
        """Make a call that is not answered."""
        with pytest.raises(IndexError):
            self.ask(tid, name, *args)

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


def test_calls_about_a_number_are_made_for_whom_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    program, first = Program(7_000_001, monkeypatch), os.getpid()
    made: list[tuple[int, ...]] = []

    def execute(row: Any, args: tuple[int, ...], ins: Any, outs: Any) -> tuple[int, int, dict[int, bytes]]:
        made.append(args)
        return 20, 0, {}

    monkeypatch.setattr(thread_calls, "execute", execute)
    assert program.ask(first, "getpriority", PROCESS, 7_000_001) == (20, 0)
    assert program.ask(first, "sched_getscheduler", 7_000_001) == (20, 0)
    assert program.ask(first, "ioprio_get", PROCESS + 1, first) == (20, 0), "by which a C library knows it"
    assert [args[:2] for args in made] == [(PROCESS, first), (first, 0), (PROCESS + 1, first)]
    assert not program.proceeded
    program.process.close()


def test_calls_about_others_are_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    program, first = Program(7_000_001, monkeypatch), os.getpid()
    assert program.ask(first, "getpriority", PROCESS, 1) is None
    assert program.ask(first, "sched_setaffinity", 7_000_002) is None
    executed: Any = SimpleNamespace(pid=first, id=7_000_003, left=True)
    program.processes._by_id[executed.id] = executed
    assert program.ask(first, "getpriority", PROCESS, executed.id) is None, "another program, there"
    program.process.close()


def test_calls_about_the_caller_or_about_no_process_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    program, first = Program(7_000_001, monkeypatch), os.getpid()
    program.ask_in_vain(first, "getpriority", PROCESS, 0)
    program.ask_in_vain(first, "sched_getscheduler", 0)
    program.ask_in_vain(first, "setpriority", PROCESS + 1, 7_000_001)
    assert len(program.proceeded) == 3
    program.process.close()
