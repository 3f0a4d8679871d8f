"""`python -m bench.remote_memory [--json] [--quick] [--repeat N]`: what remote variables cost.

A program that touches one rarely (once in some ten milliseconds), against itself natively, side by side in each
round; one access served by a server of the host's own process, and over loopback TCP; and where the time of an access
goes. Figures are medians of all rounds.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from bench.figures import options
from bench.measure import PTSERVER, BenchError, program, serving

_VARIABLE = ("--remote-var", "main.counter")
_MODES = ("atomic", "load", "store")

_PARTS = {
    "registers": "read, write registers",
    "signal": "signal's details",
    "emulate": "the emulator, where needed",
    "store": "store",
    "resume": "resume",
}

RATIO_TARGET = 1.05
LOCAL_TARGET_NS, TCP_TARGET_NS = 120_000, 250_000


def run(prefix: Sequence[str], *words: str) -> int:
    """Return the nanoseconds that the program prints."""
    done = subprocess.run([*prefix, program("remote"), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(prefix)}: {done.stderr.strip() or done.returncode}")
    return int(done.stdout)


def split(accesses: int) -> dict[str, float]:
    """Return where the time of one atomic addition goes, in nanoseconds, by part."""
    command = [sys.executable, "-m", "bench.remote_split", program("remote"), "atomic", str(accesses)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(done.stderr)
    seen, spent = done.stdout.splitlines()
    parts = {name: ns / (accesses + 1) for name, ns in json.loads(spent).items()}
    known = {title: parts.get(name, 0.0) for name, title in _PARTS.items()}
    trap = {"trap, switches, waiting": int(seen) - parts["take"]}
    return trap | known | {"decode, decide, execute": parts["take"] - sum(known.values())}


def measure(rounds: int, accesses: int, work_rounds: int) -> dict[str, float]:
    """Return all medians: nanoseconds per access by way and mode, and the ratio of the program that works."""
    ratios: list[float] = []
    found: dict[str, list[int]] = {}
    here = [PTSERVER, "run", *_VARIABLE]
    with serving("passthrough", "127.0.0.1:0") as address:
        ways = {"in process": here, "over TCP": [PTSERVER, "run", "--server", address, *_VARIABLE]}
        for _ in range(rounds):
            native = run((), "work", str(work_rounds))
            ratios.append(run(here, "work", str(work_rounds)) / native)
            for way, prefix in ways.items():
                for mode in _MODES:
                    found.setdefault(f"{mode}, {way}", []).append(run(prefix, mode, str(accesses)))
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"ratio": statistics.median(ratios), **medians}


def main() -> None:
    """Measure and print."""
    parser = options("remote_memory", "Measure what remote variables cost.", rounds=7)
    parser.add_argument("--accesses", type=int, default=1000)
    given = parser.parse_args()
    accesses = given.accesses // 10 if given.quick else given.accesses
    figures = measure(1 if given.quick else given.repeat, accesses, 40)
    parts = split(accesses)
    met = (
        figures["ratio"] <= RATIO_TARGET
        and all(figures[f"{mode}, in process"] <= LOCAL_TARGET_NS for mode in _MODES)
        and all(figures[f"{mode}, over TCP"] <= TCP_TARGET_NS for mode in _MODES)
    )
    if given.json:
        print(json.dumps({"figures": figures, "split_ns": parts, "met": met}))
    else:
        print(f"{'touched rarely, against native':34} {figures.pop('ratio'):8.3f}   at most {RATIO_TARGET}")
        for name, ns in figures.items():
            limit = LOCAL_TARGET_NS if "process" in name else TCP_TARGET_NS
            print(f"{name:34} {ns / 1000:8.1f} µs   at most {limit / 1000:g}")
        print("an atomic addition, in process (clocks included):")
        for name, ns in parts.items():
            print(f"  {name:32} {ns / 1000:8.1f} µs")
        print("targets met" if met else "targets MISSED")


if __name__ == "__main__":
    main()
