"""Every fixture runs on the emulator as it does natively, built for this machine's architecture and for the other."""

import signal
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.cases import CASES, Case
from tests.conformance.modes import MODES, NATIVE, Mode, _local
from tests.conformance.test_matrix import SLOW_CASES, Behaviour, behaviour
from tests.gofixtures import build
from tests.running import Running

EMULATED = Mode("emulated", True, _local(sys.executable, "-m", "ptserver.emulated.host"))
EMULATED_AWAY = next(mode for mode in MODES if mode.name == "emulated-tcp")

#: What is not built for arm64, or rightly does something else there.
ONLY_AMD64 = {
    "c-static": "there is no C compiler for arm64",
    "c-static-pie": "there is no C compiler for arm64",
    "c-dynamic": "there is no C compiler for arm64",
    "dynamic-program": "it is this machine's",
    "processes-c-static": "there is no C compiler for arm64",
    "processes-c-dynamic": "there is no C compiler for arm64",
    "signals-c": "there is no C compiler for arm64",
    "replaced": "there is no C compiler for arm64",
}
#: What both architectures do each day; of the others each does every second, and the rest in the long run.
EVERYDAY_ON_BOTH = frozenset(
    "goroutines timers events notify panics-nil panics-overflow kills-itself-SIGSEGV terminal fileops children "
    "network sockets filefeatures mappings".split()
)
ONLY_ARM64 = {"bigio": "hashes 200 MB, which takes a minute without instructions for that"}
NOT_EMULATED = {"numbers-c": "an emulated program's priorities and scheduling are ENOSYS"}


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

    def normalise(output: bytes) -> bytes:
        return case.normalise(output).replace(b"aarch64", b"x86_64")  # uname's machine is the program's

    return replace(case, program=program, drive=drive, normalise=normalise)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    @cache
    def run(name: str) -> Behaviour:
        case = next(case for case in CASES if case.name == name)
        return behaviour(case, NATIVE, tmp_path_factory.mktemp("native"))

    return run


def _is_everyday(case: Case, number: int, arch: str) -> bool:
    if case.heavy or case.name in SLOW_CASES:
        return False
    if case.name in EVERYDAY_ON_BOTH or case.name in ONLY_AMD64:
        return True
    return arch == ("amd64", "arm64")[number % 2]


def _cases() -> list[object]:
    made: list[object] = []
    for arch in ("amd64", "arm64"):
        for number, case in enumerate(CASES):
            if case.name not in NOT_EMULATED | (ONLY_AMD64 if arch == "arm64" else ONLY_ARM64):
                marks = [] if _is_everyday(case, number, arch) else [pytest.mark.slow]
                made.append(pytest.param(case, arch, id=f"{case.name}-{arch}", marks=marks))
    return made


@pytest.mark.parametrize(("case", "arch"), _cases())
def test_it_behaves_as_it_does_natively(case: Case, arch: str, native, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert behaviour(emulated(case, arch), EMULATED, tmp_path) == native(case.name)


@pytest.mark.slow
@pytest.mark.timeout(1020)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name)
        for case in CASES
        if case.name not in ONLY_AMD64 and case.name not in EMULATED_AWAY.without
    ],
)
def test_programs_for_arm64_do_with_a_server_at_an_address(case: Case, native, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Those for amd64 are in the matrix of all ways to be served."""
    assert behaviour(emulated(case, "arm64"), EMULATED_AWAY, tmp_path) == native(case.name)
