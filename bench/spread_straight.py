"""`python -m bench.spread_straight [--json] [--quick] [--repeat N]`: pages of a spread program that go straight from
one of its hosts to another, against those that pass through its home.

Two hosts wait on another machine, made of namespaces, which speak TLS with the home and with each other; the home is
0, 0.1 and 1 ms away, and they are not apart. A round runs every way once; figures are medians. Needs root and
/dev/net/tun. "taken": a page that one has written and the other writes next; "between": a channel's round trip.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.figures import options
from bench.measure import PTSERVER
from bench.spread import measured
from tests.conformance.modes import waiting
from tests.two_machines import two_machines, why_no_machines

_DELAYS_MS = (0.0, 0.1, 1.0)
_WAYS = {"through the home": "none", "straight": "far"}
_COUNTS = {"taken": 500, "between": 60}

#: Seconds, by what, way and delay.
_Found = dict[str, dict[str, dict[float, list[float]]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table, or with ``--json`` the figures: seconds by what, way and delay."""
    given = options(
        "spread_straight", "Measure pages that go straight from host to host.", rounds=3
    ).parse_args(argv)
    if reason := why_no_machines():
        print(json.dumps({}) if given.json else f"absent here: {reason}")
        return
    rounds, part = (1, 10) if given.quick else (given.repeat, 1)
    found: _Found = {name: {way: {each: [] for each in _DELAYS_MS} for way in _WAYS} for name in _COUNTS}
    for delay in _DELAYS_MS:
        _measure(delay, rounds, part, found)
    medians = {
        name: {
            way: {delay: statistics.median(values) for delay, values in row.items()}
            for way, row in ways.items()
        }
        for name, ways in found.items()
    }
    if given.json:
        print(json.dumps(medians))
        return
    print(f"{'':26}" + "".join(f"{delay:>10g} ms" for delay in _DELAYS_MS))
    for name, ways in medians.items():
        for way, row in ways.items():
            print(f"{name:8} {way:17}" + "".join(f"{value * 1e3:>10.3f} ms" for value in row.values()))


def _measure(delay: float, rounds: int, part: int, found: _Found) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machines = stack.enter_context(two_machines(folder, delay_ms=delay, controlled=True))
        machines.link.be_urgent()
        addresses = []
        for name in ("one", "other"):
            (folder / name).mkdir()
            place, keys = f"{machines.there.address}:0", machines.listening_keys
            host = waiting(place, folder / name, *keys, popen=machines.there.popen)
            addresses.append(stack.enter_context(host)[0])
        words = (PTSERVER, "run", "--spread", ",".join(addresses), *machines.connecting_keys)
        for _ in range(rounds):
            for name, count in _COUNTS.items():
                for way, straight in _WAYS.items():
                    command = (*words, "--place", "stay", "--straight", straight)
                    value = measured(command, name, max(1, count // part), "2", machines.here.popen)
                    found[name][way][delay].append(value)


if __name__ == "__main__":
    main()
