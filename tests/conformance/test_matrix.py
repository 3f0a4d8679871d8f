"""Every case in every mode ends as it does natively: status or signal, output, and the files that it leaves."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.cases import CASES, Case
from tests.conformance.modes import MODES, NATIVE, Mode, base_environment
from tests.leftovers import none_left
from tests.running import started


@dataclass(frozen=True)
class Behaviour:
    """What is compared."""

    status: int
    stdout: list[str]
    stderr: list[str]
    files: list[str]


def files_in(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        what = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
        if stat.S_ISREG(info.st_mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        yield f"{path.relative_to(folder)} {stat.filemode(info.st_mode)} {what}"


def behaviour(case: Case, mode: Mode, folder: Path) -> Behaviour:
    work = folder / "work"
    work.mkdir(parents=True)
    program = case.program(mode.stub)
    env = base_environment() | case.env
    with none_left(), mode.start(work, env, folder) as place:
        command = [*place.prefix, program, *case.args]
        with started(
            command, program, env=place.env, cwd=place.cwd, terminal=case.terminal, popen=place.popen
        ) as running:
            if case.stdin:
                running.send(case.stdin)
            if case.drive is not None:
                case.drive(running)
            ended = running.finish(mode.seconds)
    here = re.compile(re.escape(os.fsencode(folder)))
    name = re.compile(rb"^host: " + re.escape(place.hostname.encode()), re.MULTILINE)

    def comparable(output: bytes) -> list[str]:
        if len(output) > 1 << 16:
            return [f"{len(output)} bytes {hashlib.sha256(output).hexdigest()}"]
        output = name.sub(b"host: NAME", case.normalise(output))
        return here.sub(b"FOLDER", output).decode(errors="backslashreplace").splitlines()

    return Behaviour(ended.status, comparable(ended.stdout), comparable(ended.stderr), [*files_in(work)])


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    @cache
    def run(case_name: str) -> Behaviour:
        case = next(case for case in CASES if case.name == case_name)
        return behaviour(case, NATIVE, tmp_path_factory.mktemp("native"))

    return run


#: Where heavy cases belong to the everyday run: one mode of each kind.
MODES_FOR_HEAVY = {"pass-through", "proceeding", "tcp"}


#: More of the same.
SLOW_CASES = frozenset(f"ahead-{seed}" for seed in range(3, 25))


def row(case: Case, mode: Mode):  # type: ignore[no-untyped-def]
    slow = case.heavy and mode.name not in MODES_FOR_HEAVY
    slow = slow or case.name in SLOW_CASES or (mode.everyday is not None and case.name not in mode.everyday)
    marks = [pytest.mark.slow] if slow else []
    if mode.seconds is not None:
        marks.append(pytest.mark.timeout(mode.seconds + 120))
    return pytest.param(case, mode, id=f"{mode.name}-{case.name}", marks=marks)


MATRIX = [
    row(case, mode)
    for case in CASES
    for mode in MODES
    if (not case.remote_only if mode.local else not case.local_only)
    and (mode.cases is None or case.name in mode.cases)
    and case.name not in mode.without
]


@pytest.mark.parametrize(("case", "mode"), MATRIX)
def test_as_native(case: Case, mode: Mode, native, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    expected, actual = native(case.name), behaviour(case, mode, tmp_path)
    assert (actual.status, actual.stderr) == (expected.status, expected.stderr)
    assert actual.stdout == expected.stdout
    assert actual.files == expected.files


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_natively_nothing_fails(case: Case, native) -> None:  # type: ignore[no-untyped-def]
    """The yardstick itself is straight: no fixture found something wrong, and each said something."""
    result = native(case.name)
    assert not [line for line in result.stdout + result.stderr if "FAILED" in line]
    assert result.stdout or result.stderr
