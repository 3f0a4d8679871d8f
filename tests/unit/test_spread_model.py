"""The model of spread programs that `bench.spread_hosts` predicts with."""

import json
from pathlib import Path

import pytest

from bench.spread_hosts import Prediction, plot
from bench.spread_model import Costs, Model, Touch, read_log, spread_over

_COSTS = Costs(home=10e-6, agent=10e-6, wake=20e-6, round_trip=100e-6)
_OWN = _COSTS.wake + 2 * _COSTS.agent + _COSTS.round_trip


def _log(path: Path) -> Path:
    """Write what two hosts did: page 5 is both's, page 7 that of host 1 alone."""
    lines = [
        {"at": 0.0, "host": 1, "tid": 10, "page": 5, "write": True},
        {"at": 0.001, "host": 1, "page": 5, "count": 1},
        {"at": 0.003, "host": 1, "tid": 10, "page": 7, "write": True},
        {"at": 0.004, "host": 1, "page": 0, "count": 16},
        {"at": 0.005, "host": 0, "tid": 9, "page": 5, "write": False},
        {"at": 0.006, "host": 1, "tid": 10, "page": 5, "write": True},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_a_thread_computes_is_the_time_between_a_grant_and_its_next_fault(tmp_path: Path) -> None:
    recorded = read_log(_log(tmp_path / "log"), _COSTS)
    assert recorded.seconds == pytest.approx(0.006)
    touches = recorded.threads[1, 10]
    assert [touch.page for touch in touches] == [5, 7, 5]
    assert [touch.after for touch in touches] == pytest.approx([0.0, 0.002 - _OWN, 0.002 - _OWN])


def test_more_hosts_share_what_two_shared_and_nothing_else(tmp_path: Path) -> None:
    recorded = read_log(_log(tmp_path / "log"), _COSTS)
    program = spread_over(recorded, 4)
    assert [host for host, _ in program] == [0, 1, 2, 3]
    pages = [[touch.page for touch in touches] for _, touches in program]
    assert all(each[0] == 5 for each in pages)
    assert len({each[1] for each in pages[1:]}) == 3


def test_one_fault_costs_what_its_messages_cost() -> None:
    model = Model([(1, [Touch(0.5, 7, True)])], 2, _COSTS)
    costs = 2 * _COSTS.agent + _COSTS.home + _COSTS.round_trip + _COSTS.wake
    assert model.run() == pytest.approx(0.5 + costs)
    assert model.faults == 1


def test_who_shares_nothing_takes_as_long_on_any_number_of_hosts() -> None:
    def alone(hosts: int) -> float:
        return Model(
            [(host, [Touch(0.1, 100 * host, True)] * 50) for host in range(hosts)], hosts, _COSTS
        ).run()

    assert alone(16) == pytest.approx(alone(2), rel=0.01)


def test_who_writes_one_page_all_the_time_takes_the_longer_the_more_do() -> None:
    def fight(hosts: int) -> float:
        return Model([(host, [Touch(50e-6, 3, True)] * 200) for host in range(hosts)], hosts, _COSTS).run()

    assert fight(8) > 1.5 * fight(4) > 2 * fight(2)


def test_hosts_that_share_processors_compute_more_slowly() -> None:
    costs = Costs(processors=2)
    program = [(host, [Touch(1.0, 100 * host, True)]) for host in range(4)]
    assert Model(program, 4, costs).run() == pytest.approx(2.0, rel=0.01)


def test_the_plot_has_a_line_for_each_delay() -> None:
    predictions = [
        Prediction(name, hosts, hosts / 2) for name in ("near", "far") for hosts in (2, 4, 8, 16, 32, 64)
    ]
    text = plot(predictions)
    assert text.count('stroke-width="2"') == 2
    assert text.startswith("<svg ")
    assert text.endswith("</svg>\n")
