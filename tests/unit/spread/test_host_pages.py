"""What a host does about pages, with an instance that is none."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ptserver.spread.holding import ProcessorUse
from ptserver.spread.host_pages import HostPages
from ptserver.spread.messages import Fault, PageData, PutPage, SendPage, SpreadMessage
from stepping.instance import Instance
from stepping.maps import PAGE_BYTES
from stepping.userfault import Fault as KernelFault

_PAGE, _THREAD, _CHILD = 7, 100, 200


class _Use(ProcessorUse):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.count = 1

    def turns(self, tid: int) -> int:
        self.asked.append(tid)
        return self.count


class _Host:
    def __init__(self) -> None:
        self.faults: list[KernelFault] = []
        self.sent: list[SpreadMessage] = []
        self.timers: list[Any] = []
        self.use = _Use()
        nothing = lambda *_, **__: None  # noqa: E731
        faults = SimpleNamespace(read=lambda: self.faults, copy=nothing, protect=nothing)
        instance = SimpleNamespace(faults=faults, pid=1, read=lambda _, size: bytes(size), drop=nothing)
        self.pages = HostPages(
            cast(Instance, instance),
            self.sent.append,
            lambda tid: tid if tid == _THREAD else 0,
            nothing,
            lambda _, then: self.timers.append(then),
            self.use,
        )

    def touch(self, tid: int) -> None:
        self.faults = [KernelFault(_PAGE * PAGE_BYTES, True, tid)]
        self.pages.take_faults()

    def take(self, message: SpreadMessage) -> None:
        self.pages.takers[type(message)](message)


@pytest.fixture
def host() -> _Host:
    return _Host()


def test_a_page_is_given_away_when_the_thread_that_waited_for_it_has_run(host: _Host) -> None:
    host.touch(_THREAD)
    assert host.pages.is_waiting(_THREAD)
    host.take(PutPage(_PAGE, bytes(PAGE_BYTES), writable=True))
    assert not host.pages.is_waiting(_THREAD)
    host.take(SendPage(_PAGE, keep=False))
    assert host.sent == [Fault(_PAGE, True, _PAGE * PAGE_BYTES, _THREAD)]
    for _ in range(2):  # it is fresh, and then the thread has not run
        host.timers.pop()()
        assert len(host.timers) == 1
    host.use.count += 1
    host.timers.pop()()
    assert host.sent[1:] == [PageData(_PAGE, bytes(PAGE_BYTES), dirty=True)]
    assert not host.timers


def test_a_page_is_not_kept_for_a_child_that_shares_the_memory_and_nothing_is_opened_for_it(
    host: _Host,
) -> None:
    host.touch(_CHILD)
    host.take(PutPage(_PAGE, bytes(PAGE_BYTES), writable=True))
    host.take(SendPage(_PAGE, keep=False))
    host.timers.pop()()
    assert host.sent[1:] == [PageData(_PAGE, bytes(PAGE_BYTES), dirty=True)]
    assert not host.use.asked
