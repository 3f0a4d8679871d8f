"""Every fixture runs by single steps, and by the native engines, as it does by itself.

A step over a run of blocks takes some 35 microseconds, so those that compute much do a part of it by steps (their
variable PART), and are compared with a native run that does the same part. Most are no part of the everyday run.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tests import running
from tests.conformance.cases import CASES, LARGE_INPUT, Case
from tests.conformance.modes import NATIVE, Mode, _local
from tests.conformance.test_matrix import Behaviour, behaviour

ENGINES = {
    engine: Mode(engine, True, _local("ptserver", "run", f"--engine={engine}"))
    for engine in ("auto", "native", "step")
}
#: Of how many parts what takes hours by single steps does one.
PARTS = {
    "goroutines": 100,
    "tree": 50,
    "pipes": 50,
    "manyio": 40,
    "preempt": 60,
    "mappings": 100,
    "bigio": 1024,
}
#: With which variables fixtures run by steps; what is to happen in a given order gets more time between.
ENV_BY_STEPS = {name: {"PART": str(parts)} for name, parts in PARTS.items()} | {"timers": {"APART": "400ms"}}
STDIN_BY_STEPS = {"stdin": LARGE_INPUT[:100_000]}
_PATIENCE_SECONDS = 1_000.0
#: What is run every day: engines that execute programs right away.
EVERYDAY = {"auto": ("hello", "exit3", "pipes"), "native": ("hello", "exit3")}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    known: dict[tuple[str, bool], Behaviour] = {}

    def run(case: Case, by_steps: bool) -> Behaviour:
        key = case.name, by_steps
        if key not in known:
            known[key] = behaviour(case, NATIVE, tmp_path_factory.mktemp("native"))
        return known[key]

    return run


def _by_steps(case: Case) -> Case:
    env = {**case.env, **ENV_BY_STEPS.get(case.name, {})}
    return replace(case, env=env, stdin=STDIN_BY_STEPS.get(case.name, case.stdin))


def _rows() -> list[object]:
    rows: list[object] = []
    for engine in ENGINES:
        for case in CASES:
            if case.remote_only:
                continue
            marks = [] if case.name in EVERYDAY.get(engine, ()) else [pytest.mark.slow]
            wanted = _by_steps(case) if engine == "step" else case
            rows.append(pytest.param(wanted, engine, id=f"{engine}-{case.name}", marks=marks))
    return rows


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("case", "engine"), _rows())
def test_it_behaves_as_it_does_by_itself(  # type: ignore[no-untyped-def]
    case: Case, engine: str, native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = native(case, engine == "step")
    if engine == "step":
        monkeypatch.setattr(running, "PATIENCE_SECONDS", _PATIENCE_SECONDS)
    assert behaviour(case, ENGINES[engine], tmp_path) == expected
