"""`python -m bench.spread [--json] [--quick] [--repeat N]`: programs spread over two hosts, against one processor
and two.

Both hosts are on this machine, each with its agent, so on two processors the agents take their time from the program.
Each figure is the program's own (fixtures/spread_speed), the median of the rounds; a round runs every way once.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Sequence

from bench.figures import options
from bench.measure import PTSERVER, BenchError
from tests.gofixtures import build

#: What is measured: its name, how often, and what of it is asked for: a limit on seconds, or on the ratio to a way.
MEASURES: dict[str, tuple[int, str]] = {
    "compute": (6_000_000, "at most 0.62 of one processor"),
    "channel": (300, "at most 0.6 ms"),
    "allocate": (100_000, "at most 10 times two processors"),
    "read": (1_000, ""),
    "write": (1_000, ""),
    "migrate": (50, "at most 1 ms"),
}
WAYS: dict[str, tuple[list[str], str]] = {
    "one processor": (["run"], "1"),
    "two processors": (["run"], "2"),
    "two hosts": (["run", "--spread", "local"], "2"),
}


def seconds(way: str, measure: str, count: int) -> float:
    """Return what the program measured."""
    words, processors = WAYS[way]
    command = [PTSERVER, *words, str(build("spread_speed", stub=True)), measure, str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"GOMAXPROCS": processors}
    )
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
    return float(done.stdout)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table, or with ``--json`` the figures."""
    given = options("spread", "Measure programs that are spread over hosts.", rounds=3).parse_args(argv)
    rounds, part = (1, 10) if given.quick else (given.repeat, 1)
    found: dict[str, dict[str, list[float]]] = {name: {way: [] for way in WAYS} for name in MEASURES}
    for _ in range(rounds):
        for name, (count, _) in MEASURES.items():
            for way in WAYS:
                found[name][way].append(seconds(way, name, max(1, count // part)))
    medians = {
        name: {way: statistics.median(values) for way, values in ways.items()} for name, ways in found.items()
    }
    if given.json:
        print(json.dumps(medians))
        return
    print(f"{'':10}" + "".join(f"{way:>18}" for way in WAYS) + "  to one  to two  asked")
    for name, ways in medians.items():
        one, two, spread = ways.values()
        figures = "".join(f"{value * 1e3:15.4f} ms" for value in ways.values())
        print(f"{name:10}{figures}{spread / one:8.2f}{spread / two:8.2f}  {MEASURES[name][1]}")


if __name__ == "__main__":
    main()
