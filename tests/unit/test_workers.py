"""Threads that make calls that wait: what an interrupt ends, and when."""

import errno
import os

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
