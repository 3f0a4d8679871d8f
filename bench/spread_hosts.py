"""`python -m bench.spread_hosts [--json] [--quick] [--plot FILE]`: what a spread program would gain from more hosts.

Runs a program (fixtures/spread_speed, "workers": each host computes for some milliseconds, then counts under a lock
that all share) over two and three hosts here, with a log of its faults. A model (`bench.spread_model`) is fitted to
the run over two hosts, by one factor on all costs, and then has to predict that over three, which says how far it can
be trusted. What it predicts for more hosts, each with a processor of its own, goes to a table, and to a plot in SVG.
"""

import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.figures import options
from bench.measure import PTSERVER, BenchError
from bench.spread_model import Costs, Model, Recorded, read_log, spread_over
from tests.gofixtures import build

_ROUND_TRIPS = {"loopback": Costs.round_trip, "0.2 ms": 0.2e-3, "1 ms": 1e-3}
_HOSTS = (2, 4, 8, 16, 32, 64)
_FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
_ROUNDS, _QUICK_ROUNDS = 64, 2
_SECONDS = 120


class Prediction(NamedTuple):
    """How many times the work of one host *hosts* hosts do in the same time, by the delay between them."""

    round_trip: str
    hosts: int
    speed: float


def _record(hosts: int, rounds: int, folder: Path) -> Recorded:
    log = folder / f"{hosts}.jsonl"
    command = [PTSERVER, "run", "--spread", ",".join(["agent"] * (hosts - 1)), "--place", "stay"]
    command += ["--fault-log", str(log), str(build("spread_speed", stub=True)), "workers", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
    return read_log(log, Costs())


def _predict(recorded: Recorded, hosts: int, costs: Costs) -> float:
    return Model(spread_over(recorded, hosts), hosts, costs).run()


def _alone(recorded: Recorded) -> float:
    """Return how long the busiest thread away from host 0 computes, in seconds: its time if nothing cost anything."""
    return max(
        sum(touch.after for touch in touches) for (host, _), touches in recorded.threads.items() if host
    )


def plot(predictions: Sequence[Prediction]) -> str:
    """Return the predictions as SVG: hosts to the right, speed upwards, both by powers of two."""
    width, height, edge, names = 560, 380, 50, list(dict.fromkeys(each.round_trip for each in predictions))
    steps = len(_HOSTS)

    def x(hosts: int) -> float:
        return edge + (hosts.bit_length() - 1) * (width - 2 * edge) / steps

    def y(speed: float) -> float:
        return height - edge - math.log2(max(speed, 1.0)) * (height - 2 * edge) / steps

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{edge} {edge}V{height - edge}H{width - edge}" fill="none" stroke="black"/>',
        f'<text x="{width / 2 - 20}" y="{height - 12}">hosts</text>',
        f'<text x="8" y="{edge - 14}">times the work of one host (predicted)</text>',
        f'<path d="M{x(1)} {y(1)}'
        + "".join(f"L{x(hosts):.0f} {y(hosts):.0f}" for hosts in _HOSTS)
        + '" fill="none" stroke="#bbb" stroke-dasharray="4"/>',
    ]
    for hosts in (1, *_HOSTS):
        lines.append(f'<text x="{x(hosts) - 6:.0f}" y="{height - edge + 18}">{hosts}</text>')
        lines.append(f'<text x="{edge - 26}" y="{y(hosts) + 4:.0f}">{hosts}</text>')
    for row, (name, color) in enumerate(zip(names, ("#1b6ca8", "#b8541a", "#3a7d34"), strict=False)):
        points = [(1, 1.0), *((each.hosts, each.speed) for each in predictions if each.round_trip == name)]
        path = "L".join(f"{x(hosts):.1f} {y(speed):.1f}" for hosts, speed in points)
        lines.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        lines.append(
            f'<text x="{edge + 20}" y="{edge + 16 * row + 10}" fill="{color}">{name} between hosts</text>'
        )
    return "\n".join((*lines, "</svg>")) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, predict, and print a table, or with ``--json`` the figures."""
    parser = options("spread_hosts", "Predict what a spread program gains from more hosts.", rounds=1)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the predictions to FILE, as SVG")
    given = parser.parse_args(argv)
    rounds = _QUICK_ROUNDS if given.quick else _ROUNDS
    here = Costs(processors=2)
    with tempfile.TemporaryDirectory() as folder:
        two, three = (_record(hosts, rounds, Path(folder)) for hosts in (2, 3))
    factor = min(_FACTORS, key=lambda each: abs(_predict(two, 2, here.scaled(each)) - two.seconds))
    fitted = _predict(two, 2, here.scaled(factor))
    foretold = _predict(two, 3, here.scaled(factor))
    alone = _alone(two)
    predictions = []
    for name, round_trip in _ROUND_TRIPS.items():
        costs = Costs().scaled(factor)
        costs = Costs(costs.home, costs.agent, costs.wake, max(costs.round_trip, round_trip))
        predictions += [
            Prediction(name, hosts, hosts * alone / _predict(two, hosts, costs))
            for hosts in (_HOSTS[:3] if given.quick else _HOSTS)
        ]
    if given.plot is not None:
        given.plot.write_text(plot(predictions), encoding="ascii")
    if given.json:
        print(
            json.dumps(
                {
                    "factor": factor,
                    "two": [two.seconds, fitted],
                    "three": [three.seconds, foretold],
                    "predictions": [each._asdict() for each in predictions],
                }
            )
        )
        return
    print(f"two hosts:   {two.seconds:6.2f} s measured, {fitted:6.2f} s fitted (costs times {factor:g})")
    print(f"three hosts: {three.seconds:6.2f} s measured, {foretold:6.2f} s predicted")
    print(f"{'hosts':>10}" + "".join(f"{name:>12}" for name in _ROUND_TRIPS))
    for hosts in dict.fromkeys(each.hosts for each in predictions):
        speeds = (each.speed for each in predictions if each.hosts == hosts)
        print(f"{hosts:>10}" + "".join(f"{speed:>12.2f}" for speed in speeds))


if __name__ == "__main__":
    main()
