"""`--engine=emulate` from the command line."""

import pytest

from tests.gofixtures import build
from tests.process.commands import ptserver, refusal


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_a_program_runs_on_an_emulated_processor(arch: str) -> None:
    status, out, err = ptserver("run", "--engine=emulate", build("hello", arch=arch), "a", "b")
    assert (status, out, err) == (0, "hello, world\narg 1: a\narg 2: b\n", "")


def test_its_exit_status_is_the_program_s() -> None:
    assert ptserver("run", "--engine=emulate", build("exit3", arch="arm64"))[0] == 3


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("--seed", "1"), 64, "--seed belongs to --engine=emulate"),
        (("--engine=emulate", "--server", "127.0.0.1:1"), 126, "cannot have a server at an address yet"),
        (("--engine=emulate", "--trace"), 126, "cannot be traced yet"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...], status: int, line: str) -> None:
    actual, message = refusal("run", *words, build("hello"))
    assert actual == status
    assert line in message
