"""`--engine` from the command line: the same program on each engine does the same."""

import os
import signal
from pathlib import Path

import pytest

from tests.cfixtures import build_c
from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver, refusal
from tests.running import started


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_a_program_runs_on_an_emulated_processor(arch: str) -> None:
    status, out, err = ptserver("run", "--engine=emulate", build("hello", arch=arch), "a", "b")
    assert (status, out, err) == (0, "hello, world\narg 1: a\narg 2: b\n", "")


def test_its_exit_status_is_the_program_s() -> None:
    assert ptserver("run", "--engine=emulate", build("exit3", arch="arm64"))[0] == 3


ENGINES = ["auto", "native", "step", "emulate"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_small_program_on_each_engine(engine: str) -> None:
    """It handles a signal, runs two threads that count together, and exits with a status of its own."""
    program = build_c("tiny_c", flags=("-nostdlib", "-static", "-no-pie"))
    assert ptserver("run", f"--engine={engine}", program) == (7, "handled\ncounted\n", "")


@pytest.mark.parametrize("engine", ["native", "step", "emulate"])
def test_calls_with_a_signal_mask_of_their_own_are_interrupted(engine: str) -> None:
    program = build_c("suspend_c", flags=("-static",))
    assert ptserver("run", f"--engine={engine}", program) == (0, "1 1 1\n1 1 1\n", "")


@pytest.mark.parametrize("engine", ["native", "step"])
def test_a_trap_signal_that_another_process_sends_is_the_program_s(engine: str, tmp_path: Path) -> None:
    program = build_c("trapped_c", flags=("-static",))
    command = ["ptserver", "run", f"--engine={engine}", program]
    with none_left(), started(command, program, env=base_environment(), cwd=tmp_path) as running:
        running.expect("ready\n")
        for number in range(1, 6):
            os.kill(running.pid_of_program(), signal.SIGTRAP)
            running.expect(f"got {number}\n")
        assert running.finish().status == 0


@pytest.mark.parametrize("engine", ["auto", "native"])
@pytest.mark.parametrize("name", ["hello", "goroutines"])
def test_go_programs(engine: str, name: str) -> None:
    assert ptserver("run", f"--engine={engine}", build(name)) == ptserver("run", build(name))


def test_a_program_of_another_architecture_is_emulated_if_it_may() -> None:
    program = build("hello", arch="arm64")
    assert ptserver("run", program, "a") == (0, "hello, world\narg 1: a\n", "")
    status, line = refusal("run", "--engine=native", program)
    assert (status, line.partition("; ")[2]) == (126, "--engine=emulate runs it")
    assert refusal("run", "--engine=step", program)[0] == 126


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("--seed", "1"), 64, "--seed belongs to --engine=emulate"),
        (
            ("--engine=emulate", "--trace", "--source=ring", "--server", "[::1]:1"),
            69,
            "is for programs that run",
        ),
        (("--engine=emulate", "--trace", "--source=ring"), 69, "is for programs that run natively"),
        (("--engine=step", "--trace"), 64, "--engine=step goes with none of"),
        (("--engine=step", "--server", "127.0.0.1:1"), 64, "--engine=step goes with none of"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...], status: int, line: str) -> None:
    actual, message = refusal("run", *words, build("hello"))
    assert actual == status
    assert line in message
