"""`python -m bench.spread [--json] [--quick] [--repeat N] [--without NAME]`: programs spread over two hosts, against
one processor and two.

Both hosts are on this machine, and what keeps them (the home's process, or one agent besides) takes its time from the
program. Each figure is the program's own (fixtures/spread_speed), the median of the rounds; a round runs every way
once, so that what else the machine does concerns all alike. The last row is what of a fault's service is Python's
(`spread_service`). `--quick` takes a few seconds: one round of a tenth. `--without` leaves one of the adaptations out
(docs/spread.md), to see what it is worth.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bench.figures import options
from bench.measure import PTSERVER, BenchError
from bench.spread_service import SERVICE_ASKED, SERVICES, service_seconds
from ptserver.spread.adaptations import ADAPTATIONS
from tests.gofixtures import build

#: Starts a process, as subprocess.Popen does.
Popen = Callable[..., "subprocess.Popen[Any]"]

#: How long one run may take.
_SECONDS = 60


class Measure(NamedTuple):
    """count: how often; asked: for what; place: the policy, since what moves by itself would not be measured."""

    count: int
    asked: str = ""
    place: str = "stay"


MEASURES: dict[str, Measure] = {
    "compute": Measure(6_000_000, "at most 0.62 of one processor", "idle"),
    "channel": Measure(1_000, "at most 0.6 ms"),
    "allocate": Measure(100_000, "at most 10 times two processors"),
    "read": Measure(1_000),
    "scatter": Measure(300),
    "write": Measure(1_000),
    "migrate": Measure(50, "at most 1 ms"),
}
#: The words for ptserver, and GOMAXPROCS.
WAYS: dict[str, tuple[list[str], str]] = {
    "one processor": (["run"], "1"),
    "two processors": (["run"], "2"),
    "two hosts": (["run", "--spread", "local"], "2"),
    "by agents": (["run", "--spread", "agent"], "2"),
}


def seconds(way: str, name: str, count: int, adapt: str) -> float:
    """Return what the program measured."""
    words, processors = WAYS[way]
    spread = ["--place", MEASURES[name].place, "--adapt", adapt] if "--spread" in words else []
    return measured([PTSERVER, *words, *spread], name, count, processors)


def measured(
    words: Sequence[str], name: str, count: int, processors: str, popen: Popen = subprocess.Popen
) -> float:
    """Return what the program says that it took when it is run by *words*, with so many processors for Go.

    Raises:
        BenchError: it failed, or takes too long.
    """
    command = [*words, str(build("spread_speed", stub=True)), name, str(count)]
    environment = os.environ | {"GOMAXPROCS": processors}
    with popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            out, err = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise BenchError(f"{' '.join(command)} takes more than {_SECONDS} s") from error
    if process.returncode:
        raise BenchError(f"{' '.join(command)}: {err.strip()}")
    return float(out)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table, or with ``--json`` the figures."""
    parser = options("spread", "Measure programs that are spread over hosts.", rounds=3)
    parser.add_argument("--without", choices=tuple(ADAPTATIONS), help="an adaptation to leave out")
    given = parser.parse_args(argv)
    adapt = ",".join(name for name in ADAPTATIONS if name != given.without)
    rounds, part = (1, 10) if given.quick else (given.repeat, 1)
    found: dict[str, dict[str, list[float]]] = {name: {way: [] for way in WAYS} for name in MEASURES}
    services: list[float] = []
    for _ in range(rounds):
        services.append(service_seconds(SERVICES // part))
        for name, measure in MEASURES.items():
            for way in WAYS:
                found[name][way].append(seconds(way, name, max(1, measure.count // part), adapt))
    medians = {
        name: {way: statistics.median(values) for way, values in ways.items()} for name, ways in found.items()
    }
    if given.json:
        print(json.dumps({**medians, "service": {"two hosts": statistics.median(services)}}))
        return
    print(f"{'':10}" + "".join(f"{way:>18}" for way in WAYS) + "  to one  to two  asked")
    for name, ways in medians.items():
        one, two, spread, *_ = ways.values()
        figures = "".join(f"{value * 1e3:15.4f} ms" for value in ways.values())
        print(f"{name:10}{figures}{spread / one:8.2f}{spread / two:8.2f}  {MEASURES[name].asked}")
    print(f"{'service':10}{statistics.median(services) * 1e3:51.4f} ms  {SERVICE_ASKED}")


if __name__ == "__main__":
    main()
