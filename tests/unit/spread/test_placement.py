"""Where busy goroutines go."""

from pathlib import Path

import pytest

from ptserver.spread.placement import (
    TALK_PAGES,
    GoroutineFacts,
    HostLoad,
    IdleHosts,
    PlacementError,
    Stay,
    Together,
    load_placement,
)
from ptserver.spread.statistics import Statistics
from ptserver.spread.threads import Thread


def _loads(*running: int) -> list[HostLoad]:
    return [HostLoad(host, count) for host, count in enumerate(running)]


def _at(here: int, **pulls: int) -> GoroutineFacts:
    return GoroutineFacts(here, 0xC000, 1, 0, {int(host[1:]): pages for host, pages in pulls.items()})


@pytest.mark.parametrize(
    ("here", "running", "to"), [(0, (3, 0), 1), (0, (3, 1, 0), 2), (0, (3, 1, 2), 0), (1, (0, 2), 1)]
)
def test_a_busy_thread_of_the_first_host_goes_to_an_idle_one(
    here: int, running: tuple[int, ...], to: int
) -> None:
    assert IdleHosts().place(_at(here), _loads(*running)) == to


def test_nothing_moves_by_itself_if_it_shall_not() -> None:
    assert Stay().place(_at(0), _loads(3, 0)) == 0


def test_who_talks_much_goes_to_those_it_talks_with() -> None:
    policy = Together()
    assert policy.place(_at(1, h0=TALK_PAGES + 1), _loads(2, 1, 0)) == 0
    assert policy.place(_at(0, h1=TALK_PAGES + 1, h2=TALK_PAGES + 5), _loads(2, 1, 1)) == 2
    assert policy.place(_at(1, h0=TALK_PAGES), _loads(2, 1)) == 1
    assert policy.place(_at(1, h2=TALK_PAGES + 1), _loads(2, 1)) == 1  # that host is gone
    assert policy.place(_at(0, h1=1), _loads(2, 0)) == 1


def test_a_seed_makes_the_same_choices_again() -> None:
    first, second = load_placement("random:7"), load_placement("random:7")
    choices = [first.place(_at(0), _loads(1, 1, 1)) for _ in range(30)]
    assert choices == [second.place(_at(0), _loads(1, 1, 1)) for _ in range(30)]
    assert set(choices) == {0, 1, 2}


def test_a_policy_of_ones_own_is_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_placement.py").write_text(
        "class Last:\n    brings_back = False\n    look_seconds = 0.0\n"
        "    def place(self, goroutine, loads):\n        return loads[-1].host\n"
        "class Half:\n    brings_back = True\n"
    )
    assert load_placement("my_placement:Last").place(_at(0), _loads(1, 1, 1)) == 2
    for name, said in [
        ("my_placement:Half", "has no look_seconds, place"),
        ("my_placement:None_", "has no attribute"),
        ("no_such_module_here:X", "No module"),
        ("often", "there are idle, stay, together"),
    ]:
        with pytest.raises(PlacementError, match=said):
            load_placement(name)


def test_pages_are_counted_for_the_goroutine_and_count_less_with_time() -> None:
    statistics = Statistics()
    thread = Thread(7, host=1, goroutine=0xC000)
    for _ in range(8):
        statistics.pulled(7, 0)
    statistics.pulled(7, 1)  # from here: that is no other
    assert statistics.facts(thread) == GoroutineFacts(1, 0xC000, 1, 0, {0: 8})
    assert statistics.facts(thread).pulls == {0: 4}
    statistics.moved(thread)
    assert statistics.facts(thread) == GoroutineFacts(1, 0xC000, 3, 1, {})
