"""Every fixture runs by single steps, and by the native engines, as it does by itself.

A step over a block takes some 35 microseconds, so many cases take minutes, and are no part of the everyday run.
"""

from functools import cache
from pathlib import Path

import pytest

from tests import running
from tests.conformance.cases import CASES, Case
from tests.conformance.modes import NATIVE, Mode, _local
from tests.conformance.test_matrix import Behaviour, behaviour

ENGINES = {
    engine: Mode(engine, True, _local("ptserver", "run", f"--engine={engine}"))
    for engine in ("auto", "native", "step")
}
#: What takes hours by single steps.
NOT_BY_STEPS = {
    "panics-overflow": "fills a stack of a gigabyte by some ten million calls",
    "bigio": "copies and hashes 200 MB",
}
_PATIENCE_SECONDS = 10_000.0
#: What is run every day: engines that execute programs right away.
EVERYDAY = {"auto": ("hello", "exit3", "pipes"), "native": ("hello", "exit3")}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    @cache
    def run(name: str) -> Behaviour:
        case = next(case for case in CASES if case.name == name)
        return behaviour(case, NATIVE, tmp_path_factory.mktemp("native"))

    return run


def _rows() -> list[object]:
    rows: list[object] = []
    for engine in ENGINES:
        for case in CASES:
            if case.remote_only or (engine == "step" and case.name in NOT_BY_STEPS):
                continue
            marks = [] if case.name in EVERYDAY.get(engine, ()) else [pytest.mark.slow]
            rows.append(pytest.param(case, engine, id=f"{engine}-{case.name}", marks=marks))
    return rows


@pytest.mark.timeout(10_800)
@pytest.mark.parametrize(("case", "engine"), _rows())
def test_it_behaves_as_it_does_by_itself(  # type: ignore[no-untyped-def]
    case: Case, engine: str, native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = native(case.name)
    if engine == "step":
        monkeypatch.setattr(running, "PATIENCE_SECONDS", _PATIENCE_SECONDS)
    assert behaviour(case, ENGINES[engine], tmp_path) == expected
