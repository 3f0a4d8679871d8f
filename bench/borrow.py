"""`python -m bench.borrow [--json] [--quick] [--repeat N]`: what a borrowed machine must reach, in one table.

Reading and walking beside ssh, rsync and sshfs, all from their start to their end (`bench.latency`); caddy beside
itself alone (`bench.web`); what sessions leave (`bench.sessions`); and how long `ptserver run --on` takes for a
program that the host has already got. Medians of rounds that do everything once. What is missing here (root,
openssh-server, rsync, caddy) is said and left out.
"""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import latency, sessions
from bench.figures import options
from bench.measure import PTSERVER, BenchError, program, serving
from bench.web import caddy, caddy_requests_per_second
from tests.conformance.modes import base_environment, waiting
from tests.two_machines import two_machines, why_no_machines

_MIB = 1 << 20
_PTSERVER = "ptserver, with its start"
_LARGE_BYTES = 90 * 1000 * 1000


@dataclass(frozen=True)
class Line:
    """A line of the table. other: what ptserver is compared with; value: what is judged by *limit*."""

    what: str
    other: str
    other_value: float
    ptserver: float
    unit: str
    value: float
    value_is: str
    limit: float
    at_least: bool
    met: bool

    def __str__(self) -> str:
        beside = f"{self.other} {self.other_value:.4g} {self.unit}"
        sign = "at least" if self.at_least else "at most"
        own = f"{self.ptserver:.4g} {self.unit}"
        verdict = "met" if self.met else "MISSED"
        judged = f"{self.value:.3g} {self.value_is}"
        return f"{self.what:<34}{beside:>26}{own:>16}{judged:>28}  {sign} {self.limit:g}: {verdict}"


def line(
    what: str,
    other: tuple[str, float],
    ptserver: float,
    unit: str,
    value: tuple[float, str],
    limit: float,
    *,
    at_least: bool = False,
) -> Line:
    """Return a line, with its verdict."""
    met = value[0] >= limit if at_least else value[0] <= limit
    return Line(what, *other, ptserver, unit, *value, limit, at_least, met)


def between_machines(quick: bool, repeat: int) -> Iterator[Line]:
    """Yield what reading and walking take on loopback, and with a millisecond of delay each way."""
    size, folders = (16 if quick else 256) * _MIB, 6 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        files, keys = Path(folder) / "files", Path(folder) / "keys"
        files.mkdir()
        keys.mkdir()
        latency.make_files(files, size, folders)
        for where, delay_ms in (("loopback", 0.0), ("1 ms", 1.0)):
            scratch = Path(folder) / where
            scratch.mkdir()
            with two_machines(scratch, delay_ms=delay_ms) as machines:
                measured = latency.measure(files, where, machines, keys, repeat)
                rows = {(row.subject, row.way): row for row in measured}
            cat, reads = rows["read", "ssh cat"], rows["read", _PTSERVER]
            what = f"read {size // _MIB} MiB, {where}"
            if where == "loopback":
                speed = (1 / reads.ratio, "of its speed")
                yield line(what, ("ssh cat", cat.seconds), reads.seconds, "s", speed, 0.5, at_least=True)
            else:
                speed = (reads.mb_per_second or 0.0, "MB/s")
                yield line(what, ("ssh cat", cat.seconds), reads.seconds, "s", speed, 100, at_least=True)
                rsync, walks = rows["walk", "rsync -n"], rows["walk", _PTSERVER]
                ratio = (walks.ratio, "times its time")
                what = f"walk {folders * 100} files, {where}"
                yield line(what, ("rsync -n", rsync.seconds), walks.seconds, "s", ratio, 2)
                if (sshfs := rows.get(("walk", "sshfs"))) is not None:
                    ratio = (walks.seconds / sshfs.seconds, "times its time")
                    yield line(what, ("sshfs", sshfs.seconds), walks.seconds, "s", ratio, 2)


def web(quick: bool, repeat: int) -> Iterator[Line]:
    """Yield what caddy answers with 50 connections."""
    executable = caddy()
    assert executable is not None
    count = 400 if quick else 10_000
    with serving("passthrough", "127.0.0.1:0") as address:
        remote = [PTSERVER, "run", "--server", address]
        rounds = [
            tuple(caddy_requests_per_second(prefix, executable, count) for prefix in ((), remote))
            for _ in range(repeat)
        ]
    native, served = (statistics.median(each[index] for each in rounds) for index in (0, 1))
    ratio = statistics.median(served / native for native, served in rounds)
    yield line(
        "caddy, requests/s", ("native", native), served, "/s", (ratio, "of native"), 0.25, at_least=True
    )


def server_sessions(quick: bool) -> Iterator[Line]:
    """Yield what sessions leave of their server."""
    count = 50 if quick else 500
    before, after, _ = sessions.measure(count)
    left = after.descriptors - before.descriptors + after.processes - before.processes
    ratio = after.memory_bytes / before.memory_bytes
    what = f"{count} sessions, memory left"
    before_mb, after_mb = before.memory_bytes / 1e6, after.memory_bytes / 1e6
    yield line(what, ("before", before_mb), after_mb, "MB", (ratio, "times as much"), 1.05)
    yield line("  descriptors and processes left", ("before", 0), left, "", (left, "more"), 0)


def starts_again(repeat: int) -> Iterator[Line]:
    """Yield how long it takes to run a large program on a host that has got it."""
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large"
        shutil.copy(program("nothing"), large)
        with large.open("ab") as file:
            while (missing := _LARGE_BYTES - file.tell()) > 0:
                file.write(os.urandom(min(missing, _MIB)))
        with waiting("127.0.0.1:0", Path(folder)) as (address, _):
            first, *others = [
                _seconds([PTSERVER, "run", "--on", address, str(large)]) for _ in range(repeat + 1)
            ]
    again = statistics.median(others)
    yield line("run --on of 90 MB, again", ("first", first), again, "s", (again, "s"), 1)


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, env=base_environment(), capture_output=True, check=False)
    if done.returncode:
        raise BenchError(f"{command} ended with {done.returncode}: {done.stderr.decode()}")
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    given = options("borrow", "Measure what a borrowed machine must reach.", rounds=3).parse_args()
    repeat = 1 if given.quick else given.repeat
    parts = (
        (why_no_machines(), lambda: between_machines(given.quick, repeat)),
        ("" if caddy() else "caddy is not installed", lambda: web(given.quick, repeat)),
        ("", lambda: server_sessions(given.quick)),
        ("", lambda: starts_again(repeat)),
    )
    lines = []
    for absent, part in parts:
        try:
            for found in part() if not absent else ():
                lines.append(found)
                if not given.json:
                    print(found, flush=True)
        except BenchError as error:
            absent = str(error)
        if absent and not given.json:
            print(f"absent here: {absent}")
    if given.json:
        print(json.dumps([asdict(found) for found in lines], indent=2))


if __name__ == "__main__":
    main()
