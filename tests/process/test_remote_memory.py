"""Remote variables of programs that run natively otherwise, against the same programs with local ones."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from goabi.elf import ElfFile
from tests.cfixtures import build_c
from tests.conformance.modes import base_environment
from tests.conformance.modes import serving as served
from tests.gofixtures import build
from tests.process.commands import ptserver, refusal

MIXED = ("counter", "buffer", "table", "flag", "untouched")
VARIABLES = [word for name in MIXED for word in ("--remote-var", f"main.{name}")]


def forms() -> Path:
    return build_c("remote_forms", flags=("-static", "-mno-red-zone"))


def range_of(path: Path, name: str, start: int, end: int) -> str:
    with ElfFile(path) as elf:
        symbol = elf.find_symbol(name)
        assert symbol is not None
        return f"{symbol.addr + start:x}-{symbol.addr + end:x}"


#: Around byte 4096 of three pages, where the forms go: what of them is remote.
RANGES = {
    "everything": (0, 12288),
    "behind the border of two pages": (4096, 8192),
    "before it": (4032, 4096),
    "two words": (4096, 4112),
    "two vectors": (4080, 4112),
}


def check_forms(place: str, seed: int, count: int) -> None:
    program = forms()
    arguments = (str(seed), str(count), "4096", "40")
    natively = subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout
    where = range_of(program, "remote_data", *RANGES[place])
    status, out, err = ptserver("run", "--remote-range", where, program, *arguments)
    assert (status, err) == (0, "")
    for expected, actual in zip(natively.split("\n"), out.split("\n"), strict=True):
        assert actual == expected


@pytest.mark.parametrize("place", RANGES)
def test_every_form_of_access(place: str) -> None:
    check_forms(place, seed=1 + len(place), count=260)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 106))
@pytest.mark.parametrize("place", RANGES)
def test_every_form_of_access_at_many_places(place: str, seed: int) -> None:
    check_forms(place, seed, count=1500)


@pytest.mark.parametrize("flags", [(), ("-buildmode=pie",), ("-ldflags=-w",)], ids=" ".join)
def test_variables_of_go(flags: tuple[str, ...]) -> None:
    program = build("remote_counter", flags=flags)
    natively = subprocess.run([program, "mixed"], capture_output=True, text=True, check=True).stdout
    assert ptserver("run", *VARIABLES, program, "mixed") == (0, natively, "")


KERNEL = ("--remote-var", "main.buffer", "--remote-var", "main.status")


VECTORS = ("--remote-var", "main.buffer")


def test_vectors_and_messages_lead_to_remote_buffers() -> None:
    program = build("remote_counter")
    natively = subprocess.run([program, "vectors"], capture_output=True, text=True, check=True).stdout
    assert "18 errno 0 remote,  local, f ar" in natively
    assert ptserver("run", *VECTORS, program, "vectors") == (0, natively, "")


@pytest.mark.parametrize("flags", [(), ("-buildmode=pie",)], ids=" ".join)
def test_the_kernel_reads_and_writes_remote_buffers(flags: tuple[str, ...], tmp_path: Path) -> None:
    program = build("remote_counter", flags=flags)
    run = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path}
    natively = subprocess.run([program, "kernel"], **run).stdout  # type: ignore[call-overload]
    assert ptserver("run", *KERNEL, program, "kernel", cwd=tmp_path) == (0, natively, "")


def test_a_server_lets_calls_with_remote_buffers_proceed(tmp_path: Path) -> None:
    program = build("remote_counter")
    run = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path}
    natively = subprocess.run([program, "kernel"], **run).stdout  # type: ignore[call-overload]
    where = {"PYTHONPATH": str(Path(__file__).parent)}
    served = ptserver(
        "run", "--server", "watching_memory:Proceeding", *KERNEL, program, "kernel", cwd=tmp_path, env=where
    )
    assert served == (0, natively, "")


def test_a_variable_of_go_that_stays_where_it_is() -> None:
    """Its page is full of the runtime's own variables, which signal handlers touch as well."""
    program = build("remote_counter")
    where = "sum=" + range_of(program, "main.counter", 0, 8)
    assert ptserver("run", "--remote-range", where, program, "add", "10", "3") == (0, "30\n", "")


@pytest.mark.parametrize("mode", ["add", "lock"])
def test_goroutines_lose_nothing(mode: str) -> None:
    names = ["--remote-var", "main.counter", "--remote-var", "main.lock", "--remote-var", "main.total"]
    assert ptserver("run", *names, build("remote_counter"), mode, "100", "4") == (0, "400\n", "")


def test_a_log_of_accesses(tmp_path: Path) -> None:
    log = tmp_path / "log"
    names = ["--remote-var", "main.counter", "--remote-var", "main.table"]
    program = build("remote_counter")
    status, _, err = ptserver("run", *names, "--remote-trace", log, program, "mixed")
    assert (status, err) == (0, "")
    text = log.read_text()
    assert re.search(
        r"^\[pid \d+\] goroutine 1 main\.mixed \S+/remote_counter/main\.go:\d+: get main\.counter 8 = 0$",
        text,
        re.M,
    )
    assert re.search(r": compare_exchange main\.counter 8, 48 -> 9 = 48$", text, re.M)
    assert re.search(r": exchange main\.table\[80\] 8, \d+ = 8$", text, re.M)
    assert len(re.findall(r" main\.mixed\.func\d\S* .*: add main\.table(\[\d+\])? 8, 1 = ", text)) == 400


def test_another_program_in_its_place_has_no_remote_variables(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = build("remote_counter")
    natively = subprocess.run([program, "exec"], capture_output=True, text=True, check=True).stdout
    assert ptserver("run", *VARIABLES, "--remote-trace", log, program, "exec") == (0, natively, "")
    assert len(log.read_text().splitlines()) == 2


def test_it_is_stopped_and_continued_as_any_job() -> None:
    command = ["ptserver", "run", "--remote-var", "main.counter", build("remote_counter"), "wait"]
    # A group of its own: SIGTSTP stops nobody in an orphaned one, as that of the tests may be.
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    (program,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(program), signal.SIGTSTP)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    child.send_signal(signal.SIGCONT)
    out, _ = child.communicate("look\n", timeout=60)
    assert (child.returncode, out) == (0, "0\n")


def test_all_variables_of_a_type(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = build("remote_counter")
    run = ("run", "--remote-type", "main.gauge", "--remote-trace", log)
    assert ptserver(*run, program, "gauges") == (0, "1 2\n", "")
    places = re.findall(r": (add main\.\w+) 8, ", log.read_text())
    assert places == ["add main.left", "add main.right"]


def test_a_server_watches_and_intercepts() -> None:
    status, out, err = ptserver(
        *("run", "--server", "watching_memory:Watching", *VARIABLES, build("remote_counter"), "mixed"),
        cwd=Path(__file__).parent,
    )
    assert status == 0
    assert err == "ptserver: goroutine 1 exchanges main.table[80]\nptserver: set main.flag to 1\n"
    assert " 99 " in out
    assert " 4711\n" in out


def test_a_server_that_answers_nonsense() -> None:
    status, _, err = ptserver(
        *("run", "--server", "watching_memory:Wrong", *VARIABLES, build("remote_counter"), "add", "1", "1"),
        cwd=Path(__file__).parent,
    )
    assert status == 70
    assert err == "ptserver: Wrong.memory_atomic returned b'12345', which is not 8 bytes\n"


@pytest.mark.parametrize("language", ["C", "Go"])
def test_what_cannot_be_executed_leaves_the_program_stopped(language: str, tmp_path: Path) -> None:
    program = forms() if language == "C" else build("remote_unsupported")
    if language == "C":
        what = ["--remote-range", range_of(program, "remote_data", 0, 4096), program, "fxsave"]
    else:
        what = ["--remote-var", "main.area", program]
    command = ["ptserver", "run", *what]
    said = tmp_path / "said"  # not a pipe: the stopped program keeps it open
    with said.open("w") as file:
        status = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=60
        ).returncode
    assert status == 71
    line = re.fullmatch(
        r"ptserver: cannot do what the instruction at (0x\w+) \(0f ae \w\w\) does to remote memory: .*; "
        r"process (\d+) is left stopped before it: inspect it .*\n",
        said.read_text(),
    )
    assert line is not None, said.read_text()
    where = r"form_\w+|main" if language == "C" else r"main\.save \(\S+/save_amd64\.s:6\)"
    assert re.search(rf" in ({where}); process", said.read_text())
    pid = int(line[2])
    try:
        fields = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^State:\tT", fields, re.M)
        assert re.search(r"^TracerPid:\t0$", fields, re.M)
        assert Path(f"/proc/{pid}/syscall").read_text().split()[-1] == line[1]
    finally:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # it is ours if this process takes in orphans
            os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--remote-var", "main.nowhere"), "has no variable main.nowhere"),
        (("--remote-var", "main.contur"), "did you mean main.counter?"),
        (("--remote-var", "main.main"), "main.main is a function"),
        (
            ("--remote-var", "main.share.times"),
            "times is a local variable of main.share: it lives on a stack",
        ),
        (("--remote-var", "main.swapped"), "swapped is a local variable of main.mixed: it lives on a stack"),
        (("--remote-var", "runtime.writeBarrier"), "belongs to Go's runtime"),
        (("--remote-var", "runtime.buildVersion.str"), "is a constant, which cannot be remote"),
        (("--remote-type", "main.nothing"), "has no type main.nothing"),
        (("--remote-type", "main.pair"), "has no package-level variable of type main.pair"),
        (("--remote-range", "0x10-0x20"), "heap, stacks, thread-local storage and the vDSO cannot be remote"),
        (("--remote-range", "7ffc00000000-7ffc00001000"), "heap, stacks, thread-local storage"),
        (("--remote-range", "401000-401008"), "lies in the program's code"),
        (("--remote-range", "593ffc-594000"), "begins or ends within a word"),
        (("--remote-range", "594000-593000"), "ends before it begins"),
        (("--remote-range", "600000-800000"), "has more than 1048576 bytes"),
        (("--remote-range", "what"), "'what' is not a range"),
        (
            ("--remote-var", "main.counter", "--engine=step"),
            "remote variables go with neither --on, --spread nor --engine=step",
        ),
        (("--remote-var", "main.counter", "--trace"), "--remote-trace logs the accesses"),
        (("--remote-trace", "x"), "--remote-trace belongs to"),
    ],
)
def test_refused_up_front(words: tuple[str, ...], line: str) -> None:
    status, message = refusal("run", *words, build("remote_counter"), "add", "1", "1")
    assert status == 64
    assert line in message


def test_a_range_does_not_cut_a_variable() -> None:
    program = build("remote_counter")
    where = range_of(program, "runtime.writeBarrier", 8, 16)
    status, message = refusal("run", "--remote-range", where, program, "add", "1", "1")
    assert status == 64
    assert "cuts runtime.writeBarrier (16 bytes at " in message


def test_a_stripped_program() -> None:
    status, message = refusal(
        "run", "--remote-var", "main.counter", build("remote_counter", flags=("-ldflags=-s",))
    )
    assert status == 64
    assert "neither a symbol table nor debugging information" in message


# With a server at an address, where variables belong to all sessions.


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    env = base_environment()
    log = folder / "server-log"
    with served("passthrough", "127.0.0.1:0", cwd=folder, env=env, log=log) as (address, _):
        yield address


def test_processes_share_a_counter_and_a_lock(tmp_path: Path) -> None:
    """Four processes add to one counter, and to one plain variable under one lock."""
    program = build("remote_counter")
    names = [word for name in ("counter", "lock", "total") for word in ("--remote-var", f"main.{name}")]
    with serving(tmp_path) as address:
        for mode, times in (("add", "60"), ("lock", "15")):
            command = ["ptserver", "run", "--server", address, *names, program, mode, times, "2"]
            children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
            sums = [int(child.communicate(timeout=240)[0]) for child in children]
            assert [child.returncode for child in children] == [0] * 4
            assert max(sums) == 4 * int(times) * 2
            again = subprocess.run(
                [*command[:-3], mode, "0", "1"], capture_output=True, text=True, check=True
            )
            assert int(again.stdout) == 4 * int(times) * 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", ["add", "lock"])
def test_forty_thousand_increments(mode: str, tmp_path: Path) -> None:
    """Four processes, 10,000 each: of an atomic counter, and of a plain one under a lock that is remote."""
    program = build("remote_counter")
    names = [word for name in ("counter", "lock", "total") for word in ("--remote-var", f"main.{name}")]
    with serving(tmp_path) as address:
        command = ["ptserver", "run", "--server", address, *names, program, mode]
        children = [
            subprocess.Popen([*command, "2500", "4"], stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        sums = [int(child.communicate(timeout=3500)[0]) for child in children]
        assert [child.returncode for child in children] == [0] * 4
    assert max(sums) == 40_000


def test_a_program_whose_server_is_lost(tmp_path: Path) -> None:
    """Its access is made once or not at all, and it hears of it as of any lost server: it is killed."""
    with serving(tmp_path) as address:
        command = [
            "ptserver",
            "run",
            "--server",
            address,
            "--remote-var",
            "main.counter",
            "--remote-trace",
            "-",
        ]
        program = [build("remote_counter"), "add", "100000", "2"]
        child = subprocess.Popen(
            [*command, *program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stderr is not None
        for _ in range(50):
            assert " add main.counter 8, 1 = " in child.stderr.readline()
    out, err = child.communicate(timeout=240)
    assert (child.returncode, out) == (69, "")
    assert re.match("ptserver: (lost connection to runtime|the) server ", err.split("\n")[-2])


def test_other_sizes_under_one_name_are_refused(tmp_path: Path) -> None:
    program = build("remote_counter")
    with serving(tmp_path) as address:
        run = ["run", "--server", address]
        first = range_of(program, "main.counter", 0, 8)
        assert ptserver(*run, "--remote-range", f"shared={first}", program, "add", "1", "1")[0] == 0
        table = range_of(program, "main.table", 0, 16)
        status, message = refusal(*run, "--remote-range", f"shared={table}", program, "add", "1", "1")
        assert (status, message) == (
            77,
            "the server does not take the remote variable shared: it has another size in another program",
        )


@pytest.mark.parametrize("mode", ["kernel", "vectors"])
def test_a_server_s_kernel_reads_and_writes_remote_buffers(mode: str, tmp_path: Path) -> None:
    program = build("remote_counter")
    run = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path}
    natively = subprocess.run([program, mode], **run).stdout  # type: ignore[call-overload]
    with serving(tmp_path) as address:
        assert ptserver("run", "--server", address, *KERNEL, program, mode) == (0, natively, "")


def test_a_mutex_of_the_c_library_works_between_processes(tmp_path: Path) -> None:
    """It sleeps on a futex, which looks again every now and then."""
    program = build_c("remote_mutex", flags=("-static",))
    names = ("--remote-var", "remote_lock", "--remote-var", "remote_total")
    with serving(tmp_path) as address:
        command = ["ptserver", "run", "--server", address, *names, program, "25"]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        sums = [int(child.communicate(timeout=240)[0]) for child in children]
    assert max(sums) == 100


@pytest.mark.parametrize(
    ("options", "variables", "rounds"),
    [
        ((), ("head",), 2),
        pytest.param((), ("nodes",), 5, marks=pytest.mark.slow),
        pytest.param(
            (),
            ("head", "nodes", "text", "words", "byName", "any", "waits", "call"),
            5,
            marks=pytest.mark.slow,
        ),
        pytest.param(("--engine=emulate",), ("head",), 2, marks=pytest.mark.slow),
    ],
    ids=["pointer", "array", "every-kind", "emulated"],
)
@pytest.mark.timeout(600)
def test_the_collector_finds_what_remote_variables_lead_to(
    options: tuple[str, ...], variables: tuple[str, ...], rounds: int
) -> None:
    """Each round collects twice; what the variables have dropped is collected, and nothing else."""
    wanted = [word for name in variables for word in ("--remote-var", f"main.{name}")]
    status, out, err = ptserver("run", *options, *wanted, build("remote_pointers"), str(rounds), timeout=590)
    assert (status, out) == (0, f"collected {64 * rounds} many collections: true\n"), err
    assert all("the garbage collector looks there" in line for line in err.splitlines())


def test_pointers_that_would_be_shared_are_refused(tmp_path: Path) -> None:
    env = base_environment()
    with served("passthrough", "127.0.0.1:0", cwd=tmp_path, env=env, log=tmp_path / "log") as (address, _):
        program = build("remote_pointers")
        status, line = refusal("run", "--server", address, "--remote-var", "main.nodes", program, "1")
    assert status == 64
    assert "main.nodes holds pointers" in line
    assert "cannot be at a server that programs share" in line
