"""`python -m bench.emulation [--json] [--quick] [--repeat N] [--size N]`: emulated programs, native, under qemu-user.

The same program (fixtures/emu_cpu) runs natively, under qemu-user and on the emulator, for both architectures, each
once per round, so that what slows the machine for a while slows all of them. Each part times itself by its own
clock; a figure is the best of all rounds, as whatever else the machine does can only make it slower. Measured too:
how long a hello takes from start to end, and the most memory that it has resident.

Targets: at least half of qemu-user's speed on arm64 programs (geometric mean of the parts), and five times qiling's
where that can run the program at all; a hello in less than 250 MB. `apt-get install qemu-user` brings qemu-user;
--qiling installs qiling apart (`bench.qiling`).
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from bench.figures import options
from bench.measure import BenchError
from bench.qiling import CannotRunError, parts_under_qiling
from tests.gofixtures import ROOT, build

EMULATED = (sys.executable, "-m", "ptserver.emulated.host")
QEMU = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}

SPEED_TARGET = 0.5
QILING_TARGET = 5.0
MEMORY_TARGET_BYTES = 250 << 20


def parts(command: Sequence[str]) -> dict[str, float]:
    """Return what each part of emu_cpu took, in seconds, by the program's own clock."""
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return {name: int(took) / 1e9 for name, took in (line.split() for line in done.stderr.splitlines())}


def ways(arch: str) -> dict[str, tuple[str, ...]]:
    """Return the ways to run a program for *arch* that there are here, as what comes before it."""
    found: dict[str, tuple[str, ...]] = {"emulated": EMULATED}
    if (os.uname().machine == "x86_64") == (arch == "amd64"):
        found["native"] = ()
    if shutil.which(QEMU[arch]):
        found["qemu-user"] = (QEMU[arch],)
    return found


def computing(arch: str, rounds: int, size: int) -> dict[str, dict[str, float]]:
    """Return the best of all rounds by way and part, in seconds."""
    program = str(build("emu_cpu", arch=arch))
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for way, prefix in ways(arch).items():
            for part, took in parts([*prefix, program, str(size)]).items():
                known = best.setdefault(way, {})
                known[part] = min(took, known.get(part, math.inf))
    return best


def hello(arch: str, rounds: int) -> tuple[float, int]:
    """Return the shortest time in seconds that a hello took, and the most memory in bytes that it had resident."""
    program = str(build("hello", arch=arch))
    best, most = math.inf, 0
    for _ in range(rounds):
        start = time.perf_counter()
        with open(os.devnull, "w") as nowhere:
            actions = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1)]
            pid = os.posix_spawn(EMULATED[0], [*EMULATED, program], ENVIRONMENT, file_actions=actions)
            _, status, usage = os.wait4(pid, 0)
        if status:
            raise BenchError(f"hello for {arch} does not run: wait status {status}")
        best = min(best, time.perf_counter() - start)
        most = max(most, usage.ru_maxrss << 10)
    return best, most


def relative_speed(best: dict[str, dict[str, float]], yardstick: str) -> float | None:
    """Return the emulator's speed as a multiple of *yardstick*'s: the geometric mean of the parts."""
    other = best.get(yardstick)
    if other is None:
        return None
    ratios = [other[part] / took for part, took in best["emulated"].items()]
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def main() -> None:
    """Measure and print."""
    parser = options("emulation", "Measure emulated programs against native ones and qemu-user.")
    parser.add_argument("--size", type=int, default=1, help="how much is computed")
    parser.add_argument(
        "--qiling", action="store_true", help="measure qiling, too; the first time it is installed"
    )
    given = parser.parse_args()
    rounds = 1 if given.quick else given.repeat
    missed = []
    report: dict[str, object] = {}
    for arch in ("arm64", "amd64"):
        best = computing(arch, rounds, given.size)
        refusal = "--qiling was not given"
        if given.qiling:
            try:
                best["qiling"] = parts_under_qiling(str(build("emu_cpu", arch=arch)), given.size)
            except CannotRunError as error:
                refusal = f"it cannot run the program: {error}"
        took, memory = hello(arch, rounds)
        speed, of_qiling = relative_speed(best, "qemu-user"), relative_speed(best, "qiling")
        report[arch] = {
            "seconds": best,
            "of_qemu": speed,
            "of_qiling": refusal if of_qiling is None else of_qiling,
            "hello_seconds": took,
            "hello_bytes": memory,
        }
        if of_qiling is not None and of_qiling < QILING_TARGET:
            missed.append(f"{arch}: at least {QILING_TARGET} times qiling's speed")
        if memory >= MEMORY_TARGET_BYTES:
            missed.append(f"{arch}: less than {MEMORY_TARGET_BYTES >> 20} MiB")
        if arch == "arm64" and speed is not None and speed < SPEED_TARGET:
            missed.append(f"{arch}: at least {SPEED_TARGET} of qemu-user's speed")
        if not given.json:
            names = list(best["emulated"])
            print(f"{arch:12}" + "".join(f"{name:>12}" for name in names))
            for way, values in sorted(best.items()):
                print(f"  {way:10}" + "".join(f"{values[name] * 1000:9.0f} ms" for name in names))
            print(
                f"  of qemu-user's speed: {'qemu-user is not installed' if speed is None else f'{speed:.2f}'}"
            )
            print(f"  of qiling's speed: {refusal if of_qiling is None else f'{of_qiling:.1f}'}")
            print(f"  hello: {took * 1000:.0f} ms, {memory / 1e6:.0f} MB")
    if given.json:
        print(json.dumps(report))
    elif missed:
        print(f"MISSED: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
