"""Where busy threads go."""

import pytest

from ptserver.spread.placement import HostLoad, IdleHosts, Stay


def _loads(*running: int) -> list[HostLoad]:
    return [HostLoad(host, count) for host, count in enumerate(running)]


@pytest.mark.parametrize(
    ("here", "running", "to"), [(0, (3, 0), 1), (0, (3, 1, 0), 2), (0, (3, 1, 2), 0), (1, (0, 2), 1)]
)
def test_a_busy_thread_of_the_first_host_goes_to_an_idle_one(
    here: int, running: tuple[int, ...], to: int
) -> None:
    assert IdleHosts().place_busy(here, _loads(*running)) == to


def test_nothing_moves_by_itself_if_it_shall_not() -> None:
    assert Stay().place_busy(0, _loads(3, 0)) == 0
