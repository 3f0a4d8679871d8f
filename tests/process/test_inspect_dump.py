"""Core dumps of running programs: what debuggers and we read in them, and that the programs notice nothing."""

import mmap
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from goabi.core import CoreFile
from goabi.errors import MemoryFaultError
from ptserver.inspection.core_dump import dump_process
from ptserver.inspection.goroutine_list import GoroutineRow, SummaryRow, read_rows
from stepping.maps import Vma, read_maps
from tests.gofixtures import build
from tests.process.commands import ptserver, refusal
from tests.process.goabi.live import ProcMemory, stat_state, stopped
from tests.process.goabi.test_goroutines import PIE, STRIPPED, for_versions, user_frames
from tests.process.test_inspect_goroutines import check_untouched, running
from tests.process.tracees import python

PAGE = mmap.PAGESIZE


def rows_of(*words: str | Path) -> dict[int, GoroutineRow]:
    status, out, err = ptserver("goroutines", "--json", "-k", "-l", *words)
    assert status == 0, err
    *rows, summary = read_rows(out.encode().splitlines())
    assert isinstance(summary, SummaryRow)
    return {row.goid: row for row in rows if isinstance(row, GoroutineRow)}


def touched_pages(pid: int, vma: Vma) -> list[int]:
    """The addresses of pages that the process has, by pagemap."""
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(vma.start // PAGE * 8)
        entries = memoryview(file.read(vma.size_bytes // PAGE * 8)).cast("Q")
    return [vma.start + number * PAGE for number, entry in enumerate(entries) if entry >> 62]


@pytest.mark.parametrize(("go", "flags"), for_versions((), STRIPPED, PIE))
def test_core_has_the_goroutines(go: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    core = tmp_path / "core"
    with running("goabi_states", "spin", go=go, flags=flags) as program:
        status, out, err = ptserver("dump", str(program.pid), "-o", core)
        assert (status, out) == (0, "")
        assert re.fullmatch(
            rf"{core}: [\d.]+ MB and \d+ threads of process {program.pid} \(goabi_states\), "
            r"which was stopped for [\d.]+ ms\n",
            err,
        )
        live = rows_of(str(program.pid))
        check_untouched(program)
    rows = rows_of(core)
    assert set(rows) == set(live)
    for name, goid in program.names.items():
        row = rows[goid]
        assert not row.problem, name
        if name == "spin":
            assert row.state in ("running", "runnable")  # the scheduler may be about to change its thread
            assert "main.main.func20" in [frame.function for frame in row.stack]
        elif name != "main":
            said = program.dump[goid]
            assert user_frames([(f.function, f.file, f.line) for f in row.stack]) == user_frames(said.frames)
            assert (row.state, row.reason, row.stack) == (
                live[goid].state,
                live[goid].reason,
                live[goid].stack,
            )
            assert (row.channels, row.labels) == (live[goid].channels, live[goid].labels)
            if row.waited_ns is not None:
                assert row.waited_ns < live[goid].waited_ns
    status, out, _ = ptserver("stack", core, str(program.names["recursion"]))
    assert (status, out.count("main.recurse(...)")) == (0, 41)


def test_program_with_cgo(tmp_path: Path) -> None:
    core = tmp_path / "core"
    with running("goabi_states", "spin", cgo=True, flags=("-ldflags=-linkmode=external",)) as program:
        dump_process(program.pid, str(core))
        live = rows_of(str(program.pid))
        check_untouched(program)
    rows = rows_of(core)
    assert set(rows) == set(live) == {*program.dump, program.names["spin"]}
    assert not any(row.problem for row in (*rows.values(), *live.values()))
    with CoreFile(core) as file:
        assert any("libc.so" in mapped.path for mapped in file.mapped_files)


def test_core_is_the_memory_and_untouched_memory_stays_so(tmp_path: Path) -> None:
    """Byte for byte, of a program that is stopped all along; and the same pages are there before and after."""
    core = tmp_path / "core"
    with stopped(build("goabi_many"), "3000") as program:
        maps = list(read_maps(program.pid))
        kept = [vma for vma in maps if "w" in vma.perms or vma.path == "[vdso]"]
        before = {vma: touched_pages(program.pid, vma) for vma in maps if vma.path != "[vsyscall]"}
        dumped = dump_process(program.pid, str(core))
        for vma, pages_before in before.items():  # the kernel may reclaim some meanwhile, but none appears
            assert set(touched_pages(program.pid, vma)) <= set(pages_before), vma
        assert stat_state(program.pid) == "T"
        memory = ProcMemory(program.pid)
        with CoreFile(core, use_files=False) as file:
            pages = 0
            for vma in kept:
                for page in before[vma]:
                    assert file.read(page, PAGE) == memory.read(page, PAGE), hex(page)
                    pages += 1
                untouched = set(range(vma.start, vma.end, PAGE)) - set(before[vma])
                for page in sorted(untouched)[:20]:
                    assert file.read(page, PAGE) == (memory.read(page, PAGE) if vma.path else bytes(PAGE))
            assert pages > 1000
            assert set(file.threads) == {int(name) for name in os.listdir(f"/proc/{program.pid}/task")}
            assert next(iter(file.threads)) == program.pid
            assert file.executable == str(build("goabi_many"))
        memory.close()
    status = core.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == dumped.file_bytes
    # Memory that was only reserved takes no room.
    assert status.st_blocks * 512 < dumped.memory_bytes + (1 << 20) < dumped.file_bytes
    assert os.listdir(tmp_path) == ["core"]


def test_gdb_opens_it(tmp_path: Path) -> None:
    core = tmp_path / "core"
    path = build("goabi_states")
    with stopped(path, "spin", stop=False) as program:
        dumped = dump_process(program.pid, str(core))
    script = ["thread apply all bt 20", "p main.fullChan.qcount", "info proc"]
    done = subprocess.run(
        [
            "gdb",
            "-q",
            "-nx",
            "-iex",
            "set auto-load off",
            "-batch",
            *(word for line in script for word in ("-ex", line)),
            path,
            core,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "$1 = 2\n" in done.stdout
    assert f"exe = '{path} spin'" in done.stdout
    threads = {int(tid) for tid in re.findall(r"^Thread \d+ \(LWP (\d+)\)", done.stdout, re.MULTILINE)}
    assert len(threads) == dumped.threads
    assert "main.main.func20 () at " in done.stdout
    complaints = done.stderr.lower().replace("warning: source file is more recent than executable.", "")
    # gdb before 14 expects Intel's layout of it, also on processors of AMD, and says so of the kernel's own dumps.
    complaints = re.sub(r"warning: section `\.reg-xstate/\d+' in core file too small\.", "", complaints)
    assert "warning" not in complaints, done.stderr


def test_changed_code_is_kept(tmp_path: Path) -> None:
    """A debugger's breakpoints, say, are memory of the process's own, and not what the file has."""
    core = tmp_path / "core"
    with stopped(build("goabi_states")) as program:
        vma = next(vma for vma in read_maps(program.pid) if vma.is_executable)
        place = vma.start + 20 * PAGE + 7
        with open(f"/proc/{program.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(place)
            memory.write(b"\xcc")
        dump_process(program.pid, str(core))
    with CoreFile(core, use_files=False) as file:
        assert file.read(place, 1) == b"\xcc"
        assert file.read(vma.start, 4) == b"\x7fELF"
        with pytest.raises(MemoryFaultError, match="not in the core"):
            file.read(place + PAGE, 1)
    with CoreFile(core) as file:
        assert len(file.read(vma.start, vma.size_bytes)) == vma.size_bytes
    assert rows_of(core)  # the rest is taken from the file


SHARED = """
import mmap, os, sys
fd = os.memfd_create("large")
os.ftruncate(fd, 1 << 33)
shared = mmap.mmap(fd, 1 << 33)
shared[1 << 32:(1 << 32) + 6] = b"shared"
anonymous = mmap.mmap(-1, 1 << 30)
anonymous[4096:4105] = b"anonymous"
with open({path!r}, "w+b") as file:
    file.write(b"deleted" * 1000)
    file.flush()
    mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
os.unlink({path!r})
open({path!r} + ".kept", "wb").write(b"kept" * 5000)
with open({path!r} + ".kept", "r+b") as file:
    private = mmap.mmap(file.fileno(), 20000, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    beyond = mmap.mmap(file.fileno(), 20000, mmap.MAP_SHARED, mmap.PROT_READ)
private[0:7] = b"private"
os.ftruncate(os.open({path!r} + ".kept", os.O_RDWR), 6000)
print("ready", flush=True)
sys.stdin.read()
"""


def test_shared_and_deleted_and_truncated_files(tmp_path: Path) -> None:
    """Also of a program that is not Go's. Holes of shared memory are not filled by being looked at."""
    core = tmp_path / "core"
    path = tmp_path / "mapped"
    with python(SHARED.format(path=str(path))) as child:
        blocks = Path(f"/proc/{child.pid}/status").read_text()
        dumped = dump_process(child.pid, str(core))
        assert re.findall("RssShmem.*", blocks) == re.findall(
            "RssShmem.*", Path(f"/proc/{child.pid}/status").read_text()
        )
        memfd, *_ = [fd for fd in Path(f"/proc/{child.pid}/fd").iterdir() if "memfd:large" in os.readlink(fd)]
        assert memfd.stat().st_blocks * 512 == PAGE
        maps = list(read_maps(child.pid))
    by_path = {vma.path: vma for vma in maps}
    assert dumped.memory_bytes < 64 << 20
    with CoreFile(core, use_files=False) as file:
        assert file.read(by_path["/memfd:large (deleted)"].start + (1 << 32), 6) == b"shared"
        zero = max((vma for vma in maps if vma.path.startswith("/dev/zero")), key=lambda vma: vma.size_bytes)
        assert file.read(zero.start + 4096, 9) == b"anonymous"
        assert file.read(by_path[f"{path} (deleted)"].start, 7000) == b"deleted" * 1000
        private = next(vma for vma in maps if vma.path == f"{path}.kept" and vma.perms == "rw-p")
        assert file.read(private.start, 7) == b"private"
        assert {mapped.path for mapped in file.mapped_files} >= {f"{path} (deleted)", f"{path}.kept"}


def test_wrong_and_missing_program(tmp_path: Path) -> None:
    core = tmp_path / "core"
    path = tmp_path / "main"
    path.write_bytes(build("goabi_states").read_bytes())
    path.chmod(0o700)
    with stopped(path, stop=False) as program:
        dump_process(program.pid, str(core))
    moved = path.rename(tmp_path / "moved")
    status, message = refusal("goroutines", core)
    assert status == 66
    assert f"{path}, cannot be opened (No such file or directory); name it with --exe" in message
    assert set(rows_of("--exe", moved, core)) == set(program.dump)
    status, message = refusal("goroutines", "--exe", build("goabi_many"), core)
    assert status == 66
    assert f"goabi_many is not the program that {core} is of" in message
    status, message = refusal("goroutines", "--exe", "/bin/true", core)
    assert (status, "not a Go program" in message) == (66, True)
    status, message = refusal("goroutines", build("goabi_states"))
    assert (status, message.startswith("not a core dump")) == (66, True)


def test_core_that_is_cut_short(tmp_path: Path) -> None:
    core = tmp_path / "core"
    with stopped(build("goabi_states"), stop=False) as program:
        dump_process(program.pid, str(core))
    size = core.stat().st_size
    for cut in (size // 4, size // 100, 5000, 100, 10):
        os.truncate(core, cut)
        status, out, err = ptserver("goroutines", core)
        assert status in (66, 126) or cut > 5000, (cut, out, err)
        assert err.count("\n") == (status != 0), err


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with running("goabi_states") as program:
        status, message = refusal("dump", str(program.pid), "-o", tmp_path / "no" / "core")
        assert (status, message.endswith("No such file or directory")) == (74, True)
        script = (
            "import resource, signal, sys, cli\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
            "sys.argv = ['ptserver', *sys.argv[1:]]; cli.main()"
        )
        core = tmp_path / "core"
        done = subprocess.run(
            [sys.executable, "-c", script, "dump", str(program.pid), "-o", core],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (74, "ptserver: cannot write the core: File too large\n")
        assert not os.listdir(tmp_path)
        check_untouched(program)


def test_what_cannot_be_dumped(tmp_path: Path) -> None:
    core = tmp_path / "core"
    assert refusal("dump", "999999999", "-o", core) == (66, "there is no process 999999999")
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        status, message = refusal("dump", str(child.pid), "-o", core)
        assert (status, "has exited" in message) == (66, True)
    assert not os.listdir(tmp_path)


COUNTING = """
import os, signal, threading
def count():
    while True: hits[0] += 1
hits = [0]
readable, writable = os.pipe()
os.set_blocking(writable, False)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.set_wakeup_fd(writable)
threading.Thread(target=count, daemon=True).start()
print("ready", flush=True)
while os.read(readable, 1): print("signal", hits[0] > 0, flush=True)
"""


@pytest.mark.timeout(60)
def test_signals_reach_the_program_while_it_is_dumped_again_and_again(tmp_path: Path) -> None:
    with python(COUNTING) as child:
        assert child.stdout is not None
        for number in range(20):
            os.kill(child.pid, signal.SIGUSR1)
            dump_process(child.pid, str(tmp_path / f"core{number % 2}"))
            assert child.stdout.readline() == "signal True\n"
