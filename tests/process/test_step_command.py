"""`ptserver step`: breakpoints, steps, what is shown, and that programs are left as they were."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gofixtures import FIXTURES, build
from tests.process.commands import ptserver, refusal

ENGINES = [("native", "amd64"), ("emulate", "amd64"), ("auto", "arm64")]
every_engine = pytest.mark.parametrize(("engine", "arch"), ENGINES, ids=[" ".join(one) for one in ENGINES])


def step(program: Path, *commands: str, options: tuple[str, ...] = ()) -> list[str]:
    """Return what each of *commands* answered, the program's output included."""
    words = [word for command in commands for word in ("-c", command)]
    status, out, err = ptserver("step", *options, *words, program)
    assert status == 0, out + err
    answers = re.split(r"^\(ptserver\) .*\n", out, flags=re.MULTILINE)
    assert len(answers) == 1 + len(commands), out
    return answers[1:]


def line_of(fixture: str, text: str) -> int:
    lines = (FIXTURES / fixture / "main.go").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@every_engine
def test_breakpoints_and_lines(engine: str, arch: str) -> None:
    first = line_of("hello", "fmt.Println(")
    at, hit, following, over, end = step(
        build("hello", arch=arch),
        "break main.main",
        "c",
        "next",
        "next",
        "c",
        options=(f"--engine={engine}",),
    )
    assert "main.main" in at
    assert hit.startswith("breakpoint 1 at 0x")
    assert "goroutine 1, thread " in hit
    assert f"main.go:{first}, goroutine 1" in following
    assert "fmt.Println" in following
    assert "hello, world" in over
    assert f"main.go:{first + 1}, goroutine 1" in over
    assert end == "the program exited with 0\n"


@every_engine
def test_arguments_variables_and_stack(engine: str, arch: str) -> None:
    program = build("goabi_args", arch=arch)
    answers = step(
        program, "b main.take", "c", "args", "stack", "out", "goroutines", options=(f"--engine={engine}",)
    )
    arguments = answers[2].splitlines()
    assert arguments[:4] == ["flag = true", "small = -3", 'text = "text"', "place = main.point{X: 4, Y: 5}"]
    assert "list = [9, 10]" in arguments
    assert re.match(r"#0 +main.take\n.*main.go:\d+\n#1 +main.main\n", answers[3])
    assert "main.main" in answers[4]
    assert answers[5].startswith("* goroutine 1 [running] main.main ")


@every_engine
def test_stepping_into_and_out(engine: str, arch: str) -> None:
    program = build("goabi_args", arch=arch)
    call = line_of("goabi_args", "number, text := take(")
    answers = step(
        program, "b main.main", "c", f"b {call}", "c", "clear all", "step", "si", "block", "out", "c",
        options=(f"--engine={engine}",),
    )  # fmt: skip
    entered = answers[5]
    assert "errors.New" in entered or "main.take" in entered
    assert re.search(r"^=> 0x", answers[6], re.MULTILINE)
    assert answers[9].endswith("the program exited with 0\n")


@every_engine
def test_syscalls_and_memory(engine: str, arch: str) -> None:
    pointer = "rsi" if arch == "amd64" else "x1"
    answers = step(
        build("hello", arch=arch), "catch write", "c", f"x {pointer} 5", f"write {pointer} 4a", "si",
        "catch off", "c", options=(f"--engine={engine}",),
    )  # fmt: skip
    assert answers[1].startswith("about to call write(0x1, 0x")
    assert "68 65 6c 6c 6f" in answers[2]
    assert "hello" in answers[2]
    assert "Jello, world" in answers[4] + answers[6]


def test_registers_can_be_set() -> None:
    program = build("exit3")
    answers = step(program, "catch exit_group", "c", "regs", "c")
    assert "about to call exit_group(0x3)" in answers[1]
    assert re.search(r"rdi 0x0000000000000003", answers[2])
    assert answers[3] == "the program exited with 3\n"
    answers = step(program, "b os.runtime_beforeExit", "c", "p rip", "set rax 9", "p rax+1", "regs -v")
    assert answers[4] == "0xa\n"
    assert "xmm15" in answers[5]


def test_goroutines_go_on_in_other_threads() -> None:
    """A goroutine is followed while others run: its line is finished wherever it runs then."""
    program = build("goroutines")
    second = line_of("goroutines", '"mutex:"')
    answers = step(program, f"b main.go:{second}", "c", "next", "next", "clear all", "c")
    assert f"main.go:{second}, goroutine 1" in answers[1]
    assert "mutex: 64000" in answers[2]
    assert f"main.go:{second + 1}, goroutine 1" in answers[2]
    assert "atomic: 64000" in answers[3]
    assert answers[5].endswith("the program exited with 0\n")


def test_a_fault() -> None:
    status, out, err = ptserver("step", "-c", "c", "-c", "c", build("panics"), "nil")
    assert status == 0
    assert "signal SIGSEGV at 0x" in out
    assert "nil pointer dereference" in err
    assert out.endswith("the program exited with 2\n")


def test_seeds_repeat() -> None:
    words = (
        "step",
        "--engine=emulate",
        "--seed",
        "7",
        "-c",
        "b main.main",
        "-c",
        "c",
        "-c",
        "regs",
        build("hello"),
    )
    first, second = ptserver(*words)[1], ptserver(*words)[1]
    assert "rip" in first
    assert re.sub(r"thread \d+", "", first) == re.sub(r"thread \d+", "", second)


@pytest.fixture
def spinning() -> Iterator["subprocess.Popen[str]"]:
    child = subprocess.Popen(
        [build("ring_calls"), "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith("ready ")
    yield child
    child.kill()
    child.communicate()


def test_a_process_that_runs(spinning: "subprocess.Popen[str]") -> None:
    words = [word for one in ("threads", "goroutines", "b os.(*File).WriteAt") for word in ("-c", one)]
    # Not by `ptserver`, which waits until no process is left.
    command = ["ptserver", "step", "--pid", str(spinning.pid), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    out = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert f"thread {spinning.pid}" in out
    assert "goroutine 1 [" in out
    # It goes on without its breakpoint.
    assert spinning.stdin is not None
    assert spinning.stdout is not None
    spinning.stdin.write("work 3\n")
    spinning.stdin.flush()
    assert spinning.stdout.readline().startswith("done ")


def test_watchpoints() -> None:
    """All threads are watched, those included that are created later."""
    program = build("remote_counter")
    words = ["watch main.counter", "watch -r main.lock", "continue", "breakpoints", "clear 1", "continue"]
    status, out, err = ptserver(
        "step", *(word for one in words for word in ("-c", one)), program, "add", "2", "1"
    )
    assert (status, err) == (0, "")
    assert re.search(
        r"^watchpoint 1, main\.counter 0x0 -> 0x1, at 0x\w+ main\.main\.func1 .*goroutine", out, re.M
    )
    assert re.search(r"^1  main\.counter  writes of 8 bytes at 0x\w+  hits 1$", out, re.M)
    assert re.search(r"^2  main\.lock  reads and writes of 4 bytes at 0x\w+  hits 0$", out, re.M)
    assert out.endswith("2\nthe program exited with 0\n")
    status, out, _ = ptserver("step", "-c", "watch main.table", program, "add", "1", "1")
    assert status == 1
    assert "error: 96 bytes cannot be watched; at most 32 can" in out
    assert ptserver("step", "--engine=emulate", "-c", "watch main.lock", program, "add", "1", "1")[0] == 1


def test_attached_to_at_the_prompt(spinning: "subprocess.Popen[str]") -> None:
    command = ["ptserver", "attach", "--step", str(spinning.pid)]
    lines = "break os.(*File).WriteAt\nthreads\nregisters\nquit\n"
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(ptserver) quit" in done.stdout
    assert "rip 0x" in done.stdout
    assert spinning.stdin is not None
    assert spinning.stdout is not None
    spinning.stdin.write("work 3\n")
    spinning.stdin.flush()
    assert spinning.stdout.readline().startswith("done ")


def test_attach_does_one_thing() -> None:
    status, line = refusal("attach", "--step", "--once", "1")
    assert status == 64
    assert "--step goes with no other option" in line


def test_commands_on_standard_input() -> None:
    status, out, err = ptserver(
        "step", build("exit3"), stdin=b"help\nnonsense\nb main.main\nc\nb nosuch\nc\n"
    )
    assert (status, err) == (0, "exiting\n")
    assert "continue (c)" in out
    assert "error: no command 'nonsense'" in out
    assert "error: the program has no function nosuch" in out
    assert out.endswith("the program exited with 3\n")


def test_a_program_is_ended_with_its_debugger() -> None:
    status, out, _ = ptserver("step", "-c", "threads", build("goabi_spin"), "1")
    assert status == 0
    pid = int(re.findall(r"thread (\d+)", out)[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


IMPOSSIBLE = [
    ("b", "where?"),
    ("b main.go:1", "no code belongs to main.go:1"),
    ("b *zz", "is no address"),
    ("catch nosuch", "there is no syscall nosuch"),
    ("x 8", "no memory at 0x8"),
    ("x nosuch", "no function nosuch"),
    ("clear 7", "no breakpoint 7"),
    ("thread 1", "no thread 1"),
    ("set rzz 1", "no register rzz"),
    ("write rsp zz", "in base 16"),
    ("goroutine 99", "has no thread now"),
    ("args", "function's beginning"),
    ("print nosuch.variable", "no function nosuch.variable"),
    ("st", "may be"),
    ("out", "it is not known where this function returns to"),
]


def test_what_cannot_be_done() -> None:
    commands = "".join(f"{command}\n" for command, _ in IMPOSSIBLE)
    status, out, err = ptserver("step", build("hello"), stdin=b"si 9\n" + commands.encode())
    assert (status, err) == (0, "")
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(IMPOSSIBLE)
    for line, (_, said) in zip(errors, IMPOSSIBLE, strict=True):
        assert said in line


def test_an_error_ends_a_script() -> None:
    status, out, err = ptserver("step", "-c", "clear 7", "-c", "c", build("hello"))
    assert (status, err) == (1, "")
    assert out.endswith("error: there is no breakpoint 7\n")


def test_bad_command_lines() -> None:
    assert refusal("step", "--pid", "1", "program")[0] == 64
    assert refusal("step", "--engine=emulate", "--pid", "1")[0] == 64
    assert refusal("step", "--gdb", "localhost:0", "-c", "si", "program")[0] == 64
    assert refusal("step", "./nosuch")[0] == 127
    assert refusal("step", "--pid", "4194000")[0] == 66
    assert refusal("step", "--engine=native", build("hello", arch="arm64"))[0] == 126
    assert refusal("step", "--seed=1", "--engine=native", build("hello"))[0] == 126
