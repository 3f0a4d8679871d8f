"""Every executor keeps the contract of `stepping.executor`."""

from collections.abc import Callable

import pytest

from stepping.emulate import EmulateExecutor
from stepping.native import NativeExecutor
from stepping.singlestep import StepExecutor
from tests.contract.executors import CHECKS, REAL_CHECKS, Bench, Make, bench

#: By name: how to make one, and whether it runs the thread itself (makes syscalls, takes signals).
EXECUTORS: dict[str, tuple[Make, bool]] = {
    "native": (lambda group, breakpoints, memory: NativeExecutor(group, breakpoints), True),
    "emulate": (lambda group, breakpoints, memory: EmulateExecutor(breakpoints, memory), False),
    "step": (lambda group, breakpoints, memory: StepExecutor(group, breakpoints), True),
}


def name_of(check: Callable[[Bench], None]) -> str:
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("name", EXECUTORS)
def test_contract(name: str, check: Callable[[Bench], None]) -> None:
    make, is_real = EXECUTORS[name]
    with bench(make, is_real=is_real) as one:
        check(one)


@pytest.mark.parametrize("check", REAL_CHECKS, ids=name_of)
@pytest.mark.parametrize("name", [name for name, (_, is_real) in EXECUTORS.items() if is_real])
def test_contract_of_those_that_run_the_thread(name: str, check: Callable[[Bench], None]) -> None:
    make, is_real = EXECUTORS[name]
    with bench(make, is_real=is_real) as one:
        check(one)
