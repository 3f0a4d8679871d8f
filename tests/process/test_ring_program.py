"""The ring in real Go programs: every call recorded rightly, nothing broken, nothing left behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from goabi.binary import GoBinary
from stepping.errors import PtraceRefusedError, TraceeGoneError
from stepping.ring import Ring, RingCall
from stepping.ring_inject import find_pages, install, remove_leftovers
from stepping.ring_site import NoRingError, RingSite, check_file, find_site
from stepping.syscall6 import SIGNATURE
from stepping.syscalls.model import Syscall
from stepping.syscalls.table import SYSCALLS
from stepping.tracee_memory import TraceeMemory
from tests.gofixtures import GO_VERSIONS, ROOT, build
from tests.process.tracees import THREADS, python

RESOURCES = [row for row in SYSCALLS.values() if "amd64" in row.numbers and row.klass.is_resource]
OLD_MIDDLE_NEW = [
    pytest.param(version, marks=[] if version in ("1.21", "1.24", "1.27") else [pytest.mark.goversions])
    for version in GO_VERSIONS
]


def rows(*names: str) -> list[Syscall]:
    return [SYSCALLS[name] for name in names]


class Program:
    """A fixture that answers each line with a line."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self.greeting = self.answer()
        assert self.greeting.startswith("ready ")

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.answer()


@contextlib.contextmanager
def running(
    name: str, *arguments: str, go: str = "1.27", flags: Sequence[str] = (), cgo: bool = False
) -> Iterator[Program]:
    program = Program(build(name, go=go, flags=flags, cgo=cgo), *arguments)
    try:
        yield program
    finally:
        program.process.kill()
        program.process.communicate()


def read_all(ring: Ring) -> list[RingCall]:
    calls: list[RingCall] = []
    while more := ring.read():
        calls += more
    return calls


def functions(ring: Ring, binary: GoBinary, call: RingCall) -> list[str]:
    names = []
    for pc in call.frames:
        frames = binary.functions.frames_at(pc - ring.site.load_bias, is_return_address=True)
        names += [frame.function for frame in frames]
    return names


def traces_of(pid: int, site: RingSite) -> dict[str, object]:
    """What attaching might change."""
    memory = TraceeMemory(pid)
    code = memory.read(site.entry, 64)
    memory.close()
    status = Path(f"/proc/{pid}/status").read_text()
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {
        "code": code,
        "executable": sorted(line.split()[0] for line in maps.splitlines() if " r-xp " in line),
        "shared": [line for line in maps.splitlines() if "s " in line.split()[1] or "memfd" in line],
        "descriptors": sorted(os.listdir(f"/proc/{pid}/fd")),
        "signals": re.findall(r"Sig(?:Blk|Ign|Cgt):\s*(\w+)", status),
        "tracer": re.findall(r"TracerPid:\s*(\d+)", status),
    }


@pytest.mark.parametrize("go", OLD_MIDDLE_NEW)
def test_every_call_is_recorded(go: str) -> None:
    workers, rounds = 8, 300
    with running("ring_calls", str(workers), go=go) as program:
        before = time.monotonic_ns()
        ring = Ring.attach(program.pid, RESOURCES)
        assert program.ask(f"work {rounds}").startswith("done ")
        calls = read_all(ring)
        after = time.monotonic_ns()
        assert ring.lost == 0
        written = [call for call in calls if call.name == "pwrite64"]
        assert Counter(call.ins[1] for call in written) == Counter(
            b"%03d:%04d" % (worker, i) for worker in range(workers) for i in range(rounds)
        )
        read = [call for call in calls if call.name == "pread64"]
        assert Counter(call.outs[1] for call in read) == Counter(call.ins[1] for call in written)
        missing = [call for call in calls if call.name == "openat"]
        assert Counter(call.ins[1] for call in missing) == Counter(
            {b"/nonexistent/worker-%d" % worker: rounds for worker in range(workers)}
        )
        assert {(call.value, call.errno) for call in missing} == {(-1, 2)}
        assert {(call.value, call.args[2]) for call in read + written} == {(8, 8)}
        # Each worker is one goroutine and has one file, whatever threads it ran on.
        by_goid = {call.goid: call.ins[1][:3] for call in written}
        assert len(by_goid) == workers
        assert all(by_goid[call.goid] == call.ins[1][:3] for call in written)
        tids = {int(tid) for tid in os.listdir(f"/proc/{program.pid}/task")}
        assert {call.tid for call in calls} <= tids
        assert all(before <= call.start_ns <= after for call in calls)
        assert all(0 < call.duration_ns < after - before for call in calls)
        assert {call.pid for call in calls} == {program.pid}
        with GoBinary.open(program.path) as binary:
            for call in (written[0], read[-1], missing[len(missing) // 2]):
                names = functions(ring, binary, call)
                assert names[0] in ("syscall.RawSyscall6", "runtime/internal/syscall.Syscall6")
                assert "main.worker" in names
                assert names[-1] == "runtime.goexit"
        assert ring.detach()
        read_all(ring)
        assert program.ask("work 10").startswith("done ")
        assert read_all(ring) == []
        ring.close()


@pytest.mark.parametrize(
    "flags", [["-ldflags=-s -w"], ["-buildmode=pie"], ["-buildmode=pie", "-ldflags=-s -w"]]
)
def test_stripped_and_position_independent(flags: list[str]) -> None:
    with running("ring_calls", "2", flags=flags) as program:
        ring = Ring.attach(program.pid, rows("pwrite64"))
        program.ask("work 5")
        calls = read_all(ring)
        assert sorted(call.ins[1] for call in calls) == [
            b"%03d:%04d" % (w, i) for w in (0, 1) for i in range(5)
        ]
        assert ring.detach()
        ring.close()


def test_only_what_is_wanted() -> None:
    with running("ring_calls", "2") as program:
        ring = Ring.attach(program.pid, rows("openat"))
        program.ask("work 7")
        assert Counter(call.name for call in read_all(ring)) == {"openat": 14}
        ring.detach()
        ring.close()


def test_a_full_ring_counts_what_it_loses() -> None:
    with running("ring_calls", "4") as program:
        ring = Ring.attach(program.pid, rows("pwrite64"), slots=64)
        program.ask("work 100")
        first = read_all(ring)
        assert len(first) == 64
        program.ask("work 10")
        second = read_all(ring)
        ring.read()
        assert len(second) == 40
        assert ring.lost == 400 - 64
        assert ring.detach()
        ring.close()


def test_long_traces_wrap_around() -> None:
    with running("ring_calls", "3") as program:
        ring = Ring.attach(program.pid, rows("pwrite64", "pread64"), slots=256)
        total: Counter[bytes] = Counter()
        for _ in range(30):
            program.ask("work 25")
            total.update(call.ins.get(1) or call.outs[1] for call in read_all(ring))
        assert ring.lost == 0
        assert total == {b"%03d:%04d" % (w, i): 60 for w in range(3) for i in range(25)}
        ring.detach()
        ring.close()


def test_nothing_is_left_behind() -> None:
    with running("ring_calls", "4") as program:
        site = find_site(program.pid)
        program.ask("work 5")
        before = traces_of(program.pid, site)
        for _ in range(25):
            program.send("work 200")
            ring = Ring.attach(program.pid, RESOURCES, site=site)
            during = traces_of(program.pid, site)
            assert during["code"] != before["code"]
            assert during["descriptors"] == before["descriptors"]
            assert ring.detach()
            ring.close()
            assert program.answer().startswith("done ")
        assert traces_of(program.pid, site) == before
        assert find_pages(program.pid) == []


def test_the_program_outlives_a_killed_tracer() -> None:
    tracer = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from stepping.ring import Ring
from stepping.syscalls.table import SYSCALLS
ring = Ring.attach(int(sys.argv[1]), [SYSCALLS["pwrite64"]], slots=64)
print("attached", flush=True)
sys.stdin.readline()
"""
    with running("ring_calls", "4") as program:
        site = find_site(program.pid)
        before = traces_of(program.pid, site)
        with subprocess.Popen(
            [sys.executable, "-c", tracer, str(program.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "attached\n"
            with pytest.raises(PtraceRefusedError, match=f"ptserver process {child.pid} has its ring in it"):
                Ring.attach(program.pid, RESOURCES)
            child.kill()
        assert program.ask("work 100").startswith("done ")
        assert len(find_pages(program.pid)) == 1
        ring = Ring.attach(program.pid, rows("openat"))
        assert program.ask("work 10").startswith("done ")
        assert len(read_all(ring)) == 40
        assert ring.detach()
        ring.close()
        assert traces_of(program.pid, site) == before
        assert remove_leftovers(program.pid) == 0


@pytest.mark.parametrize("go", OLD_MIDDLE_NEW)
def test_hard_conditions(go: str) -> None:
    with running("ring_hard", go=go) as program:
        site = find_site(program.pid)
        before = traces_of(program.pid, site)["code"]
        expected = {
            "efault": program.ask("efault"),
            "profile": "profiled true",
            "churn": "churned",
            "children": "ran",
            "signals": "signalled",
            "locked": "ended",
        }
        assert expected["efault"] == "14 14 14 9 14 14 14 14 2"
        for command, answer in expected.items():
            ring = Ring.attach(program.pid, RESOURCES, site=site)
            assert program.ask(command) == answer
            assert read_all(ring)
            assert ring.detach()
            ring.close()
        assert traces_of(program.pid, site)["code"] == before


def test_attaching_and_detaching_under_load() -> None:
    with running("ring_hard") as program:
        site = find_site(program.pid)
        for command, answer in (("churn", "churned"), ("signals", "signalled"), ("profile", "profiled true")):
            program.send(command)
            for _ in range(12):
                ring = Ring.attach(program.pid, RESOURCES, site=site)
                assert ring.detach()
                ring.close()
            assert program.answer() == answer
        assert find_pages(program.pid) == []


@pytest.mark.parametrize("go", OLD_MIDDLE_NEW)
def test_a_server_and_its_clients(go: str) -> None:
    with running("ring_net", go=go) as program:
        port = int(program.greeting.split()[2])
        ring = Ring.attach(program.pid, rows("connect", "accept4", "socket", "write"))
        assert program.ask("get 10") == "got 80"
        calls = read_all(ring)
        requests: list[RingCall] = []
        deadline = time.monotonic() + 20
        # An answer may be there before the call that sent the request has returned.
        while len(requests) < 80 and time.monotonic() < deadline:
            calls += read_all(ring)
            requests = [call for call in calls if call.ins.get(1, b"").startswith(b"GET /client-")]
        assert len({call.ins[1].split()[1] for call in requests}) == 80
        assert ring.detach()
        ring.close()
        connected = [call for call in calls if call.name == "connect"]
        address = b"\x02\0" + port.to_bytes(2, "big") + bytes([127, 0, 0, 1])
        assert [call.ins[1][:8] for call in connected] == [address] * 80
        assert {call.errno for call in connected} <= {0, 115}  # EINPROGRESS
        assert len([call for call in calls if call.name == "accept4" and call.value > 0]) == 80

        # Whatever comes and goes meanwhile, every answer is right.
        site = find_site(program.pid)
        program.send("get 150")
        for _ in range(20):
            ring = Ring.attach(program.pid, RESOURCES, site=site)
            ring.read()
            assert ring.detach()
            ring.close()
        assert program.answer() == "got 1200"


def test_bad_pointers_are_shown_and_not_followed() -> None:
    with running("ring_hard") as program:
        ring = Ring.attach(program.pid, rows("openat", "connect", "renameat", "unlinkat", "getcwd"))
        program.ask("efault")
        calls = read_all(ring)
        assert [(call.name, -call.errno) for call in calls] == [
            ("openat", -14),
            ("connect", -9),
            ("renameat", -14),
            ("unlinkat", -14),
            ("openat", -14),
            ("getcwd", -14),
            ("openat", -2),
        ]
        assert [call.ins.get(1, b"") for call in calls] == [b""] * 6 + [b"/none"]
        assert ring.detach()
        ring.close()


def test_a_blocked_call_does_not_hold_up_the_detach() -> None:
    with running("ring_hard") as program:
        ring = Ring.attach(program.pid, rows("read", "write"))
        program.ask("block")
        start = time.monotonic()
        assert ring.detach()
        assert time.monotonic() - start < 2
        ring.close()
        assert int(program.ask("unblock")) > 0

        ring = Ring.attach(program.pid, rows("read"))
        program.ask("block")
        took_ns = int(program.ask("unblock"))
        (call,) = (call for call in read_all(ring) if call.args[0] != 0)
        assert call.value == 1
        assert call.outs[1] == b"x"
        assert 0 < call.duration_ns <= took_ns
        assert ring.detach()
        ring.close()


def test_a_thread_that_was_in_the_call_while_rings_came_and_went() -> None:
    with running("ring_hard") as program:
        program.ask("block")
        for _ in range(3):
            ring = Ring.attach(program.pid, rows("read"))
            assert ring.detach()
            ring.close()
        ring = Ring.attach(program.pid, rows("read"))
        program.ask("unblock")
        assert [call for call in read_all(ring) if call.args[0] != 0] == []  # it began before
        assert ring.detach()
        ring.close()


def test_a_program_that_ends() -> None:
    with running("ring_calls", "2") as program:
        ring = Ring.attach(program.pid, RESOURCES)
        program.ask("work 3")
        program.send("quit")
        assert program.process.wait() == 3
        calls = ring.read(final=True)
        assert calls[-1].ins[1] == b"bye\n"
        assert ring.detach()
        ring.close()


def test_a_program_that_executes_another_one() -> None:
    with running("ring_hard") as program:
        ring = Ring.attach(program.pid, RESOURCES)
        assert program.ask("exec").startswith("ready ")
        maps = Path(f"/proc/{program.pid}/maps").read_text()
        assert "ptserver" not in maps
        assert ring.detach()
        assert program.ask("locked") == "ended"
        again = Ring.attach(program.pid, RESOURCES)
        assert program.ask("locked") == "ended"
        assert len(read_all(again)) >= 50
        assert again.detach()
        again.close()
        ring.close()


def test_scribbled_memory_is_no_danger() -> None:
    with running("ring_calls", "2") as program:
        ring = Ring.attach(program.pid, RESOURCES, slots=64)
        program.ask("work 2")
        page, parameters = find_pages(program.pid)[0]
        memory = TraceeMemory(program.pid)
        record = parameters.ring + 0x1000
        memory.write(record + 24, b"\xff\xff\xff\xff\xff\xff\xff\xff")
        calls = read_all(ring)
        assert calls
        for head in (0, 1, (1 << 64) - 1):
            memory.write(parameters.ring, head.to_bytes(8, "little"))
            assert ring.read() == []
        memory.close()
        assert ring.detach()
        assert page not in dict(find_pages(program.pid))
        ring.close()


def test_changed_code_is_left_alone() -> None:
    with running("ring_calls", "1") as program:
        site = find_site(program.pid)
        memory = TraceeMemory(program.pid)
        memory.write(site.entry, b"\x4c\x8b\xd6")  # the same move, encoded otherwise
        before = traces_of(program.pid, site)
        with pytest.raises(NoRingError, match="changed by another tool"):
            Ring.attach(program.pid, RESOURCES)
        assert traces_of(program.pid, site) == before
        memory.write(site.entry, SIGNATURE[:3])
        memory.close()
        assert program.ask("work 2").startswith("done ")


def test_programs_without_a_ring(tmp_path: Path) -> None:
    with python(THREADS.format(count=0)) as child, pytest.raises(NoRingError, match="not a Go program"):
        find_site(child.pid)
    with pytest.raises(NoRingError, match="built for arm64"):
        check_file(str(build("ring_calls", arch="arm64")))
    with pytest.raises(NoRingError, match="cannot be read"):
        check_file(str(tmp_path / "none"))
    with pytest.raises(TraceeGoneError):
        find_site((1 << 22) + 5)
    check_file(str(build("ring_calls")))
    with pytest.raises(ValueError, match="power of two"):
        install(1, RingSite(0, 0, 0, 0, 0, ""), [], slots=100)


def test_stopped_programs_stay_stopped() -> None:
    with running("ring_calls", "2") as program:
        os.kill(program.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
        ring = Ring.attach(program.pid, rows("pwrite64"))
        program.send("work 4")
        assert ring.read() == []
        os.kill(program.pid, signal.SIGCONT)
        assert program.answer().startswith("done ")
        assert len(read_all(ring)) == 8
        assert ring.detach()
        ring.close()
