"""Remote variables of emulated programs, on both architectures, against the same programs with local ones."""

import re
import subprocess
from pathlib import Path

import pytest

from goabi.core import CoreFile
from tests.conformance.modes import base_environment, serving
from tests.gofixtures import ROOT, build
from tests.process.commands import ptserver
from tests.process.test_remote_memory import VARIABLES

KERNEL = ("--remote-var", "main.buffer", "--remote-var", "main.status")
SLOW = pytest.mark.slow


@pytest.mark.timeout(660)
@pytest.mark.parametrize(
    ("arch", "what", "variables"),
    [
        pytest.param("amd64", "mixed", VARIABLES, marks=SLOW),
        pytest.param("arm64", "mixed", VARIABLES, marks=SLOW),
        ("arm64", "kernel", KERNEL),
        pytest.param("amd64", "kernel", KERNEL, marks=SLOW),
        pytest.param("amd64", "vectors", KERNEL, marks=SLOW),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variables_of_go(arch: str, what: str, variables: tuple[str, ...]) -> None:
    natively = subprocess.run(
        [build("remote_counter"), what], capture_output=True, text=True, check=True, cwd="/"
    )
    program = build("remote_counter", arch=arch)
    run = ("run", "--engine=emulate", *variables, program, what)
    assert ptserver(*run, timeout=600) == (0, natively.stdout, "")  # 3 s of processor time at most


def test_what_is_logged(tmp_path: Path) -> None:
    program, log = build("remote_counter", arch="arm64"), tmp_path / "log"
    status, out, err = ptserver(
        "run", "--remote-var", "main.counter", "--remote-trace", str(log), program, "add", "1", "1"
    )
    assert (status, out, err) == (0, "1\n", "")
    lines = [line.partition("goroutine")[2].split(" ", 2)[2] for line in log.read_text().splitlines()]
    source = f"{ROOT}/fixtures/remote_counter/main.go"
    assert lines == [
        f"main.main.func1 {source}:49: get main.counter 8 = 0",
        f"main.main.func1 {source}:49: compare_exchange main.counter 8, 0 -> 1 = 0",
        f"main.main {source}:50: get main.counter 8 = 1",
    ]


@pytest.mark.parametrize(
    ("what", "variables"),
    [("add", ("main.counter",)), pytest.param("lock", ("main.lock", "main.total"), marks=SLOW)],
    ids=["add", "lock"],
)
def test_programs_of_three_kinds_share(what: str, variables: tuple[str, ...], tmp_path: Path) -> None:
    """One is executed natively, one emulated, one of another architecture."""
    amd64, arm64 = build("remote_counter"), build("remote_counter", arch="arm64")
    wanted = [word for name in variables for word in ("--remote-var", name)]
    env = base_environment()
    with serving("passthrough", "127.0.0.1:0", cwd=tmp_path, env=env, log=tmp_path / "log") as (address, _):

        def start(program: Path, *options: str) -> "subprocess.Popen[str]":
            command = ["ptserver", "run", *options, "--server", address, *wanted, program, what, "30", "2"]
            return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

        running = [start(amd64), start(amd64, "--engine=emulate"), start(arm64)]
        assert [process.wait(120) for process in running] == [0, 0, 0]
        sums = [process.communicate()[0] for process in running]
    assert max(map(int, sums)) == 3 * 2 * 30


def test_what_cannot_be_executed_leaves_a_core(tmp_path: Path) -> None:
    program = build("remote_unsupported")
    run = ("run", "--engine=emulate", "--remote-var", "main.area", program, "split")
    status, out, err = ptserver(*run, cwd=tmp_path)
    assert (status, out) == (71, "")
    (core,) = tmp_path.iterdir()
    line = re.fullmatch(
        r"ptserver: cannot do what the instruction at (0x\w+) \(f0 48 0f c1 08 .*\) does to remote memory: .* "
        r"in main\.add \(\S+/save_amd64\.s:13\); the program was ended as it was before it: inspect (\S+) .*\n",
        err,
    )
    assert line is not None, err
    assert line[2] == str(core)
    with CoreFile(core) as found:
        assert hex(next(iter(found.threads.values()))["rip"]) == line[1]
    status, out, _ = ptserver("goroutines", core)
    assert status == 0
    assert re.search(r"^ +1 +running +main\.add ", out, re.M)
