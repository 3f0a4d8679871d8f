"""`python -m bench.run [--json] [--quick] [--repeat N]`: all figures in one run, side by side.

Every figure is the median of N rounds; a round runs everything once, so that what slows the machine for a while slows
all of it. Ratios are to the program alone in the same round, and their median is taken. A tool that is not installed,
or that does not work on this machine, is said to be absent; `apt-get install strace runsc` brings both.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from bench.measure import (
    PTSERVER,
    BenchError,
    peak_memory_bytes,
    seconds_per_call,
    seconds_to_run,
    serving,
    tool,
)
from bench.web import caddy, caddy_requests_per_second, requests_per_second
from ptserver.keys import make_keys

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


def figures(tcp: str, unix: str, secure: Sequence[str], *, scale: float) -> list[Figure]:
    """Return all figures.

    tcp, unix: addresses of servers; secure: runs a program under one with TLS; scale: 1 for full counts of calls.
    """

    def in_process(name: str) -> list[str]:
        return [PTSERVER, "run", "--server", f"bench.servers:{name}"]

    def calls(
        prefix: Sequence[str] | None, kind: str, count: float, *more: str
    ) -> Callable[[], float] | None:
        number = str(max(1, round(count * scale)))
        return None if prefix is None else lambda: seconds_per_call(prefix, kind, number, *more)

    def rate(prefix: Sequence[str], count: float) -> Callable[[], float]:
        number = str(max(1, round(count * scale)))
        return lambda: 1 / seconds_per_call(prefix, "pread", number, "32")

    def web(prefix: Sequence[str], count: float) -> Callable[[], float]:
        return lambda: requests_per_second(prefix, round(count * scale))

    def files(prefix: Sequence[str], count: float) -> Callable[[], float] | None:
        executable = caddy()
        if executable is None:
            return None
        return lambda: caddy_requests_per_second(prefix, executable, round(count * scale))

    def start(prefix: Sequence[str]) -> Callable[[], float]:
        return lambda: seconds_to_run(prefix, "nothing")

    def memory(prefix: Sequence[str]) -> Callable[[], float]:
        return lambda: float(peak_memory_bytes(prefix, round(20_000 * scale)))

    run, remote, local = [PTSERVER, "run"], [PTSERVER, "run", "--server", tcp], in_process("Answers")
    strace = tool("strace", "-f", "-o", os.devnull)
    runsc = tool("runsc", "--platform=ptrace", "--network=none", "do")
    within_1_percent = Target(1.01, ratio=True)
    return [
        Figure("arithmetic", "native", "ns", calls([], "cpu", 5e8)),
        Figure("arithmetic", "ptserver run", "ns", calls(run, "cpu", 5e8), within_1_percent),
        Figure("pread of 100 bytes", "native", "µs", calls([], "pread", 500_000)),
        Figure("pread of 100 bytes", "ptserver run", "µs", calls(run, "pread", 500_000), within_1_percent),
        Figure(
            "pread of 100 bytes",
            "listener on, call not served",
            "µs",
            calls(in_process("Elsewhere"), "pread", 500_000),
            Target(1.3, ratio=True),
        ),
        Figure(
            "pread of 100 bytes",
            "observed in process",
            "µs",
            calls(in_process("Observes"), "pread", 50_000),
            Target(15),
        ),
        Figure("pread of 100 bytes", "served in process", "µs", calls(local, "pread", 50_000), Target(25)),
        Figure("pread of 100 bytes", "served over TCP", "µs", calls(remote, "pread", 10_000), Target(150)),
        Figure("pread of 100 bytes", "served over TLS", "µs", calls(secure, "pread", 10_000)),
        Figure(
            "pread of 100 bytes",
            "served over a Unix socket",
            "µs",
            calls([PTSERVER, "run", "--server", unix], "pread", 10_000),
        ),
        Figure("pread of 100 bytes", "strace -f", "µs", calls(strace, "pread", 10_000)),
        Figure("pread of 100 bytes", "runsc --platform=ptrace do", "µs", calls(runsc, "pread", 10_000)),
        Figure("32 goroutines", "native", "calls/s", rate([], 1_000_000)),
        Figure("32 goroutines", "served in process", "calls/s", rate(local, 100_000)),
        Figure(
            "32 goroutines", "served over TCP", "calls/s", rate(remote, 40_000), Target(15_000, at_least=True)
        ),
        Figure("32 goroutines", "served over TLS", "calls/s", rate(secure, 40_000)),
        Figure("HTTP requests", "native", "calls/s", web([], 40_000)),
        Figure(
            "HTTP requests",
            "served over TCP",
            "calls/s",
            web(remote, 10_000),
            Target(0.25, ratio=True, at_least=True),
        ),
        Figure("HTTP requests to caddy", "native", "calls/s", files([], 20_000)),
        Figure("HTTP requests to caddy", "served over TCP", "calls/s", files(remote, 4_000)),
        Figure("start to end of nothing", "native", "ms", start([])),
        Figure("start to end of nothing", "ptserver run", "ms", start(run), Target(150)),
        Figure("start to end of nothing", "served in process", "ms", start(local)),
        Figure("start to end of nothing", "served over TCP", "ms", start(remote)),
        Figure("start to end of nothing", "served over TLS", "ms", start(secure)),
        Figure("memory of the stub host", "served in process", "MB", memory(local), Target(60)),
        Figure("memory of the stub host", "served over TCP", "MB", memory(remote), Target(60)),
    ]


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


def main() -> None:
    """Run the benchmarks; exit 1 if a target is missed."""
    from bench import tracing  # which builds on this module

    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure what ptserver costs.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="one round of a tenth: does it work?")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds (default 5)")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only figures whose group or way contains TEXT"
    )
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        tcp = stack.enter_context(serving("passthrough", "127.0.0.1:0"))
        unix = stack.enter_context(serving("passthrough", f"unix:{folder}/server"))
        scale = 0.1 if options.quick else 1
        make_keys(f"{folder}/keys", ["localhost"], days=1, token=False)
        tls = stack.enter_context(serving("passthrough", "127.0.0.1:0", "--keys", f"{folder}/keys/server"))
        secure = [PTSERVER, "run", "--server", tls, "--keys", f"{folder}/keys/client"]
        wanted = [*figures(tcp, unix, secure, scale=scale), *tracing.figures(scale=scale)]
        chosen = [f for f in wanted if options.only in f.group or options.only in f.way or f.way == "native"]
        rows = measure(chosen, 1 if options.quick else options.repeat)
    sys.exit(show(rows, as_json=options.json))


def show(rows: Sequence[Row], *, as_json: bool) -> int:
    """Print the rows; return 1 if a target is missed, else 0."""
    if as_json:
        machine = {
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
        }
        print(json.dumps({"machine": machine, "figures": [asdict(row) for row in rows]}, indent=2))
    else:
        print(table(rows))
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    main()
