"""The same seed gives the same trace, byte for byte."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cfixtures import build_c
from tests.conformance.cases import CASES, Case, c, go
from tests.conformance.modes import base_environment
from tests.conformance.test_matrix import SLOW_CASES
from tests.gofixtures import build
from tests.process.test_emulate_fixtures import ONLY_AMD64

#: Programs that are no cases of the conformance suite.
OTHERS = (
    Case("runtime", go("emu_runtime")),
    Case("computing", go("emu_cpu")),
    Case("messages", go("emu_messages")),
    Case("work", go("goroutine_work")),
    Case("held-signals-c", c("held_signals_c", "-static")),
)
#: Cases in which somebody outside acts, by input or signals while the program runs, are not in the seed's hand.
REPEATABLE = [
    case
    for case in (*CASES, *OTHERS)
    if case.drive is None and not case.terminal and case.name not in SLOW_CASES
]


def seeded(
    seed: int,
    program: Path,
    *arguments: str,
    trace: Path,
    work: Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> tuple[int, bytes, bytes]:
    """Run on the emulator in a new folder *work*; return the exit status, what was written, and what was traced.

    It reads and writes files: how fast somebody else reads a pipe is not in the seed's hand.
    """
    work.mkdir()
    emulate = (sys.executable, "-m", "tests.process.emulate_trace")
    variables = {"PROGRAM_HOME": "/", **{f"PROGRAM_{name}": value for name, value in (env or {}).items()}}
    (work.parent / "input").write_bytes(stdin)
    with (work.parent / "input").open("rb") as given, (work.parent / "output").open("w+b") as output:
        done = subprocess.run(
            [*emulate, trace, str(seed), program, *arguments],
            env=base_environment() | variables,
            cwd=work,
            stdin=given,
            stdout=output,
            stderr=output,
            check=False,
            timeout=600,
        )
        output.seek(0)
        written = output.read()
    shutil.rmtree(work)
    return done.returncode, written, trace.read_bytes()


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(lambda: build("emu_runtime", arch="arm64"), id="goroutines"),
        pytest.param(lambda: build_c("processes_c", flags=("-static",)), id="children"),
        pytest.param(lambda: build("fifo"), id="waiting"),
    ],
)
def test_the_same_seed_gives_the_same_trace(program, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    trace, work = tmp_path / "trace", tmp_path / "work"
    first = seeded(7, program(), trace=trace, work=work)
    assert first[0] == 0
    assert len(first[2].splitlines()) > 700
    assert seeded(7, program(), trace=trace, work=work) == first


def test_another_seed_gives_another_trace(tmp_path: Path) -> None:
    trace, work = tmp_path / "trace", tmp_path / "work"
    assert seeded(7, build("hello"), trace=trace, work=work) != seeded(
        8, build("hello"), trace=trace, work=work
    )


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("case", "arch"),
    [
        pytest.param(case, arch, id=f"{case.name}-{arch}")
        for case in REPEATABLE
        for arch in ("amd64", "arm64")
        if arch == "amd64" or not (case.name in ONLY_AMD64 or case.name.endswith("-c"))
    ],
)
def test_the_same_seed_gives_the_same_trace_at_length(
    case: Case, arch: str, seed: int, tmp_path: Path
) -> None:
    program = case.program(False)
    if arch != "amd64":
        program = build(program.name, arch=arch)
    trace, work = tmp_path / "trace", tmp_path / "work"
    runs = [
        seeded(seed, program, *case.args, trace=trace, work=work, stdin=case.stdin, env=case.env)
        for _ in range(3)
    ]
    assert len(runs[0][2].splitlines()) > 30
    assert runs[1:] == runs[:2]
