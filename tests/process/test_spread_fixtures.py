"""Every Go fixture behaves over three hosts as natively, while its threads go anywhere: again and again.

SPREAD_ROUNDS says how often, each time with other moves; docs/spread.md says how often it has been done.
"""

import os
from pathlib import Path

import pytest

from tests.conformance.cases import CASES, Case
from tests.conformance.modes import NATIVE, Mode, _local
from tests.conformance.test_matrix import Behaviour, behaviour

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges"),
]

_ROUNDS = int(os.environ.get("SPREAD_ROUNDS", "3"))
#: Programs of other languages are not spread.
_FOREIGN = ("c-", "numbers-c", "signals-c", "processes-c", "replaced", "dynamic-program")
_CASES = [case for case in CASES if not case.remote_only and not case.name.startswith(_FOREIGN)]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    known: dict[str, Behaviour] = {}

    def run(case: Case) -> Behaviour:
        if case.name not in known:
            known[case.name] = behaviour(case, NATIVE, tmp_path_factory.mktemp("native"))
        return known[case.name]

    return run


@pytest.mark.parametrize("seed", range(_ROUNDS))
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in _CASES])
def test_it_behaves_as_natively_wherever_its_threads_are(  # type: ignore[no-untyped-def]
    case: Case, seed: int, native, tmp_path: Path
) -> None:
    hosts = "agent,agent" if seed % 2 else "local,agent"
    straight = "none" if seed // 2 % 2 else "all"
    words = ("ptserver", "run", "--spread", hosts, "--straight", straight, "--place", f"random:{seed}")
    mode = Mode("spread", True, _local(*words, "--check-memory", "1"), seconds=300)
    assert behaviour(case, mode, tmp_path) == native(case)
