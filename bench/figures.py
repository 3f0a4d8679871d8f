"""Figures: what is measured, by what it is judged, and the table of medians and ratios that comes of it.

Every figure is the median of N rounds; a round runs everything once, so that what slows the machine for a while slows
all of it. Ratios are to the program alone in the same round, and their median is taken. A tool that is not installed,
or that does not work on this machine, is said to be absent.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from bench.measure import BenchError

_SCALES = {"ns": 1e9, "µs": 1e6, "ms": 1e3, "calls/s": 1.0, "events/s": 1.0, "MB": 1e-6}


@dataclass(frozen=True)
class Target:
    """What a figure is held to. ratio: it is about the ratio to native; at_least: larger is better."""

    limit: float
    ratio: bool = False
    at_least: bool = False


@dataclass(frozen=True)
class Figure:
    """One thing that is measured, in one way.

    group: figures of one group are compared; way: how the program was run, "native" being the yardstick.
    measure: gives one value in seconds, calls per second or bytes, None where it is absent.
    """

    group: str
    way: str
    unit: str
    measure: Callable[[], float] | None
    target: Target | None = None


@dataclass(frozen=True)
class Row:
    """What became of a figure: *median* in *unit*; *spread*, from least to most, as a part of it; ratio to native."""

    group: str
    way: str
    unit: str
    median: float | None
    spread: float | None
    ratio: float | None
    target: Target | None
    met: bool | None


def options(name: str, what: str, *, rounds: int = 5) -> argparse.ArgumentParser:
    """Return a parser of the options that all modules of this package have."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=what)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="little of everything, once: does it work?")
    parser.add_argument(
        "--repeat", "--rounds", type=int, default=rounds, metavar="N", help=f"rounds (default {rounds})"
    )
    return parser


def measure(wanted: Sequence[Figure], rounds: int) -> list[Row]:
    """Measure everything *rounds* times, in turns; return the rows in order."""
    values: dict[Figure, list[float]] = {figure: [] for figure in wanted}
    failed: dict[Figure, BenchError] = {}
    for round_number in range(rounds):
        for figure in wanted:
            print(f"\r{round_number + 1}/{rounds} {figure.group}: {figure.way:<40}", end="", file=sys.stderr)
            if figure.measure is not None and figure not in failed:
                try:
                    values[figure].append(figure.measure())
                except BenchError as error:
                    failed[figure] = error
                    print(f"\n{figure.group}: {figure.way}: {error}", file=sys.stderr)
    print(file=sys.stderr)
    native = {figure.group: values[figure] for figure in wanted if figure.way == "native"}
    return [_row(figure, values[figure], native.get(figure.group, [])) for figure in wanted]


def _row(figure: Figure, values: list[float], native: list[float]) -> Row:
    if not values:
        return Row(figure.group, figure.way, figure.unit, None, None, None, figure.target, None)
    median = statistics.median(values)
    shown = median * _SCALES[figure.unit]
    # Round by round, so that both were measured at the same time of a machine whose speed drifts.
    ratio = (
        statistics.median(value / alone for value, alone in zip(values, native, strict=True))
        if native
        else None
    )
    met = None
    if figure.target is not None:
        compared = ratio if figure.target.ratio else shown
        assert compared is not None
        met = compared >= figure.target.limit if figure.target.at_least else compared <= figure.target.limit
    spread = (max(values) - min(values)) / median
    return Row(figure.group, figure.way, figure.unit, shown, spread, ratio, figure.target, met)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'':36}{'median':>20}{'spread':>8}{'ratio':>9}  target"]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(group)
        if row.median is None or row.spread is None:
            lines.append(f"  {row.way:<34}{'absent here':>20}")
            continue
        value = f"{row.median:,.0f}" if row.median >= 1000 else f"{row.median:.3g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}" if row.ratio < 10 else f"{row.ratio:.0f}"
        lines.append(
            f"  {row.way:<34}{value + ' ' + row.unit:>20}{row.spread:>8.0%}{ratio:>9}  {_target_text(row)}".rstrip()
        )
    return "\n".join(lines)


def _target_text(row: Row) -> str:
    if row.target is None:
        return ""
    sign = "at least" if row.target.at_least else "at most"
    unit = "times native" if row.target.ratio else row.unit
    return f"{sign} {row.target.limit:g} {unit}: {'met' if row.met else 'MISSED'}"


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the rows, as a table or as JSON."""
    if as_json:
        machine = {
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
        }
        print(json.dumps({"machine": machine, "figures": [asdict(row) for row in rows]}, indent=2))
    else:
        print(table(rows))
