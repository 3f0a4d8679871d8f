"""What a host does about pages, with an instance that is none."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ptserver.spread import host_pages
from ptserver.spread.holding import FRESH_SECONDS, ProcessorUse
from ptserver.spread.host_pages import HostPages
from ptserver.spread.messages import Deny, Fault, SpreadMessage
from ptserver.spread.page_messages import Access, PagesData, PutPages, SendPages
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
        self.timers: list[tuple[float, Any]] = []
        self.denied: list[tuple[int, int]] = []
        self.now = 100.0
        self.use = _Use()
        nothing = lambda *_, **__: None  # noqa: E731
        content = lambda pages: bytes(len(pages) * PAGE_BYTES)  # noqa: E731
        faults = SimpleNamespace(read=lambda: self.faults, copy=nothing)
        instance = SimpleNamespace(faults=faults, pid=1, copy_pages=content, take_pages=content)
        self.pages = HostPages(
            cast(Instance, instance),
            self.sent.append,
            lambda tid: tid if tid == _THREAD else 0,
            lambda *told: self.denied.append(told),
            lambda seconds, then: self.timers.append((self.now + seconds, then)),
            self.use,
        )

    def touch(self, tid: int) -> None:
        self.faults = [KernelFault(_PAGE * PAGE_BYTES, True, tid)]
        self.pages.take_faults()

    def take(self, message: SpreadMessage) -> None:
        self.pages.takers[type(message)](message)

    def fire(self) -> None:
        """Let the time come for what waits."""
        ((self.now, then),) = self.timers
        self.timers.clear()
        then()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> _Host:
    host = _Host()
    monkeypatch.setattr(host_pages.time, "monotonic", lambda: host.now)
    return host


def test_a_page_is_given_away_when_the_thread_that_waited_for_it_has_run(host: _Host) -> None:
    host.touch(_THREAD)
    assert host.pages.is_waiting(_THREAD)
    host.take(PutPages((_PAGE,), bytes((Access.WRITE,)), bytes(PAGE_BYTES)))
    assert not host.pages.is_waiting(_THREAD)
    host.take(SendPages((_PAGE,), b"\0"))
    assert host.sent == [Fault(_PAGE, True, _PAGE * PAGE_BYTES, _THREAD)]
    for _ in range(2):  # it is fresh, and then the thread has not run
        host.fire()
        assert len(host.timers) == 1
    host.use.count += 1
    host.fire()
    assert host.sent[1:] == [PagesData((_PAGE,), b"\1", bytes(PAGE_BYTES))]
    assert not host.timers


def test_a_page_is_not_kept_for_a_child_that_shares_the_memory_and_nothing_is_opened_for_it(
    host: _Host,
) -> None:
    host.touch(_CHILD)
    host.take(PutPages((_PAGE,), bytes((Access.WRITE,)), bytes(PAGE_BYTES)))
    host.take(SendPages((_PAGE,), b"\0"))
    host.fire()
    assert host.sent[1:] == [PagesData((_PAGE,), b"\1", bytes(PAGE_BYTES))]
    assert not host.use.asked


def test_of_several_pages_those_go_at_once_that_may(host: _Host) -> None:
    host.touch(_THREAD)  # waits for the first
    others = _PAGE + 1, _PAGE + 2
    host.take(PutPages((_PAGE, *others), bytes((Access.WRITE,)) * 3, bytes(3 * PAGE_BYTES)))
    host.now += 2 * FRESH_SECONDS
    host.take(SendPages((others[0], _PAGE, others[1]), bytes(3)))
    assert host.sent[1:] == [PagesData(others, b"\1\1", bytes(2 * PAGE_BYTES))]
    host.use.count += 1
    host.fire()
    assert host.sent[2:] == [PagesData((_PAGE,), b"\1", bytes(PAGE_BYTES))]


def test_who_waits_for_what_nobody_may_touch_gets_one_signal(
    host: _Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_pages, "is_in_call", lambda pid, tid: False)
    for _ in range(2):  # it has been stopped in between
        host.touch(_THREAD)
    host.take(Deny(_PAGE))
    assert host.denied == [(_THREAD, _PAGE * PAGE_BYTES)]
    assert not host.pages.is_waiting(_THREAD)


def test_who_does_something_else_meanwhile_gets_none_until_it_touches_that_again(
    host: _Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_pages, "is_in_call", lambda pid, tid: False)
    host.touch(_THREAD)
    host.pages.forget_thread(_THREAD)
    host.take(Deny(_PAGE))
    assert not host.denied
    host.touch(_THREAD)
    host.take(Deny(_PAGE))
    assert host.denied == [(_THREAD, _PAGE * PAGE_BYTES)]
