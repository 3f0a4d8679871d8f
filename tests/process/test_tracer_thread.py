"""The tracer thread: everything on one thread, errors carried back, waits that can be broken off."""

import os
import signal
import threading
import time

import pytest

from stepping.errors import TraceeGoneError
from stepping.ptrace_api import FOLLOW_THREADS
from stepping.tracee_group import TraceeGroup
from stepping.tracer_thread import TracerThread
from tests.process.tracees import THREADS, ask, python


def test_one_thread_for_all() -> None:
    with TracerThread() as tracer:
        idents = {tracer.call(threading.get_ident) for _ in range(10)}
        assert len(idents) == 1
        assert threading.get_ident() not in idents
        assert tracer.call(lambda: tracer.call(threading.get_ident)) in idents
        with pytest.raises(ZeroDivisionError):
            tracer.call(lambda: 1 // 0)
        assert tracer.submit(max, 1, 2).result() == 2


def test_a_group_lives_on_it() -> None:
    with python(THREADS.format(count=3)) as child, TracerThread() as tracer:
        group = tracer.call(TraceeGroup.attach, child.pid, FOLLOW_THREADS)
        with pytest.raises(TraceeGoneError):
            next(iter(group)).read_registers()
        tracer.call(group.stop_all)
        pcs = tracer.call(lambda: [tracee.read_registers().pc for tracee in group])
        assert len(pcs) == 4
        tracer.call(group.detach_all)
        assert ask(child, "unharmed") == "unharmed"


def test_a_kick_breaks_off_a_wait() -> None:
    with python(THREADS.format(count=1)) as child, TracerThread() as tracer:
        group = tracer.call(TraceeGroup.attach, child.pid)
        for delay_s in (0.0, 0.0, 0.01, 0.0, 0.003):
            waiting = tracer.submit(tracer.wait_or_kick)
            time.sleep(delay_s)  # kicks before, at and within the wait
            tracer.kick()
            assert waiting.result(timeout=20) is None
        waiting = tracer.submit(tracer.wait_or_kick)
        os.kill(child.pid, signal.SIGUSR1)
        assert waiting.result(timeout=20) == (child.pid, signal.SIGUSR1 << 8 | 0x7F)
        tracer.call(group.tracees[child.pid].note, signal.SIGUSR1 << 8 | 0x7F)
        tracer.call(lambda: group.tracees[child.pid].resume(deliver=False))
        tracer.call(group.detach_all)
        with pytest.raises(TraceeGoneError):
            tracer.call(tracer.wait_or_kick)
        assert ask(child, "unharmed") == "unharmed"
