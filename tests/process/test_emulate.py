"""Whole programs on the emulator: Go's runtime under stress, repeatable runs, servers, other toolchains, refusals."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ptserver.emulated.host import run_emulated
from ptserver.servers import load
from stepping.emulation.loader import LoadError
from tests.cfixtures import build_c
from tests.conformance.modes import base_environment
from tests.gofixtures import ROOT, build, environment, goroot, toolchain

ARCHES = ("amd64", "arm64")
QEMU = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}
EMULATED = (sys.executable, "-m", "ptserver.emulated.host")

every_arch = pytest.mark.parametrize("arch", ARCHES)


def run(
    *command: str | Path, cwd: Path | None = None, seconds: int = 120, lines: str | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env=base_environment(),
        cwd=cwd,
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def native_command(arch: str) -> tuple[str, ...]:
    """What runs a program for *arch* without us: nothing at all, or qemu-user."""
    if arch == "amd64":
        return ()
    if shutil.which(QEMU[arch]) is None:
        pytest.skip(f"{QEMU[arch]} is not installed (package qemu-user)")
    return (QEMU[arch],)


@every_arch
def test_the_runtime_works_as_it_does_elsewhere(arch: str) -> None:
    program = build("emu_runtime", arch=arch)
    expected = run(*native_command(arch), program)
    done = run(*EMULATED, program)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, "")


@every_arch
def test_messages_carry_descriptors_and_addresses(arch: str) -> None:
    expected = run(build("emu_messages"))
    done = run(*EMULATED, build("emu_messages", arch=arch))
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, "")
    assert "FAILED" not in done.stdout


@pytest.mark.goversions
@every_arch
@pytest.mark.parametrize("go", ["1.21", "1.24"])
def test_older_runtimes_work(arch: str, go: str) -> None:
    expected = run(build("emu_runtime")).stdout
    done = run(*EMULATED, build("emu_runtime", arch=arch, go=go))
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@every_arch
def test_computing_gives_the_same_results(arch: str) -> None:
    expected = run(*native_command(arch), build("emu_cpu", arch=arch)).stdout
    assert run(*EMULATED, build("emu_cpu", arch=arch)).stdout == expected


@pytest.mark.parametrize(
    ("arch", "flag"), [("amd64", "-ldflags=-s -w"), ("arm64", "-ldflags=-s -w"), ("amd64", "-buildmode=pie")]
)
def test_other_ways_to_build_work(arch: str, flag: str) -> None:
    done = run(*EMULATED, build("hello", arch=arch, flags=(flag,)), "x")
    assert (done.returncode, done.stdout) == (0, "hello, world\narg 1: x\n")


def test_a_dynamically_linked_program_works() -> None:
    assert run(*EMULATED, "/bin/echo", "a", "b").stdout == "a b\n"


@every_arch
def test_a_hello_takes_little_memory(arch: str) -> None:
    program = build("hello", arch=arch)
    pid = os.posix_spawn(EMULATED[0], [*EMULATED, program], base_environment())
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    assert usage.ru_maxrss << 10 < 250 << 20


@every_arch
def test_a_panic_shows_the_address_that_was_touched(arch: str) -> None:
    program = build("panics", arch=arch)
    expected = run(*native_command(arch), program, "nil")
    done = run(*EMULATED, program, "nil")
    line = re.compile(r"\[signal .*")
    assert done.returncode == 2
    assert line.findall(done.stderr) == line.findall(expected.stderr) != []


@every_arch
def test_a_program_dies_of_the_signal_that_it_sends_itself(arch: str) -> None:
    done = run(*EMULATED, build("sigkill", arch=arch), str(int(signal.SIGTERM)))
    assert done.returncode == -signal.SIGTERM


def test_an_instruction_that_is_not_known_is_named(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text('int main(void) { __asm__("vaddps %ymm0, %ymm1, %ymm2"); return 0; }')
    subprocess.run(["gcc", "-o", tmp_path / "avx", tmp_path / "main.c"], check=True)
    done = run("ptserver", "run", "--engine=emulate", tmp_path / "avx")
    assert done.returncode == -signal.SIGILL
    assert re.fullmatch(
        r"ptserver: the emulator does not know the instruction at 0x[0-9a-f]+ in main: c5 f4 58 d0 .*\n",
        done.stderr,
    )


def test_signals_that_are_blocked_wait_for_whoever_takes_them() -> None:
    program = build_c("held_signals_c")
    expected, done = run(program), run(*EMULATED, program)
    assert expected.returncode == -signal.SIGUSR2
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGUSR2, expected.stdout, "")


def test_it_ignores_what_whoever_starts_it_ignores() -> None:
    ignoring = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    done = run(*ignoring, *EMULATED, "/bin/sh", "-c", "kill -HUP $$; echo alive")
    assert (done.returncode, done.stdout) == (0, "alive\n")


@every_arch
def test_a_server_answers(arch: str, capfd: pytest.CaptureFixture[str]) -> None:
    program = build("hello", arch=arch)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)  # Go raises its own, which is this process's
    try:
        status = run_emulated(str(program), [b"hello"], [], server=load("tracelogger")())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert status == 0
    written = capfd.readouterr()
    assert written.out == "hello, world\n"
    assert "write" in written.err


@every_arch
@pytest.mark.parametrize(
    ("server", "word", "expected"),
    [
        ("fake_hosts", "hosts", r'"127.0.0.1 localhost\n192.0.2.7 db.example db\n" <nil>'),
        ("read_only", "write", "read-only file system"),
        ("fixed_clock", "time", "1000000000"),
        ("fixed_clock", "hostname", "fixed <nil>"),
    ],
)
def test_servers_change_what_a_program_sees(
    arch: str, server: str, word: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "old").touch()
    program = build("example_servers", arch=arch)
    done = run(sys.executable, "-m", "tests.process.emulate_served", server, program, tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    facts = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert facts[word] == expected
    assert facts["slept"] == "true"


def test_a_program_whose_dynamic_linker_is_missing_is_refused() -> None:
    program = build("hello", arch="arm64", flags=("-buildmode=pie",))
    if Path("/lib/ld-linux-aarch64.so.1").exists():
        pytest.skip("there is a dynamic linker for arm64 here")
    with pytest.raises(LoadError, match="build the program with CGO_ENABLED=0"):
        run_emulated(str(program), [b"hello"], [])


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    done = run(*EMULATED, tmp_path / "text")
    assert done.returncode == 1
    assert "not an ELF file" in done.stderr


#: Tests that skip themselves on one processor, which is what an emulated program sees.
ONE_PROCESSOR = {"TestLongAdjustTimers"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "package",
    "sort strings bytes sync math/big encoding/json crypto/sha256 time os".split(),
)
def test_packages_of_the_standard_library_pass_on_arm64(package: str, tmp_path: Path) -> None:
    program = tmp_path / f"{Path(package).name}.test"
    folder = goroot() / "src" / package
    subprocess.run(
        [toolchain(), "test", "-c", "-o", program, package], cwd=folder, env=environment("arm64"), check=True
    )
    arguments = ["-test.short", "-test.v"]
    done = run(*EMULATED, program, *arguments, cwd=folder, seconds=3500)
    results = results_of(done.stdout)
    assert done.returncode == 0, done.stdout
    assert set(results.values()) <= {"PASS", "SKIP"}
    expected = results_of(run(*native_command("arm64"), program, *arguments, cwd=folder, seconds=3500).stdout)
    # qemu-user cannot execute what some tests start.
    passed = {name for name, result in expected.items() if result == "PASS"}
    assert passed - ONE_PROCESSOR <= {name for name, result in results.items() if result == "PASS"}


def results_of(output: str) -> dict[str, str]:
    """What became of each test; those that run in parallel end in any order."""
    return {
        name: result for result, name in re.findall(r"^--- (PASS|FAIL|SKIP): (\S+)", output, re.MULTILINE)
    }


@every_arch
def test_it_works_where_its_machine_code_does_not_fit(
    arch: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stepping.emulator.find_switch", lambda _function: None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert run_emulated(str(build("hello", arch=arch)), [b"hello"], []) == 0
        assert run_emulated(str(build("hello", arch=arch)), [b"hello"], [], seed=1) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert capfd.readouterr().out == "hello, world\n" * 2
