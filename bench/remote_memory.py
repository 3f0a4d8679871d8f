"""`python -m bench.remote_memory [--json] [--quick] [--repeat N]`: what remote variables cost.

A program that touches one ten times a second, and a hundred times, against itself natively, by turns; one access
served by a server of the host's own process, and over loopback TCP; and where the time of an access goes. Figures are
medians of all rounds; of an access, of each round's median, and of its mean, which has the moments as well in which a
virtual machine is not given its processors. The program's own time is what counts for the ratio; what ptserver
takes to start it, and to end, is printed by itself.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from bench.figures import options
from bench.measure import PTSERVER, BenchError, program, serving

_VARIABLE = ("--remote-var", "main.counter")
_MODES = ("atomic", "load", "store")

_PARTS = {
    "signal": "signal's details",
    "registers": "read, write registers",
    "code": "look at the code",
    "store": "store",
    "resume": "resume",
}
#: How often a program that works touches its variable in a second, and after how many of its rounds of some ten
#: milliseconds that is; rarely means the first.
_RATES = {10: 10, 100: 1}
_WORK_ROUNDS = 20

RATIO_TARGET = 1.05
LOCAL_TARGET_NS, TCP_TARGET_NS = 120_000, 250_000


def run(prefix: Sequence[str], *words: str) -> list[int]:
    """Return the nanoseconds that the program prints: in all, or of one access the median and the mean."""
    done = subprocess.run([*prefix, program("remote"), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(prefix)}: {done.stderr.strip() or done.returncode}")
    return [int(word) for word in done.stdout.split()]


def split(accesses: int, address: str = "") -> dict[str, float]:
    """Return where the time of one atomic addition goes, in nanoseconds, by part. address: of a server, if any."""
    command = [sys.executable, "-m", "bench.remote_split", program("remote"), "atomic", str(accesses)]
    done = subprocess.run([*command, *filter(None, [address])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(done.stderr)
    seen, spent = done.stdout.splitlines()
    found = json.loads(spent)
    parts = {name: ns / found["accesses"] for name, ns in found.items()}
    known = {title: parts.get(name, 0.0) for name, title in _PARTS.items()}
    trap = {"trap, switches, waking": int(seen.split()[1]) - parts["take"]}
    return trap | known | {"decide, execute": parts["take"] - sum(known.values())}


def work_ratios(rounds: int, prefix: Sequence[str]) -> dict[int, float]:
    """Return what the program that works takes under *prefix* against native, by touches per second.

    Medians of ratios: all by turns, and which of two is the first too.
    """
    ratios: dict[int, list[float]] = {rate: [] for rate in _RATES}
    for turn in range(rounds):
        for rate, between in _RATES.items():
            words = ("work", str(_WORK_ROUNDS), str(between))
            ways: list[Sequence[str]] = [(), prefix]
            spent = {len(way): run(way, *words)[0] for way in (ways if turn % 2 else reversed(ways))}
            ratios[rate].append(spent[len(prefix)] / spent[0])
    return {rate: statistics.median(found) for rate, found in ratios.items()}


def start_ns(rounds: int, prefix: Sequence[str]) -> float:
    """Return how much longer a program takes in all that does nothing but one access, against native."""
    longer = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        run((), "work", "0", "1")
        middle = time.perf_counter_ns()
        run(prefix, "work", "0", "1")
        longer.append(time.perf_counter_ns() - middle - (middle - start))
    return statistics.median(longer)


def measure(rounds: int, accesses: int) -> dict[str, float]:
    """Return all medians: nanoseconds per access by way and mode and of the start, and the ratios of the work.

    The means of accesses have ", mean" after the way.
    """
    found: dict[str, list[int]] = {}
    here = [PTSERVER, "run", *_VARIABLE]
    with serving("passthrough", "127.0.0.1:0") as address:
        ways = {"in process": here, "over TCP": [PTSERVER, "run", "--server", address, *_VARIABLE]}
        for _ in range(rounds):
            for way, prefix in ways.items():
                for mode in _MODES:
                    for of, ns in zip(("", ", mean"), run(prefix, mode, str(accesses)), strict=True):
                        found.setdefault(f"{mode}, {way}{of}", []).append(ns)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = {_touched(rate): ratio for rate, ratio in work_ratios(3 * rounds, here).items()}
    return {**ratios, "start": start_ns(rounds, here), **medians}


def _touched(rate: int) -> str:
    return f"touched {rate} times a second"


def main() -> None:
    """Measure and print."""
    parser = options("remote_memory", "Measure what remote variables cost.", rounds=7)
    parser.add_argument("--accesses", type=int, default=1000)
    given = parser.parse_args()
    accesses = given.accesses // 4 if given.quick else given.accesses
    figures = measure(3 if given.quick else given.repeat, accesses)
    parts = {"in process": split(accesses)}
    with serving("passthrough", "127.0.0.1:0") as address:
        parts["over TCP"] = split(accesses, address)
    met = (
        figures[_touched(min(_RATES))] <= RATIO_TARGET
        and all(figures[f"{mode}, in process"] <= LOCAL_TARGET_NS for mode in _MODES)
        and all(figures[f"{mode}, over TCP"] <= TCP_TARGET_NS for mode in _MODES)
    )
    if given.json:
        print(json.dumps({"figures": figures, "split_ns": parts, "met": met}))
    else:
        for rate in _RATES:
            wanted = f"at most {RATIO_TARGET}" if rate == min(_RATES) else "of native"
            print(f"{_touched(rate):34} {figures.pop(_touched(rate)):8.3f}   {wanted}")
        print(f"{'start and end, once':34} {figures.pop('start') / 1e6:8.1f} ms")
        for name, ns in figures.items():
            limit = LOCAL_TARGET_NS if "process" in name else TCP_TARGET_NS
            wanted = "" if name.endswith("mean") else f"   at most {limit / 1000:g}"
            print(f"{name:34} {ns / 1000:8.1f} µs{wanted}")
        for way, known in parts.items():
            print(f"an atomic addition, {way} (clocks included):")
            for name, ns in known.items():
                print(f"  {name:32} {ns / 1000:8.1f} µs")
        print("targets met" if met else "targets MISSED")


if __name__ == "__main__":
    main()
