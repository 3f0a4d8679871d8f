"""Every fixture runs on the emulator as it does natively, built for this machine's architecture and for the other."""

import signal
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.cases import CASES, Case
from tests.conformance.modes import NATIVE, Mode, _local
from tests.conformance.test_matrix import Behaviour, behaviour
from tests.gofixtures import build
from tests.running import Running

EMULATED = Mode("emulated", True, _local(sys.executable, "-m", "ptserver.emulated.host"))

#: What is not built for arm64, or rightly does something else there.
ONLY_AMD64 = {
    "c-static": "there is no C compiler for arm64",
    "c-static-pie": "there is no C compiler for arm64",
    "c-dynamic": "there is no C compiler for arm64",
    "dynamic-program": "it is this machine's",
    "environment": "prints the machine that uname names",
    "replaced": "there is no C compiler for arm64",
}
ONLY_ARM64 = {"bigio": "hashes 200 MB, which takes a minute without instructions for that"}


def kill_emulator(running: Running) -> None:
    """What `kill_program` does: the emulator is the program's process."""
    running.expect("waiting\n")
    running.signal(signal.SIGKILL)


def emulated(case: Case, arch: str) -> Case:
    program = case.program
    if arch != "amd64":
        name = program(False).name
        program = lambda stub: build(name, arch=arch)  # noqa: E731
    drive = kill_emulator if case.name == "killed" else case.drive
    return replace(case, program=program, drive=drive)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    @cache
    def run(name: str) -> Behaviour:
        case = next(case for case in CASES if case.name == name)
        return behaviour(case, NATIVE, tmp_path_factory.mktemp("native"))

    return run


def _cases() -> list[object]:
    made: list[object] = []
    for arch in ("amd64", "arm64"):
        for case in CASES:
            if case.name in (ONLY_AMD64 if arch == "arm64" else ONLY_ARM64):
                continue
            marks = [pytest.mark.slow] if case.heavy else []
            made.append(pytest.param(case, arch, id=f"{case.name}-{arch}", marks=marks))
    return made


@pytest.mark.parametrize(("case", "arch"), _cases())
def test_it_behaves_as_it_does_natively(case: Case, arch: str, native, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert behaviour(emulated(case, arch), EMULATED, tmp_path) == native(case.name)
