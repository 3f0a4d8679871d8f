"""`python -m bench.spread_far [--json] [--quick] [--repeat N] [--only NAME]`: a spread program whose hosts are apart.

As `bench.spread`, over two machines made of namespaces (`tests.two_machines`), which speak TLS: one that is near, and
with 0, 0.1 and 1 ms of delay each way. The delay is made by a process that carries the packets, which takes some time
itself; "0 ms" says how much. Each host has one processor (taskset), with its agent, and so has the program that runs
natively on one; on two it has both. Rounds run every way once; figures are medians. Needs root and /dev/net/tun.
"""

import contextlib
import json
import math
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from bench.figures import options
from bench.measure import PTSERVER, BenchError
from bench.spread import MEASURES, Popen, measured
from tests.conformance.modes import waiting
from tests.two_machines import TwoMachines, two_machines, why_no_machines

#: Delay each way in milliseconds; None: without the process that carries packets.
_DELAYS: dict[str, float | None] = {"near": None, "0 ms": 0.0, "0.1 ms": 0.1, "1 ms": 1.0}
_NATIVE = {"one": ("0", "1"), "two": ("0,1", "2")}
_FIRST, _SECOND = ("taskset", "-c", "0"), ("taskset", "-c", "1")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table, or with ``--json`` the figures: seconds, null for what takes too long."""
    parser = options("spread_far", "Measure programs that are spread over two machines.", rounds=3)
    parser.add_argument(
        "--only", choices=tuple(MEASURES), action="append", help="what to measure; repeatable"
    )
    given = parser.parse_args(argv)
    if reason := why_no_machines():
        print(json.dumps({}) if given.json else f"absent here: {reason}")
        return
    rounds, part = (1, 10) if given.quick else (given.repeat, 1)
    names = given.only or list(MEASURES)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}

    def measure(way: str, name: str, words: Sequence[str], processors: str, popen: Popen) -> None:
        count = max(1, MEASURES[name].count // part)
        try:
            value = measured(words, name, count, processors, popen)
        except BenchError as error:
            if "takes more than" not in str(error):
                raise
            value = math.inf
        found[name].setdefault(way, []).append(value)

    for _ in range(rounds):
        for way, (processor, count) in _NATIVE.items():
            for name in names:
                words = ("taskset", "-c", processor, PTSERVER, "run")
                measure(way, name, words, count, subprocess.Popen)
        for way, delay_ms in _DELAYS.items():
            with _two_hosts(delay_ms) as (words, popen):
                for name in names:
                    measure(way, name, (*words, "--place", MEASURES[name].place), "2", popen)
    medians = {name: {way: _median(values) for way, values in ways.items()} for name, ways in found.items()}
    if given.json:
        print(json.dumps(medians))
        return
    print(f"{'':10}" + "".join(f"{way:>14}" for way in (*_NATIVE, *_DELAYS)))
    for name, row in medians.items():
        shown = ("too long" if value is None else f"{value * 1e3:.4f} ms" for value in row.values())
        print(f"{name:10}" + "".join(f"{text:>14}" for text in shown))


def _median(values: Sequence[float]) -> float | None:
    """Return the median; None if that run took too long."""
    median = statistics.median(values)
    return None if math.isinf(median) else median


@contextlib.contextmanager
def _two_hosts(delay_ms: float | None) -> Iterator[tuple[Sequence[str], Popen]]:
    """Have a host wait on another machine; give what runs a program over both, and what starts that."""
    with tempfile.TemporaryDirectory() as folder, _machines(Path(folder), delay_ms) as machines:
        if machines.wire is not None:
            machines.wire.be_urgent()
        there = partial(_start, machines.there.popen, _SECOND)
        address = f"{machines.there.address}:0"
        with waiting(address, Path(folder), *machines.listening_keys, popen=there) as (address, _):
            words = (PTSERVER, "run", "--spread", address, *machines.connecting_keys)
            yield words, partial(_start, machines.here.popen, _FIRST)


def _machines(folder: Path, delay_ms: float | None) -> "contextlib.AbstractContextManager[TwoMachines]":
    return two_machines(folder, delay_ms=delay_ms or 0.0, controlled=delay_ms is not None)


def _start(
    popen: Popen, before: Sequence[str], words: Sequence[str], **rest: object
) -> "subprocess.Popen[str]":
    return popen([*before, *words], **rest)


if __name__ == "__main__":
    main()
