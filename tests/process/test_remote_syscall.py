"""Syscalls made on a tracee's behalf: their results, their errors, and that nothing else changes."""

import errno
import mmap
import os
import signal
import threading

import pytest

from stepping import ptrace_api
from stepping.errors import SteppingError, TraceeGoneError
from stepping.maps import read_maps
from stepping.ptrace_api import FOLLOW_THREADS
from stepping.registers import AMD64
from stepping.remote_syscall import RemoteSyscallError, find_syscall_instruction, remote_syscall
from stepping.tracee import Resume, Tracee
from stepping.tracee_group import TraceeGroup
from stepping.wait_status import WaitKind
from tests.process.tracees import THREADS, ask, python

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def stopped(pid: int) -> Tracee:
    tracee = Tracee.seize(pid, pid, FOLLOW_THREADS)
    tracee.interrupt()
    tracee.wait()
    return tracee


def test_results_and_restored_registers() -> None:
    with python(THREADS.format(count=0)) as child:
        tracee = stopped(child.pid)  # blocked in read(2): the call must be restarted
        before = tracee.read_registers()
        with remote_syscall(tracee) as sys:
            assert sys.call("getpid") == child.pid
            address = sys.call("mmap", 0, 8192, mmap.PROT_READ, PRIVATE, -1, 0)
            vma = read_maps(child.pid).find(address)
            assert vma is not None
            assert vma.perms == "r--p"
            sys.call("munmap", address, 8192)
        assert tracee.read_registers() == before
        found = read_maps(child.pid).find(address)
        assert found is None or found.perms != "r--p" or found.path
        tracee.detach()
        assert ask(child, "the read goes on") == "the read goes on"


def test_a_failing_call_raises_and_restores() -> None:
    with python(THREADS.format(count=0)) as child:
        tracee = stopped(child.pid)
        before = tracee.read_registers()
        with (
            pytest.raises(RemoteSyscallError, match="its close fails with EBADF") as caught,
            remote_syscall(tracee) as sys,
        ):
            sys.call("close", 9999)
        assert (caught.value.name, caught.value.errno) == ("close", errno.EBADF)
        assert tracee.read_registers() == before
        with pytest.raises(ZeroDivisionError), remote_syscall(tracee):
            raise ZeroDivisionError
        assert tracee.read_registers() == before
        tracee.detach()
        assert ask(child, "unharmed") == "unharmed"


def test_signals_wait_until_the_end() -> None:
    source = """
import os, signal
for signo in (signal.SIGUSR1, signal.SIGUSR2):  # one may interrupt the other, which print() does not survive
    signal.signal(signo, lambda signo, frame: os.write(1, b"handled %d\\n" % signo))
print("ready", flush=True)
while True: signal.pause()
"""
    with python(source) as child:
        tracee = Tracee.seize(child.pid, child.pid, FOLLOW_THREADS)
        os.kill(child.pid, signal.SIGUSR1)
        status = tracee.wait()
        assert status is not None
        assert status.kind is WaitKind.SIGNAL_DELIVERY
        sent = ptrace_api.getsiginfo(tracee.tid)
        with remote_syscall(tracee) as sys:
            os.kill(child.pid, signal.SIGUSR2)
            assert sys.call("getpid") == child.pid
        seen = []
        while len(seen) < 2:
            tracee.resume()
            status = tracee.wait()
            assert status is not None
            if status.kind is WaitKind.SIGNAL_DELIVERY:
                seen.append(status.signo)
                if status.signo == signal.SIGUSR1:
                    assert ptrace_api.getsiginfo(tracee.tid) == sent
        assert sorted(seen) == [signal.SIGUSR1, signal.SIGUSR2]
        tracee.detach()
        assert child.stdout is not None
        assert sorted([child.stdout.readline(), child.stdout.readline()]) == ["handled 10\n", "handled 12\n"]


def test_a_running_thread_is_stopped_anywhere() -> None:
    with python(THREADS.format(count=4)) as child:
        group = TraceeGroup.attach(child.pid)
        instruction = find_syscall_instruction(child.pid, AMD64)
        for _ in range(50):
            group.stop_all()
            for tracee in group:
                with remote_syscall(tracee, instruction) as sys:
                    assert sys.call("gettid") == tracee.tid
            group.resume_all()
        group.detach_all()
        assert ask(child, "unharmed") == "unharmed"


def test_not_inside_a_call() -> None:
    with python(THREADS.format(count=0)) as child:
        tracee = stopped(child.pid)
        tracee.resume(Resume.SYSCALL)
        status = tracee.wait()
        assert status is not None
        assert status.kind is WaitKind.SYSCALL
        with pytest.raises(SteppingError, match="is inside a call"), remote_syscall(tracee):
            pass
        tracee.resume()
        with pytest.raises(SteppingError, match="is not stopped"), remote_syscall(tracee):
            pass


def test_a_thread_that_is_killed_meanwhile() -> None:
    with python(THREADS.format(count=0)) as child:
        tracee = stopped(child.pid)
        with remote_syscall(tracee) as sys:
            os.kill(child.pid, signal.SIGKILL)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            with pytest.raises(TraceeGoneError):
                sys.call("getpid")


def test_requests_of_other_threads_are_as_for_a_dead_one() -> None:
    with python(THREADS.format(count=0)) as child:
        tracee = stopped(child.pid)
        errors: list[SteppingError] = []

        def elsewhere() -> None:
            try:
                tracee.read_registers()
            except SteppingError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert isinstance(errors[0], TraceeGoneError)
        tracee.detach()
