"""When processes that descend from this one are at rest."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ptserver.emulated.onlooker import Onlooker
from ptserver.emulated.stillness import Stillness


@contextmanager
def child(*command: str) -> Iterator[tuple["subprocess.Popen[bytes]", Stillness]]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stillness = Stillness()
    stillness.born(process.pid)
    try:
        yield process, stillness
    finally:
        process.kill()
        process.communicate()


def rest(stillness: Stillness) -> None:
    stillness.wait(list)


def test_who_waits_for_input_is_at_rest_and_does_nothing_alone() -> None:
    with child("cat") as (_, stillness):
        rest(stillness)
        assert stillness
        assert not stillness.may_act_alone()


def test_who_sleeps_is_at_rest_and_wakes_alone() -> None:
    with child("sleep", "60") as (_, stillness):
        rest(stillness)
        assert stillness.may_act_alone()


def test_all_that_descends_has_done_its_work_before_there_is_rest() -> None:
    with child("sh", "-c", "cat | sort | (cat; echo end)") as (process, stillness):
        rest(stillness)
        assert process.stdin is not None
        process.stdin.write(b"b\na\n")
        process.stdin.close()
        process.stdin = None
        rest(stillness)
        assert not stillness
        assert process.poll() == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"a\nb\nend\n"


def test_who_computes_is_waited_for() -> None:
    with child("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done") as (process, stillness):
        rest(stillness)
        assert process.poll() == 0


def test_an_onlooker_has_descriptors_of_its_own() -> None:
    onlooker = Onlooker()
    before = os.listdir("/proc/self/fd")
    assert [onlooker.ask(lambda: os.open("/", os.O_RDONLY)) for _ in range(3)] == [0, 1, 2]
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(FileNotFoundError):
        onlooker.ask(lambda: os.open("/nothing", os.O_RDONLY))
    onlooker.close()


def test_a_forked_process_looks_itself() -> None:
    onlooker = Onlooker()
    assert onlooker.ask(os.getpid) == os.getpid()
    if not (child := os.fork()):
        try:
            onlooker.after_fork()
            os._exit(0 if onlooker.ask(os.getpid) == os.getpid() else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0) == (child, 0)
    onlooker.close()
