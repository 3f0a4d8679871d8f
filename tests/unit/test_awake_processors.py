"""Processors stay awake while much is waited for, and no longer."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ptserver.net.awake_processors import AwakeProcessors


class _Clock:
    """Time that goes on when it is told to, and calls what is due."""

    def __init__(self) -> None:
        self.time = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        self._due.append((self.time + seconds, do))

    def pass_by(self, seconds: float) -> None:
        self.time += seconds
        due = [each for each in self._due if each[0] <= self.time]
        self._due = [each for each in self._due if each[0] > self.time]
        for _, do in due:
            do()


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    return path


def _happens(kept: AwakeProcessors, clock: _Clock, times: int, seconds: float) -> None:
    for _ in range(times):
        clock.pass_by(seconds / times)
        kept.note()


def test_they_are_kept_while_it_happens_often(clock: _Clock, device: Path) -> None:
    kept = AwakeProcessors(clock.later, device, lambda: clock.time)
    _happens(kept, clock, 1_000, 1.0)
    assert kept.are_kept
    assert struct.unpack("=i", device.read_bytes()) == (0,)
    _happens(kept, clock, 10_000, 10.0)
    assert kept.are_kept
    _happens(kept, clock, 100, 2.0)
    assert not kept.are_kept
    _happens(kept, clock, 1_000, 1.0)
    assert kept.are_kept
    kept.close()
    assert not kept.are_kept


def test_they_sleep_while_it_happens_now_and_then(clock: _Clock, device: Path) -> None:
    kept = AwakeProcessors(clock.later, device, lambda: clock.time)
    _happens(kept, clock, 5_000, 50.0)
    assert not kept.are_kept


def test_nothing_is_kept_after_the_end(clock: _Clock, device: Path) -> None:
    kept = AwakeProcessors(clock.later, device, lambda: clock.time)
    kept.close()
    _happens(kept, clock, 1_000, 1.0)
    assert not kept.are_kept


def test_it_does_not_matter_where_it_is_not_allowed(clock: _Clock, tmp_path: Path) -> None:
    kept = AwakeProcessors(clock.later, tmp_path / "none", lambda: clock.time)
    _happens(kept, clock, 1_000, 1.0)
    assert not kept.are_kept
