"""What a thread may execute at once where it is stepped by blocks."""

import pytest

from stepping.block_steps import BlockSteps, Run
from stepping.blocks import Decoder

CODE_AT = 0x401000


def run_of(code: str, at: int = 0, *, read: int = 4096) -> Run | None:
    raw = bytes.fromhex(code)
    steps = BlockSteps(
        Decoder("amd64"), lambda pc, size: raw[pc - CODE_AT :][: min(size, read)], lambda tid: 0
    )
    return steps.run_at(CODE_AT + at)


@pytest.mark.parametrize(
    ("code", "at", "expected"),
    [
        ("90 48ffc0 7502 90 c3", 0, Run(3, (CODE_AT + 8, CODE_AT + 6))),  # nop; inc rax; jne over one
        ("90 90 ebfc", 0, Run(3, (CODE_AT,))),  # a loop
        ("90 90 e8f9ffffff", 0, Run(3, (CODE_AT,))),  # call
        ("90 90 90 c3", 0, Run(3, (CODE_AT + 3,))),  # up to the return
        ("90 90 90 c3", 3, Run(1, ())),
        ("90 90 ffe0", 2, Run(1, ())),  # jmp rax
        ("90 90 0f05 90", 0, Run(2, (CODE_AT + 2,))),  # up to the syscall
        ("90 0f05", 0, Run(1, ())),
        ("0f05", 0, None),
        ("cc", 0, None),
        ("", 0, None),
        ("90" * 400 + "c3", 0, Run(242, (CODE_AT + 242,))),  # what else was read may be cut
    ],
)
def test_a_run_ends_where_execution_may_go_elsewhere(code: str, at: int, expected: Run | None) -> None:
    assert run_of(code, at) == expected


def test_what_cannot_be_read_is_not_in_a_run() -> None:
    assert run_of("90 90 90 90", 0, read=2) == Run(2, (CODE_AT + 2,))
