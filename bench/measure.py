"""Runs programs for the benchmarks: builds them, starts servers, reads what the programs measured of themselves."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.gofixtures import CACHE, ROOT, environment, toolchain

PROGRAMS = Path(__file__).parent / "programs"

#: ptserver as it is installed next to this Python.
PTSERVER = str(Path(sys.executable).with_name("ptserver"))

_ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


class BenchError(Exception):
    """Something that is measured does not work here; the text says what it said."""


@cache
def program(name: str) -> str:
    """Return the path of a program from bench/programs, built."""
    target = CACHE / "bench" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [str(toolchain()), "build", "-buildvcs=false", "-o", str(target), "main.go"]
    subprocess.run(command, cwd=PROGRAMS / name, env=environment(), check=True)
    return str(target)


def seconds_per_call(prefix: Sequence[str], *words: str) -> float:
    """Return what one call took, by the program's own clock."""
    result = json.loads(output([*prefix, program("calls"), *words]))
    return float(result["seconds"]) / int(result["count"])


def seconds_to_run(prefix: Sequence[str], name: str) -> float:
    """Return how long a program took from its start to its end, seen from outside."""
    command = [*prefix, program(name)]
    start = time.perf_counter()
    output(command)
    return time.perf_counter() - start


def peak_memory_bytes(prefix: Sequence[str], calls: int) -> int:
    """Return the most memory that the process that *prefix* starts had resident, after the program's *calls*."""
    command = [*prefix, program("calls"), "wait", str(calls)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=_ENVIRONMENT, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        if child.stdout.readline() != "waiting\n":
            raise BenchError(f"{' '.join(command)} does not run")
        status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
        child.stdin.close()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak) * 1024


def processor_seconds(pid: int) -> float:
    """Return how much processor time a process's threads have used."""
    spent = (path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(map(int, spent)) / 1e9


@contextlib.contextmanager
def serving(server: str, address: str, *options: str) -> Iterator[str]:
    """Run `ptserver serve` meanwhile; give its address."""
    with serving_process(server, address, *options) as (at, _):
        yield at


@contextlib.contextmanager
def serving_process(
    server: str, address: str, *options: str
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """As `serving`; give its process, too."""
    command = [PTSERVER, "serve", server, "--listen", address, "--json", *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=_ENVIRONMENT, text=True
        )
        try:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], 30)[0]:
                raise BenchError("ptserver serve says nothing")
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise BenchError(log.read().decode(errors="replace"))
            yield str(json.loads(line)["address"]), process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def tool(name: str, *words: str) -> list[str] | None:
    """Return a command prefix with a tool that is installed here and works, or None."""
    path = shutil.which(name)
    if path is None:
        return None
    prefix = [path, *words]
    try:
        output([*prefix, program("nothing")])
    except BenchError:
        return None
    return prefix


def output(command: Sequence[str]) -> str:
    """Return what a command prints. Raises: BenchError, if it fails."""
    done = subprocess.run(
        command, env=_ENVIRONMENT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout
