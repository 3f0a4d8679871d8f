"""The goroutines of running programs, as the commands show them, against what the programs say themselves."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from goabi.errors import GoAbiError
from ptserver.inspection.goroutine_list import GoroutineRow, GroupRow, Selection, SummaryRow, read_rows
from ptserver.inspection.goroutine_rows import RowMaker
from ptserver.inspection.inspector import inspect_process
from ptserver.inspection.process import STOP_RECORDS
from ptserver.inspection.process_stop import stopped as stopped_process
from stepping.bulk_read import read_pieces
from stepping.maps import read_maps
from stepping.tracee_memory import TraceeMemory
from tests.gofixtures import build
from tests.process.commands import ptserver, refusal
from tests.process.goabi.live import StoppedProgram, parse_dump, stat_state, stopped
from tests.process.goabi.test_goroutines import CHANNELS, PIE, STRIPPED, for_versions, user_frames
from tests.process.tracees import python

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users, pid namespaces")


@contextlib.contextmanager
def running(name: str, *args: str, **how: object) -> Iterator[StoppedProgram]:
    with stopped(build(name, **how), *args, stop=False) as program:  # type: ignore[arg-type]
        yield program


def listed(*words: str) -> tuple[dict[int, GoroutineRow], SummaryRow]:
    status, out, err = ptserver("goroutines", "--json", *words)
    assert status == 0, err
    *rows, summary = read_rows(out.encode().splitlines())
    assert isinstance(summary, SummaryRow)
    goroutines = {row.goid: row for row in rows if isinstance(row, GoroutineRow)}
    assert len(goroutines) == len(rows) == summary.goroutines
    return goroutines, summary


def check_untouched(program: StoppedProgram) -> None:
    """The program is as it was: no tracer, not stopped, and goes on to its ordinary end."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    assert re.search(r"^TracerPid:\t0$", status, re.MULTILINE)
    for task in Path(f"/proc/{program.pid}/task").iterdir():
        assert stat_state(int(task.name)) not in "Tt"
    assert program.process.stdin is not None
    program.process.stdin.close()
    assert program.process.wait(30) == 0


@pytest.mark.parametrize(("go", "flags"), for_versions((), STRIPPED, PIE))
def test_list_is_what_the_program_says(go: str, flags: tuple[str, ...]) -> None:
    with running("goabi_states", go=go, flags=flags) as program:
        rows, summary = listed("-k", "-l", str(program.pid))
        assert set(rows) == set(program.dump)
        assert summary.system_hidden > 0
        assert summary.skipped == summary.filtered == 0
        assert 0 < summary.stopped_ns < 5 * 10**9
        for name, goid in program.names.items():
            row, said = rows[goid], program.dump[goid]
            assert not row.problem
            assert row.tid == (0 if row.state == "waiting" else row.tid)
            if name == "main":
                continue  # it was running when it wrote the dump
            assert (row.reason or row.state) == said.state, name
            assert user_frames([(f.function, f.file, f.line) for f in row.stack]) == user_frames(said.frames)
            assert row.created_by is not None
            site = row.created_by
            assert (site.function, site.file, site.line) == (said.created_by, *said.created_at)
            assert row.parent == said.creator
            assert row.entry == "main.spawn.func1"
            assert row.at is not None
            assert not row.at.function.startswith("runtime.")
        names = program.names
        assert Path(f"/proc/{program.pid}/task/{rows[names['main']].tid}").exists()
        assert rows[names["main"]].created_by is None
        assert rows[names["locked"]].locked
        assert rows[names["labels"]].labels == {"kind": "test", "answer": "42", "long": "ä" * 100}
        assert len(rows[names["select"]].channels) == 2
        assert rows[names["receive"]].channels == rows[names["recursion"]].channels
        assert not rows[names["sleep"]].channels
        assert rows[names["receive"]].waited_ns is not None
        assert set(CHANNELS) <= {name for name, goid in names.items() if rows[goid].channels}
        check_untouched(program)


def test_stacks_are_written_as_go_writes_them() -> None:
    with running("goabi_states") as program:
        status, out, err = ptserver("stack", str(program.pid))
        assert (status, err) == (0, "")
        dumped = parse_dump(out.rstrip("\n"))
        assert set(dumped) == set(program.dump)
        for name, goid in program.names.items():
            if name != "main":
                ours, gos = dumped[goid], program.dump[goid]
                assert (ours.state, ours.created_by, ours.created_at) == (
                    gos.state,
                    gos.created_by,
                    gos.created_at,
                )
                assert ours.frames == [frame for frame in gos.frames if "gopark" not in frame[0]], name


def test_a_goroutine_that_runs_has_a_stack_and_the_program_goes_on() -> None:
    with running("goabi_states", "spin") as program:
        states = set()
        for _ in range(6):
            rows, _ = listed("-k", "--func", r"^main\.main\.func20$", str(program.pid))
            assert list(rows) == [program.names["spin"]]
            (row,) = rows.values()
            states.add(row.state)
            assert row.problem == ""
            assert row.stack[-1].function == "runtime.goexit"
            assert not row.tid or Path(f"/proc/{program.pid}/task/{row.tid}").exists()
        assert "running" in states
        assert states <= {"running", "runnable"}  # the scheduler may be about to change its thread
        rows, _ = listed("--no-stop", "-k", str(program.pid))
        row = rows[program.names["spin"]]
        assert row.state == "runnable" or "registers" in row.problem
        check_untouched(program)


def test_one_stack_in_detail() -> None:
    with running("goabi_states") as program:
        names = program.names
        status, out, _ = ptserver("stack", str(program.pid), str(names["recursion"]))
        assert status == 0
        assert out.count("main.recurse(...)") == 41
        assert re.search(r"^# channels: 0x[0-9a-f]+$", out, re.MULTILINE)
        _, out, _ = ptserver("stack", "--runtime", str(program.pid), str(names["labels"]))
        assert "runtime.gopark(...)" in out
        (labels,) = re.findall(r"^# labels: (.*)$", out, re.MULTILINE)
        assert set(labels.split(", ")) == {"kind=test", "answer=42", f"long={'ä' * 100}"}
        _, out, _ = ptserver("stack", "--json", str(program.pid), "2")
        (row,) = read_rows(out.encode().splitlines())
        assert isinstance(row, GoroutineRow)
        assert row.system
        status, message = refusal("stack", str(program.pid), "123456789")
        assert (status, message) == (66, f"process {program.pid} (goabi_states) has no goroutine 123456789")


def test_filters() -> None:
    with running("goabi_states") as program:
        pid = str(program.pid)
        rows, summary = listed("--state", "select", "--state", "IO wait", pid)
        assert {row.reason for row in rows.values()} == {"select", "IO wait"}
        assert summary.filtered == len(program.dump) - len(rows)
        rows, _ = listed("--func", r"Area$", pid)
        assert list(rows) == [program.names["method"]]
        everything, _ = listed("--system", pid)
        assert set(program.dump) < set(everything)
        assert {goid for goid, row in everything.items() if not row.system} == set(program.dump)
        status, message = refusal("goroutines", "--func", "(", pid)
        assert status == 64
        assert "regular expression" in message


def test_groups_count_every_goroutine() -> None:
    with running("goabi_many", "500") as program:
        status, out, _ = ptserver("goroutines", "--group", "--json", str(program.pid))
        assert status == 0
        first, *_, summary = read_rows(out.encode().splitlines())
        assert isinstance(first, GroupRow)
        assert isinstance(summary, SummaryRow)
        assert (first.count, summary.goroutines) == (500, 501)
        assert [frame.function for frame in first.stack][-3:] == [
            "main.middle",
            "main.worker",
            "runtime.goexit",
        ]
        _, out, _ = ptserver("goroutines", "--group", str(program.pid))
        assert out.startswith("goroutine profile: total 501\n500 @ 0x")
        _, out, _ = ptserver("goroutines", "--by-state", str(program.pid))
        assert out.split()[:3] == ["500", "chan", "receive"]


def test_go_s_profiler_reads_groups(tmp_path: Path) -> None:
    """The text form of profiles: `count @ pc pc...`, with comments that begin with #."""
    with running("goabi_many", "40") as program:
        _, out, _ = ptserver("goroutines", "-g", str(program.pid))
        head, *lines = [line for line in out.splitlines() if line and not line.startswith("#")]
        total = re.fullmatch(r"goroutine profile: total (\d+)", head)
        assert total
        counts = [re.fullmatch(r"(\d+) @((?: 0x[0-9a-f]+)+)", line) for line in lines]
        assert all(counts)
        assert sum(int(count[1]) for count in counts if count) == int(total[1])
        runtime = program.runtime(build("goabi_many"))
        with runtime.binary:
            stacks = [count[2].split() for count in counts if count]
            named = [
                [runtime.frames_at(int(pc, 16), is_return_address=True) for pc in stack] for stack in stacks
            ]
            functions = [[frame.function for frames in stack for frame in frames] for stack in named]
            assert any({"main.middle", "main.worker", "runtime.goexit"} < set(stack) for stack in functions)


def test_more_goroutines_than_one_stop_takes() -> None:
    count = 2 * STOP_RECORDS + 100
    with running("goabi_many", str(count)) as program, inspect_process(program.pid) as inspected:
        goids = []
        for sighting in inspected.iter_sightings():
            goids.append(sighting.goroutine.goid)
            if sighting.goroutine.goid % 1000 == 0:
                assert inspected.unwind(sighting).is_complete
        assert len(goids) == len(set(goids))
        assert count < len(goids) < count + 50
        assert inspected.skipped == 0
        assert (found := inspected.find(goids[-1])) is not None
        assert found.goroutine.goid == goids[-1]
        check_untouched(program)


@pytest.mark.slow
def test_a_million_goroutines_in_bounded_memory() -> None:
    with running("goabi_many", "1000000") as program:
        script = "import resource,sys,cli; sys.argv[1:]=['goroutines','-g',sys.argv[1]]\ntry: cli.main()\nfinally: "
        script += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        done = subprocess.run(
            [sys.executable, "-c", script, str(program.pid)], capture_output=True, text=True, check=True
        )
        assert "\n1000000 @ 0x" in done.stdout
        assert int(done.stderr) < 300 * 1024


def test_a_stopped_program_stays_stopped() -> None:
    with stopped(build("goabi_states")) as program:
        rows, _ = listed(str(program.pid))
        assert set(rows) == set(program.dump)
        assert stat_state(program.pid) == "T"
        os.kill(program.pid, signal.SIGCONT)
        check_untouched(program)


def test_an_interrupt_waits_until_the_program_goes_on() -> None:
    """In a process of its own: the threads of a test runner would take the signal that this one holds back."""
    script = (
        "import os, signal, sys; from ptserver.inspection.process_stop import stopped\n"
        "pid = int(sys.argv[1])\n"
        "try:\n"
        "    with stopped(pid):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0], flush=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    with running("goabi_states", "spin") as program:
        words = [sys.executable, "-c", script, str(program.pid)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == ("t\ninterrupted\n", "")
        check_untouched(program)


def test_the_program_goes_on_when_ptserver_is_killed_while_it_is_stopped() -> None:
    with running("goabi_states", "spin") as program:
        script = (
            "import sys; from ptserver.inspection.process_stop import stopped\n"
            "with stopped(int(sys.argv[1])): print('stopped', flush=True); sys.stdin.read()"
        )
        pipe = subprocess.PIPE
        watcher = subprocess.Popen([sys.executable, "-c", script, str(program.pid)], stdin=pipe, stdout=pipe)
        with watcher:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == b"stopped\n"
            assert stat_state(program.pid) == "t"
            watcher.kill()
        check_untouched(program)


def test_an_error_while_it_is_stopped_lets_it_go_on() -> None:
    with running("goabi_states") as program:
        with pytest.raises(ZeroDivisionError), stopped_process(program.pid):
            _ = 1 // 0
        check_untouched(program)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@needs_root
def test_pid_namespace(tmp_path: Path) -> None:
    """The program knows other numbers of its threads than we do, and its file has another name there."""
    path = build("goabi_states")
    inside = tmp_path / "main"
    command = f"mount -t tmpfs none {tmp_path} && cp {path} {inside} && exec {inside} spin"
    child = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount", "--kill-child", "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            assert child.stdout is not None
            names = {}
            for line in child.stdout:
                words = line.split()
                if words[:1] == ["goid"]:
                    names[words[1]] = int(words[2])
                if words == ["ready"]:
                    break
            (pid,) = map(int, children_of(child.pid))
            assert not inside.exists()
            rows, _ = listed("-k", str(pid))
            spin = rows[names["spin"]]
            assert spin.problem == ""
            assert "main.main.func20" in [frame.function for frame in spin.stack]
            assert Path(f"/proc/{pid}/task/{spin.tid}").exists()
            assert Path(f"/proc/{pid}/task/{rows[1].tid}").exists()
            # A core has the numbers that the program knows, by which threads and goroutines are matched.
            core = tmp_path / "core"
            assert ptserver("dump", str(pid), "-q", "-o", core) == (0, "", "")
            status, message = refusal("stack", core, "1")
            assert (status, "name it with --exe" in message) == (66, True)
            in_core, _ = listed("-k", "--exe", str(path), str(core))
            assert set(in_core) == set(rows)
            assert not any(row.problem for row in in_core.values())
            assert all(row.tid < 100 for row in in_core.values())
        finally:
            child.kill()


def test_not_a_go_program() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            for command in ("goroutines", "stack"):
                status, message = refusal(command, str(child.pid))
                assert status == 66
                assert f"process {child.pid} (sleep) is not a Go program" in message
                assert f"`ptserver trace {child.pid}`" in message
        finally:
            child.kill()


@needs_root
def test_a_number_from_inside_a_container() -> None:
    number = next(number for number in range(32000, 1, -1) if not Path(f"/proc/{number}").exists())
    script = f"echo {number - 1} >/proc/sys/kernel/ns_last_pid; sleep 600 & wait"
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script]
    ) as child:
        try:
            inside: list[str] = []
            while not inside:
                shell = children_of(child.pid)
                inside = children_of(int(shell[0])) if shell else []
            status, message = refusal("goroutines", str(number))
            assert status == 66
            assert (
                message
                == f"there is no process {number}; in a container there is, which is process {inside[0]} here"
            )
        finally:
            child.kill()


def test_no_such_process() -> None:
    assert refusal("goroutines", "999999999") == (66, "there is no process 999999999")
    assert refusal("goroutines", "no/such/core")[0] == 66
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        status, message = refusal("goroutines", str(child.pid))
        assert status == 66
        assert f"has exited, and waits for its parent, process {os.getpid()}" in message
    status, message = refusal("stack", "2")
    if "kthreadd" in message:
        assert (status, message) == (66, "process 2 (kthreadd) is a kernel thread and runs no program")


def test_exits_while_it_is_looked_at() -> None:
    with running("goabi_states") as program, inspect_process(program.pid) as inspected:
        program.process.kill()
        program.process.wait()
        with pytest.raises(Exception, match=r"exited|is gone"):
            list(inspected.iter_sightings())


def test_already_traced() -> None:
    with running("goabi_states") as program:
        script = (
            "import sys; from stepping.tracee_group import TraceeGroup\n"
            "group = TraceeGroup.attach(int(sys.argv[1])); print('traced', flush=True); sys.stdin.read()"
        )
        pipe = subprocess.PIPE
        tracer = subprocess.Popen([sys.executable, "-c", script, str(program.pid)], stdin=pipe, stdout=pipe)
        with tracer:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == b"traced\n"
            status, message = refusal("goroutines", str(program.pid))
            assert status == 77
            assert f"already traced by process {tracer.pid} (python" in message
            assert "--no-stop" in message
            rows, summary = listed("--no-stop", str(program.pid))
            assert set(rows) == set(program.dump)
            assert summary.stopped_ns == 0
            tracer.kill()


@needs_root
def test_a_process_of_another_user() -> None:
    with running("goabi_states") as program:
        status, out, err = ptserver(
            "goroutines",
            str(program.pid),
            prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        )
        assert (status, out) == (77, "")
        assert "belongs to user 0; CAP_SYS_PTRACE is needed" in err


@pytest.mark.parametrize("version", [b"go1.20.1", b"go1.99.0"])
def test_a_version_that_is_not_supported(version: bytes, tmp_path: Path) -> None:
    image = build("goabi_states").read_bytes()
    own = re.search(rb"go1\.27\.\d", image)
    assert own
    path = tmp_path / "main"
    path.write_bytes(image.replace(own[0], version))
    path.chmod(0o700)
    with stopped(path, stop=False) as program:
        status, message = refusal("goroutines", str(program.pid))
        assert status == 66
        assert version.decode().removeprefix("go") in message
        assert "--force" in message
        rows, _ = listed("--force", "-k", str(program.pid))
        assert set(rows) == set(program.dump)


def test_what_was_copied_suffices() -> None:
    """Nothing is read of the program once it goes on."""
    with running("goabi_states") as program, inspect_process(program.pid) as inspected:
        sightings = list(inspected.iter_sightings())
        program.process.kill()
        program.process.wait()
        assert all(inspected.unwind(sighting).is_complete for sighting in sightings)


def test_a_program_whose_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "main"
    path.write_bytes(build("goabi_states").read_bytes())
    path.chmod(0o700)
    with stopped(path, stop=False) as program:
        path.unlink()
        rows, _ = listed(str(program.pid))
        assert set(rows) == set(program.dump)


def test_a_stack_that_was_not_copied_to_its_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptserver.inspection.process.LISTED_STACK_BYTES", 1024)
    with running("goabi_states") as program, inspect_process(program.pid) as inspected:
        goid = program.names["recursion"]
        (deep,) = [each for each in inspected.iter_sightings() if each.goroutine.goid == goid]
        stack = inspected.unwind(deep)
        assert "beyond what was copied of the stack" in stack.problem
        whole = inspected.find(goid)
        assert whole is not None
        assert inspected.unwind(whole).is_complete


def test_records_that_make_no_sense() -> None:
    """Memory overwritten at random: what is left is listed, and nothing but this project's errors comes out."""
    random = Random(1)
    with stopped(build("goabi_states")) as program, open(f"/proc/{program.pid}/mem", "r+b", 0) as memory:
        with inspect_process(program.pid) as inspected:
            records = [each.goroutine.addr for each in inspected.iter_sightings()]
            list_addr = inspected.binary.allgs_addr
        outcomes = set()
        for number in range(150):
            # The records of goroutines; now and then the list of them, or a stack.
            place = list_addr if number % 50 == 49 else random.choice(records) + 8 * random.randrange(50)
            old = program.memory.read(place, 8)
            word = random.choice(
                [random.randbytes(8), random.choice(records).to_bytes(8, "little"), b"\xff" * 8]
            )
            memory.seek(place)
            memory.write(word)
            try:
                with inspect_process(program.pid) as inspected:
                    maker = RowMaker(inspected, Selection(system=True), stacks=True)
                    rows = list(maker.iter_rows(inspected.iter_sightings(details=True)))
                    assert len(rows) >= len(records) - 2 or place == list_addr
                    outcomes.add("listed")
            except GoAbiError:
                outcomes.add("refused")
            memory.seek(place)
            memory.write(old)
        assert "listed" in outcomes


def test_bulk_reads_mark_what_cannot_be_read() -> None:
    with python("import ctypes, sys; print('ready', flush=True); sys.stdin.read()") as child:
        vma = next(vma for vma in read_maps(child.pid) if vma.path == "[stack]")
        memory = TraceeMemory(child.pid)
        try:
            end = vma.end
            places = [end - 8, 0x10, end - 16, end - 4, (1 << 64) - 8, end - 4096] * 700
            sizes = [8, 8, 16, 8, 8, 4096] * 700
            pieces = read_pieces(child.pid, memory, places, sizes)
            assert len(pieces) == len(places)
            for index, (place, size) in enumerate(zip(places, sizes, strict=True)):
                readable = vma.start <= place and place + size <= end
                assert pieces[index] == (memory.read(place, size) if readable else None), index
            # Without process_vm_readv, which cannot reach a process that is not there, memory does it alone.
            alone = read_pieces(999999999, memory, places[:60], sizes[:60])
            assert [alone[index] for index in range(60)] == [pieces[index] for index in range(60)]
            assert len(read_pieces(child.pid, memory, [], [])) == 0
        finally:
            memory.close()


def test_a_reader_that_has_seen_enough_and_an_interrupt() -> None:
    with running("goabi_many", "3000") as program:
        listing = [sys.executable, "-c", "import cli; cli.main()", "goroutines", "-k", str(program.pid)]
        with subprocess.Popen(listing, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
            assert first.stdout is not None
            assert first.stderr is not None
            assert first.stdout.read(9) == b"goroutine"
            first.stdout.close()
            assert (first.wait(30), first.stderr.read()) == (0, b"")
        with subprocess.Popen(listing, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as second:
            assert second.stdout is not None
            assert second.stdout.read(9) == b"goroutine"
            second.send_signal(signal.SIGINT)
            second.stdout.read()
            assert second.wait(30) == 130
        check_untouched(program)


def test_nothing_is_left_behind_by_looking_again_and_again() -> None:
    with running("goabi_states", "spin") as program:
        descriptors = set(os.listdir(f"/proc/{program.pid}/fd"))
        own = len(os.listdir("/proc/self/fd"))
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        for _ in range(40):
            with inspect_process(program.pid) as inspected:
                assert len(list(inspected.iter_sightings(details=True))) >= len(program.dump)
        assert set(os.listdir(f"/proc/{program.pid}/fd")) == descriptors
        assert len(os.listdir("/proc/self/fd")) == own
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        assert os.getpriority(os.PRIO_PROCESS, 0) == nice
        check_untouched(program)
