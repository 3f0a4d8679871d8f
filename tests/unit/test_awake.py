"""Waiting awake: how it ends, and that it is done less often where it does not pay."""

import os

import pytest

from ptserver.net.poll_loop import Awake, PollLoop


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


def test_it_ends_when_it_happens() -> None:
    looks = iter([False, False, True])
    assert Awake().wait(lambda: next(looks))


def test_it_gives_way() -> None:
    assert not Awake().wait(lambda: False, lambda: True)


def test_chances_are_passed_after_it_was_in_vain() -> None:
    awake = Awake(0.0)
    for passed in (2, 4, 8):
        assert awake.pays()
        assert not awake.wait(lambda: False)
        assert [awake.pays() for _ in range(passed)] == [False] * passed
    assert awake.pays()
    assert awake.wait(lambda: True)
    assert awake.pays()


def test_one_processor_is_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert not Awake().pays()


def test_what_is_looked_for_awake_is_not_asked_of_its_descriptor() -> None:
    """A loop finds something by the look that it is given, and other descriptors as ever."""
    loop = PollLoop(prompt=True, awake_seconds=10.0)
    (quick, quick_end), (other, other_end) = os.pipe(), os.pipe()
    seen: list[str] = []
    looks = iter([False, True, False])

    def look() -> bool:
        if not next(looks):
            return False
        seen.append("look")
        return True

    try:
        loop.watch(quick, lambda: seen.append("quick"))
        loop.look_awake(quick, look)
        loop.watch(other, lambda: seen.append("other"))
        os.write(quick_end, b"x")
        loop.expect()
        loop.round(lambda: None)
        assert seen == ["look"]
        os.write(other_end, b"x")
        loop.expect()
        loop.round(lambda: None)
        assert seen == ["look", "other"]
        loop.unwatch(other)
        loop.round(lambda: None)  # nothing is expected: it asks all
        assert seen == ["look", "other", "quick"]
    finally:
        for fd in (quick, quick_end, other, other_end):
            os.close(fd)
