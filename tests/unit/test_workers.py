"""Threads that make calls that wait: what an interrupt ends, and when."""

import errno
import os
import select
import threading

import pytest

from ptserver.shadow.execute import execute
from ptserver.shadow.workers import Workers
from stepping.syscalls import SYSCALLS


def test_what_is_written_after_an_interrupt_is_left_for_others() -> None:
    workers: Workers[int] = Workers(lambda fd: fd)
    for key in range(200):
        reading, writing = os.pipe()
        try:
            args = (reading, 1 << 12, 1, 0, 0, 0)
            workers.start(key, lambda args=args: execute(SYSCALLS["read"], args, {}, {1: 1}))  # type: ignore[misc]
            workers.interrupt(key)
            workers.await_end(key)
            os.write(writing, b"y")
            assert os.read(reading, 1) == b"y"
            assert workers.take_finished() == [(key, (0, errno.EINTR, {}))]
            assert not workers.is_interrupting
        finally:
            os.close(reading)
            os.close(writing)


def test_a_thread_works_until_its_result_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    write, writing, may_write = os.eventfd_write, threading.Event(), threading.Event()

    def write_later(fd: int, value: int) -> None:
        writing.set()
        may_write.wait(60)
        write(fd, value)

    workers: Workers[int] = Workers(lambda fd: fd)
    monkeypatch.setattr(os, "eventfd_write", write_later)
    workers.start(0, lambda: (7, 0, {}))
    assert writing.wait(60)
    assert workers.take_finished() == []
    assert len(workers.running_tids()) == 1
    may_write.set()
    assert select.select([workers.fileno()], [], [], 60)[0]
    assert workers.take_finished() == [(0, (7, 0, {}))]
    assert workers.running_tids() == []
