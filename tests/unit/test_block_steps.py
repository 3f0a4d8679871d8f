"""What a thread may execute at once where it is stepped by blocks."""

import pytest

from stepping.block_steps import BlockSteps, Run
from stepping.blocks import Decoder
from stepping.decoded_code import DecodedCode

CODE_AT = 0x401000
#: A branch to behind the next three instructions, and those.
BRANCH = "7403 90 90 90"


def run_of(code: str, at: int = 0, *, read: int = 4096) -> Run | None:
    raw = bytes.fromhex(code)
    code_read = DecodedCode(Decoder("amd64"), lambda pc, size: raw[pc - CODE_AT :][: min(size, read)])
    found = BlockSteps(code_read, lambda tid: 0).run_at(CODE_AT + at)
    return found and Run(
        {exit_at - CODE_AT: count for exit_at, count in found.exits.items()}, found.is_return
    )


@pytest.mark.parametrize(
    ("code", "at", "expected"),
    [
        ("90 90 90 c3", 0, Run({3: 3})),  # up to the return
        ("90 90 90 c3", 3, Run({}, is_return=True)),
        ("c20800", 0, Run({}, is_return=True)),
        ("cb", 0, Run({})),  # a far return, by a single step
        ("90 90 ffe0", 2, Run({})),  # jmp rax
        ("90 90 0f05 90", 0, Run({2: 2})),  # up to the syscall
        ("90 0f05", 0, Run({1: 1})),
        ("0f05", 0, None),
        ("cc", 0, None),
        ("", 0, None),
        ("90" * 400 + "c3", 0, Run({128: 128})),  # long ones are cut
        ("eb02 9090 90c3", 0, Run({5: 2})),  # a jump is followed
        ("90 e802000000 0f05 90c3", 0, Run({9: 3})),  # a call, too
    ],
)
def test_a_run_goes_on_where_there_is_one_way(code: str, at: int, expected: Run | None) -> None:
    assert run_of(code, at) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("90 7410 90 c3", Run({0x13: 2, 4: 3})),  # je, ret
        ("90 7500 c3", Run({3: 2})),  # a branch to where it leads anyway
        (BRANCH + "c3", Run({5: 1})),  # both ways lead there; by the quick one, one instruction is executed
        ("7440 7440 7440 7440 c3", Run({0x42: 1, 0x44: 2, 0x46: 3, 6: 3})),  # four exits at most
        ("7440 7440 743e 743c 90c3", Run({0x42: 1, 0x44: 2, 9: 5})),  # to the same place
    ],
)
def test_branches_lead_out_of_a_run_if_not_into_it_further_on(code: str, expected: Run) -> None:
    assert run_of(code) == expected


@pytest.mark.parametrize(
    ("code", "at", "expected"),
    [
        ("90 90 ebfc", 0, Run({0: 3})),  # a loop that is the run
        ("90 90 75fc c3", 0, Run({0: 3, 4: 3})),
        ("ebfe", 0, Run({0: 1})),
        ("90 90 ebfd", 0, Run({2: 2})),  # one that begins further on is entered at its jump
        ("90 90 ebfd", 2, Run({2: 2})),
        ("90 90 75fd c3", 0, Run({2: 2})),
        ("90 90 75fd c3", 2, Run({1: 1, 4: 1})),
        ("e8fbffffff", 0, Run({0: 1})),  # calls itself
        ("e805000000 e800000000 c3", 0, Run({10: 1})),
    ],
)
def test_nothing_can_be_executed_twice_in_a_run(code: str, at: int, expected: Run) -> None:
    assert run_of(code, at) == expected


def test_what_cannot_be_read_is_not_in_a_run() -> None:
    assert run_of("90 90 90 90", 0, read=2) == Run({4: 4})
    assert run_of("90 90", 0) == Run({2: 2})
