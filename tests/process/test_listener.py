"""A listener over real threads: what arrives, and each way of answering."""

import contextlib
import errno
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepping.errors import MemoryFaultError, NotificationGoneError
from stepping.launch import Launched, Program, launch
from stepping.listener import Listener, Notification
from stepping.seccomp import Rule, Verdict, assemble
from stepping.syscalls import SYSCALLS, Sysno
from stepping.tracee_memory import TraceeMemory

PROBE = 0xF000  # no kernel has it: an answer is the listener's, ENOSYS is the kernel's

PREAMBLE = """
import ctypes, os, sys, threading, signal
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(nr, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(nr), *[ctypes.c_long(arg) for arg in args])
    return result if result != -1 else "errno %d" % ctypes.get_errno()
def say(*words):
    print(*words, flush=True)
"""


class Tracee:
    """A Python program under a filter that takes the probe and what else is named."""

    def __init__(self, source: str, *names: str) -> None:
        rules = [Rule(Sysno(PROBE), Verdict.NOTIFY)]
        rules += [Rule(SYSCALLS[name].numbers["amd64"], Verdict.NOTIFY) for name in names]
        reader, writer = os.pipe()
        self.launched: Launched = launch(
            Program(
                path=sys.executable,
                argv=[b"python", b"-S", b"-c", (PREAMBLE + source).encode()],
                env=[name + b"=" + value for name, value in os.environb.items()],
                bpf=assemble(rules, "amd64"),
                stdio=(0, writer, 2),
            )
        )
        os.close(writer)
        self.output = os.fdopen(reader, encoding="utf-8")
        assert self.launched.listener is not None
        self.listener: Listener = self.launched.listener
        self.memory = TraceeMemory(self.launched.pid)

    def receive(self, nr: int = PROBE) -> Notification:
        """Return the next call of number *nr*; others go on."""
        while True:
            assert select.select([self.listener], [], [], 20)[0], "no call arrives"
            notification = self.listener.receive()
            if notification is None:
                continue
            if notification.nr == nr:
                return notification
            with contextlib.suppress(NotificationGoneError):
                self.listener.proceed(notification.id)

    def finish(self) -> int:
        """Return the wait status."""
        return os.waitpid(self.launched.pid, 0)[1]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.launched.pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.launched.pid, 0)
        self.memory.close()
        self.listener.close()
        self.output.close()
        os.close(self.launched.pidfd)


@pytest.fixture
def tracee() -> Iterator[Callable[..., Tracee]]:
    with contextlib.ExitStack() as stack:

        def start(source: str, *names: str) -> Tracee:
            started = Tracee(source, *names)
            stack.callback(started.close)
            return started

        yield start


Start = Callable[..., Tracee]


def test_arguments_arrive_and_the_answer_is_the_result(tracee: Start) -> None:
    program = tracee(f"say(call({PROBE}, 1, 2, 3, 4, 5, -6))")
    notification = program.receive()
    assert notification[6:] == (1, 2, 3, 4, 5, 2**64 - 6)
    assert notification.tid == program.launched.pid
    program.listener.answer(notification.id, 123456789012)
    assert program.output.readline() == "123456789012\n"
    assert program.finish() == 0


def test_an_error_is_the_program_s_errno(tracee: Start) -> None:
    program = tracee(f"say(call({PROBE}))")
    program.listener.answer(program.receive().id, 0, errno.EXDEV)
    assert program.output.readline() == f"errno {errno.EXDEV}\n"


def test_a_call_that_proceeds_is_the_kernel_s(tracee: Start) -> None:
    program = tracee(f"say(call({PROBE}))")
    program.listener.proceed(program.receive().id)
    assert program.output.readline() == f"errno {errno.ENOSYS}\n"


def test_all_threads_arrive_at_one_listener(tracee: Start) -> None:
    program = tracee(
        f"report = lambda i: os.write(1, b'%d\\n' % call({PROBE}, i))\n"
        "threads = [threading.Thread(target=report, args=(i,)) for i in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    waiting = [program.receive() for _ in range(8)]  # all wait at once
    assert len({notification.tid for notification in waiting}) == 8
    for notification in reversed(waiting):
        program.listener.answer(notification.id, 100 + notification.a0)
    assert sorted(program.output) == [f"{100 + i}\n" for i in range(8)]


def test_memory_is_read_and_written_while_the_call_waits(tracee: Start) -> None:
    program = tracee(
        "buffer = ctypes.create_string_buffer(b'question', 16)\n"
        f"call({PROBE}, ctypes.addressof(buffer)); say(buffer.value.decode())"
    )
    notification = program.receive()
    assert program.memory.read(notification.a0, 8) == b"question"
    assert program.memory.read_string(notification.a0, 16) == b"question"
    program.memory.write(notification.a0, b"answer\0")
    program.listener.answer(notification.id, 0)
    assert program.output.readline() == "answer\n"


def test_memory_that_is_not_there_is_a_fault(tracee: Start) -> None:
    program = tracee(
        "import mmap\narea = mmap.mmap(-1, 8192)\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(area))\n"
        "area[4096 - 3:4096] = b'end'\n"
        "libc.mprotect(ctypes.c_void_p(address + 4096), 4096, 0)\n"
        "libc.munmap(ctypes.c_void_p(address + 4096), 4096)\n"
        f"call({PROBE}, address + 4096)"
    )
    end = program.receive().a0
    assert program.memory.read(end - 3, 3) == b"end"
    for action in (
        lambda: program.memory.read(end - 3, 4),
        lambda: program.memory.read_string(end - 3, 100),
        lambda: program.memory.write(end - 3, b"1234"),
        lambda: program.memory.read(8, 1),
        lambda: program.memory.read(2**64 - 8, 8),
        lambda: program.memory.write(2**64 - 8, b"x"),
    ):
        with pytest.raises(MemoryFaultError):
            action()


def test_a_string_longer_than_the_limit_is_told_apart_from_a_fault(tracee: Start) -> None:
    program = tracee(f"b = ctypes.create_string_buffer(b'x' * 10000)\ncall({PROBE}, ctypes.addressof(b))")
    address = program.receive().a0
    assert program.memory.read_string(address, 10001) == b"x" * 10000
    with pytest.raises(ValueError, match="4096"):
        program.memory.read_string(address, 4096)


def test_a_descriptor_is_given_to_the_program_at_its_lowest_number(tracee: Start, tmp_path: Path) -> None:
    (tmp_path / "gift").write_text("from outside")
    program = tracee(
        "free = os.open('/', 0); os.close(free)\n"
        f"fd = call({PROBE}); say(fd == free, os.get_inheritable(fd), os.read(fd, 100).decode())"
    )
    fd = os.open(tmp_path / "gift", os.O_RDONLY)
    notification = program.receive()
    number = program.listener.answer_with_fd(notification.id, fd, close_on_exec=True)
    os.close(fd)
    assert number >= 3
    assert program.output.readline() == "True False from outside\n"


def test_a_descriptor_is_added_and_the_call_goes_on_waiting(tracee: Start, tmp_path: Path) -> None:
    program = tracee(f"fd = call({PROBE}); say(os.get_inheritable(fd), os.readlink('/proc/self/fd/%d' % fd))")
    fd = os.open(tmp_path, os.O_RDONLY)
    notification = program.receive()
    number = program.listener.add_fd(notification.id, fd, close_on_exec=False)
    os.close(fd)
    assert program.listener.is_waiting(notification.id)
    program.listener.answer(notification.id, number)
    assert program.output.readline() == f"True {tmp_path}\n"


def test_a_program_without_room_for_a_descriptor_is_told(tracee: Start) -> None:
    program = tracee(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "while True:\n"
        "    try: os.dup(0)\n"
        "    except OSError: break\n"
        f"say(call({PROBE}))"
    )
    notification = program.receive()
    with pytest.raises(OSError, match="Too many open files"):
        program.listener.answer_with_fd(notification.id, 0, close_on_exec=True)
    program.listener.answer(notification.id, 0, errno.EMFILE)
    assert program.output.readline() == f"errno {errno.EMFILE}\n"


def test_an_interrupted_call_is_void_and_comes_again(tracee: Start) -> None:
    """As Go's preemption does: a handler with SA_RESTART, while the call waits."""
    program = tracee(
        "signal.signal(signal.SIGUSR1, lambda *a: None); signal.siginterrupt(signal.SIGUSR1, False)\n"
        f"say(call({PROBE}, 7))"
    )
    first = program.receive()
    os.kill(program.launched.pid, signal.SIGUSR1)
    second = program.receive()
    assert (second.tid, second.nr, second.ip, second[6:]) == (first.tid, first.nr, first.ip, first[6:])
    assert second.id != first.id
    assert not program.listener.is_waiting(first.id)
    with pytest.raises(NotificationGoneError):
        program.listener.answer(first.id, 1)
    with pytest.raises(NotificationGoneError):
        program.listener.proceed(first.id)
    with pytest.raises(NotificationGoneError):
        program.listener.answer_with_fd(first.id, 0, close_on_exec=True)
    program.listener.answer(second.id, 2)
    assert program.output.readline() == "2\n"


def test_the_listener_hangs_up_when_no_thread_is_left(tracee: Start) -> None:
    program = tracee(f"say(call({PROBE}))")
    notification = program.receive()
    os.kill(program.launched.pid, signal.SIGKILL)
    assert os.WTERMSIG(program.finish()) == signal.SIGKILL
    poll = select.poll()
    poll.register(program.listener, select.POLLIN)
    assert any(event & select.POLLHUP for _, event in poll.poll(10_000))
    assert not program.listener.is_waiting(notification.id)
    with pytest.raises(NotificationGoneError):
        program.listener.answer(notification.id, 0)


def test_children_arrive_at_the_same_listener(tracee: Start) -> None:
    program = tracee(f"pid = os.fork()\nsay(call({PROBE}, pid == 0))\nif pid: os.waitpid(pid, 0)")
    both = [program.receive(), program.receive()]
    assert {notification.a0 for notification in both} == {0, 1}
    assert len({notification.tid for notification in both}) == 2
    for notification in both:
        program.listener.answer(notification.id, notification.a0)
    assert sorted(program.output) == ["0\n", "1\n"]


def test_memory_held_open_is_dead_after_an_exec(tracee: Start) -> None:
    """A number that is used again can never make one process's memory look like another's."""
    source = f"libc.syscall({PROBE}); import time; time.sleep(60)"
    program = tracee(
        f"b = ctypes.create_string_buffer(b'old')\ncall({PROBE}, ctypes.addressof(b))\n"
        f"os.execv(sys.executable, ['python', '-S', '-c', 'import ctypes; libc = ctypes.CDLL(None); {source}'])"
    )
    first = program.receive()
    assert program.memory.read(first.a0, 3) == b"old"
    program.listener.answer(first.id, 0)
    second = program.receive()
    assert second.tid == program.launched.pid
    with pytest.raises(MemoryFaultError):
        program.memory.read(first.a0, 3)
    fresh = TraceeMemory(second.tid)
    assert len(fresh.read(second.ip - 2, 2)) == 2
    fresh.close()


def test_a_closed_listener_fails_the_calls() -> None:
    program = Tracee(f"say(call({PROBE}))\nsay(call({PROBE}))")
    try:
        program.receive()
        program.listener.close()
        assert program.output.read().splitlines() == [f"errno {errno.ENOSYS}"] * 2
    finally:
        program.listener = Listener(os.open("/dev/null", os.O_RDONLY))  # for close() to close
        program.close()


def test_one_thread_serves_while_another_is_stuck(tracee: Start) -> None:
    """A call that is not answered holds its own thread only."""
    program = tracee(
        f"threading.Thread(target=call, args=({PROBE}, 1), daemon=True).start()\n"
        f"say(call({PROBE}, 2))\nos._exit(3)"
    )
    calls = {}
    for _ in range(2):
        notification = program.receive()
        calls[notification.a0] = notification.id
    program.listener.answer(calls[2], 22)
    assert program.output.readline() == "22\n"
    assert os.waitstatus_to_exitcode(program.finish()) == 3
