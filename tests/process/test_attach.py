"""`ptserver attach` on running programs: what it says of them, what it leaves behind, and on a real terminal."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptserver.attach.snapshot import GoroutineUse, Snapshot, decode
from stepping.ring_site import find_site
from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.process.commands import ptserver, refusal
from tests.process.goabi.live import StoppedProgram, stopped
from tests.process.goroutine_work import Worker, working
from tests.process.test_ring_program import traces_of
from tests.running import Running, started

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users, freezers")


@contextlib.contextmanager
def running(name: str, *args: str, **how: object) -> Iterator[StoppedProgram]:
    with stopped(build(name, **how), *args, stop=False) as program:  # type: ignore[arg-type]
        yield program


def snapshot(*words: str) -> Snapshot:
    status, out, err = ptserver("attach", "--json", "--once", "-n", "0.4", *words)
    assert (status, err) == (0, "")
    return decode(out.encode())


def by_goid(taken: Snapshot) -> dict[int, GoroutineUse]:
    return {use.goid: use for use in taken.top}


def snapshot_with_cpu(goid: int, pid: int) -> Snapshot:
    """A snapshot in which a goroutine was seen running: on a busy machine there may be few samples in one."""
    for _ in range(6):
        taken = snapshot(str(pid))
        if by_goid(taken)[goid].recent.cpu_ns:
            return taken
    raise AssertionError(f"goroutine {goid} is never seen running")


def untouched(pid: int) -> dict[str, object]:
    return traces_of(pid, find_site(pid))


def test_what_goroutines_use() -> None:
    with working() as worker:
        before = worker.report()
        clean = untouched(worker.pid)
        taken = snapshot_with_cpu(worker.goids["a"], worker.pid)
        after = worker.report()
        assert untouched(worker.pid) == clean
        uses = by_goid(taken)
        reader = uses[worker.goids["reader"]]
        assert 0 < reader.recent.calls <= after.reads - before.reads
        assert reader.recent.read_bytes == 1000 * reader.recent.calls
        assert reader.recent == reader.total
        assert re.fullmatch(r"main\.main main\.go:\d+", reader.site)
        blocked = uses[worker.goids["blocked"]]
        assert (blocked.state, blocked.reason) == ("waiting", "select (no cases)")
        assert blocked.recent.cpu_ns == blocked.recent.calls == 0
        assert {call.name for call in taken.calls} >= {"read"}
        assert sum(call.calls for call in taken.calls) == taken.recent.calls
        assert taken.goroutines == sum(taken.states.values()) == len(worker.goids) + 1
        assert sum(group.count for group in taken.groups) == taken.goroutines
        (group,) = [group for group in taken.groups if worker.goids["blocked"] in group.goids]
        assert "main.main.func1" in [frame.function for frame in taken.stacks[group.stack]]
        assert taken.stops >= 1
        assert taken.stopped_ns > 0
        assert (taken.lost, taken.notes, taken.ended) == (0, (), "")


def test_states_are_what_the_program_says() -> None:
    with running("goabi_states") as program:
        taken = snapshot("-e", "none", str(program.pid))
        uses = by_goid(taken)
        for name, goid in program.names.items():
            if name != "main":
                assert (uses[goid].reason or uses[goid].state) == program.dump[goid].state, name
        assert taken.recent.calls == 0
        chosen = snapshot("-e", "none", "--state", "select", str(program.pid))
        assert chosen.states == {"select": 1}
        assert [use.goid for use in chosen.top] == [program.names["select"]]
        deep = snapshot("-e", "none", "--func", "recurse", str(program.pid))
        assert [use.goid for use in deep.top] == [program.names["recursion"]]
        assert snapshot("-e", "none", "--system", str(program.pid)).goroutines > taken.goroutines


def test_a_stream_goes_on_until_it_is_told_or_the_program_ends() -> None:
    with working() as worker:
        clean = untouched(worker.pid)
        command = ["ptserver", "attach", "--json", "-n", "0.2", str(worker.pid)]
        for end in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with subprocess.Popen(command, stdout=subprocess.PIPE) as attach:
                assert attach.stdout is not None
                first, second = decode(attach.stdout.readline()), decode(attach.stdout.readline())
                assert second.monotonic_ns - second.interval_ns == first.monotonic_ns
                assert second.total.calls == first.total.calls + second.recent.calls
                attach.send_signal(end)
                attach.stdout.read()
                assert attach.wait(30) == 0
            assert untouched(worker.pid) == clean
        with subprocess.Popen(command, stdout=subprocess.PIPE) as attach:
            assert attach.stdout is not None
            attach.stdout.readline()
            assert worker.process.stdin is not None
            worker.process.stdin.close()
            last = decode(attach.stdout.read().splitlines()[-1])
            assert last.ended == "the program has ended"
            assert attach.wait(30) == 0


def test_a_reader_that_has_seen_enough() -> None:
    with working() as worker:
        clean = untouched(worker.pid)
        command = ["ptserver", "attach", "--json", "-n", "0.1", str(worker.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as attach:
            assert attach.stdout is not None
            attach.stdout.readline()
            attach.stdout.close()
            assert attach.wait(30) == 0
            assert attach.stderr is not None
            assert attach.stderr.read() == b""
        assert untouched(worker.pid) == clean


def test_text_without_a_terminal() -> None:
    with working() as worker:
        status, out, err = ptserver("attach", "--once", str(worker.pid))
        assert (status, err) == (0, "")
        for word in (
            "goroutines",
            "stacks",
            "states",
            "created at",
            "calls",
            "main.spin",
            "select (no cases)",
        ):
            assert word in out
        assert "\x1b" not in out
        status, message = refusal("attach", str(worker.pid))
        assert (status, message) == (64, "the live view needs a terminal: take --once or --json")


def test_ten_thousand_goroutines_are_copied_in_short_stops() -> None:
    with running("goabi_many", "10000") as program:
        taken = snapshot(str(program.pid))
        assert taken.goroutines >= 10_000
        assert taken.stops >= 10_000 // 512
        assert taken.groups[0].count >= 9_999
        assert len(taken.top) == 200
        assert len(taken.stacks) <= 300


def test_a_program_with_cgo_is_shown_without_the_calls_of_its_c_code() -> None:
    with running("goabi_cgo", cgo=True) as program:
        taken = snapshot(str(program.pid))
        assert taken.goroutines > 0
        assert taken.notes == ("calls that its C code makes are not counted",)


# -- the live view ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def live(worker: Worker, *words: str) -> Iterator[Running]:
    command = ["ptserver", "attach", "-n", "0.2", *words, str(worker.pid)]
    program = build("goroutine_work")
    environment = base_environment() | {"TERM": "xterm"}
    with started(command, program, env=environment, cwd="/", terminal=True) as view:
        view.expect("\x1b[?1049h")  # the other screen
        view.resize(140, 30)
        yield view


def test_the_live_view() -> None:
    with working() as worker:
        clean = untouched(worker.pid)
        with live(worker) as view:
            view.expect("<- main.main")
            assert untouched(worker.pid) != clean
            view.send(b"2")
            view.expect("innermost first")
            view.send(b"/func1\r\r")
            view.expect("main.go:")
            view.send(b"\x1b")
            view.send(b"5")
            view.expect("calls/s")
            view.send(b"3")
            view.resize(40, 10)
            view.expect("select (no")
            view.send(b"q")
            ended = view.finish()
        assert ended.status == 0
        assert ended.stdout.endswith(
            b"\x1b[?25h\x1b[?1049l"
        )  # the cursor is back, and the screen that was there
        assert b"Traceback" not in ended.stdout
        assert untouched(worker.pid) == clean


@pytest.mark.parametrize("how", ["ctrl-c", "terminate", "hang up"])
def test_leaving_the_live_view(how: str) -> None:
    with working() as worker:
        clean = untouched(worker.pid)
        with live(worker) as view:
            view.expect("<- main.main")
            if how == "ctrl-c":
                view.send(b"\x03")
            elif how == "terminate":
                view.signal(signal.SIGTERM)
            else:
                assert view.terminal is not None
                os.dup2(os.open(os.devnull, os.O_RDONLY), view.terminal)  # the window is closed
            status = view.child.wait(30)
        assert status == 0
        assert untouched(worker.pid) == clean


def test_the_end_of_the_program_stays_on_the_screen() -> None:
    with working() as worker, live(worker) as view:
        view.expect("<- main.main")
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        view.expect("the program has ended")
        view.send(b"2q")
        assert view.finish().status == 0


def test_killed_in_the_middle() -> None:
    """The program goes on, and the next attach clears away what was left."""
    with working() as worker:
        clean = untouched(worker.pid)
        with live(worker) as view:
            view.expect("<- main.main")
            view.signal(signal.SIGKILL)
            view.child.wait(30)
        assert untouched(worker.pid) != clean
        before = worker.report()
        while worker.report().reads < before.reads + 20:
            pass
        snapshot(str(worker.pid))
        assert untouched(worker.pid) == clean


# -- what cannot be attached to ------------------------------------------------------------------------------


def test_not_go() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            status, message = refusal("attach", "--once", str(child.pid))
            assert status == 66
            assert f"process {child.pid} (sleep) is not a Go program" in message
            assert f"`ptserver trace {child.pid}`" in message
        finally:
            child.kill()


def test_no_process() -> None:
    assert refusal("attach", "--once", "999999999") == (66, "there is no process 999999999")
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        status, message = refusal("attach", "--once", str(child.pid))
        assert (status, "has exited, and waits for its parent" in message) == (66, True)


@pytest.mark.parametrize("version", [b"go1.20.1", b"go1.99.0"])
def test_another_version(version: bytes, tmp_path: Path) -> None:
    image = build("goabi_states").read_bytes()
    own = re.search(rb"go1\.27\.\d", image)
    assert own
    path = tmp_path / "main"
    path.write_bytes(image.replace(own[0], version))
    path.chmod(0o700)
    with stopped(path, stop=False) as program:
        status, message = refusal("attach", "--once", str(program.pid))
        assert status == 66
        assert version.decode().removeprefix("go") in message
        assert "--force" in message
        taken = snapshot("--force", "-e", "none", str(program.pid))
        assert program.names["select"] in by_goid(taken)


def test_already_traced() -> None:
    script = (
        "import sys; from stepping.tracee_group import TraceeGroup\n"
        "group = TraceeGroup.attach(int(sys.argv[1])); print('traced', flush=True); sys.stdin.read()"
    )
    with working() as worker:
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, "-c", script, str(worker.pid)], stdin=pipe, stdout=pipe
        ) as tracer:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == b"traced\n"
            status, message = refusal("attach", "--once", str(worker.pid))
            assert status == 77
            assert f"already traced by process {tracer.pid} (python" in message
            tracer.kill()
        worker.report()


@needs_root
def test_another_users() -> None:
    with working() as worker:
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        status, out, err = ptserver("attach", "--once", str(worker.pid), prefix=nobody)
        assert (status, out) == (77, "")
        assert "belongs to user 0; CAP_SYS_PTRACE is needed" in err


def test_one_that_job_control_has_stopped_stays_so() -> None:
    with working() as worker:
        clean = untouched(worker.pid)
        os.kill(worker.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
        taken = snapshot(str(worker.pid))
        assert taken.goroutines == len(worker.goids) + 1
        assert taken.recent.calls == 0
        assert Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        os.kill(worker.pid, signal.SIGCONT)
        worker.report()
        assert untouched(worker.pid) == clean


@pytest.mark.parametrize("seconds", [0.0, 0.15, 0.3, 0.6])
def test_ends_while_it_is_attached_to(seconds: float) -> None:
    """Whenever it goes, there is a last snapshot, or one line that says so, and no traceback."""
    pipe = subprocess.PIPE
    with subprocess.Popen([build("goroutine_work")], stdin=pipe, stdout=pipe, text=True) as program:
        try:
            worker = Worker(program)
            command = ["ptserver", "attach", "--json", str(worker.pid)]
            with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as attach:
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline:
                    worker.report()
                program.kill()
                program.wait()
                out, err = attach.communicate(timeout=60)
        finally:
            program.kill()
    assert attach.returncode in (0, 66, 77), err
    assert err.count("\n") <= 1
    assert "Traceback" not in err
    assert err if attach.returncode else decode(out.splitlines()[-1].encode()).ended


@contextlib.contextmanager
def in_a_pid_namespace() -> Iterator[tuple[Worker, int]]:
    """Run the fixture where it knows other numbers of its threads than we do; give it, and its pid here."""
    pipe = subprocess.PIPE
    command = ["unshare", "--pid", "--fork", "--kill-child", build("goroutine_work")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            worker = Worker(process)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield worker, int(children.split()[0])
        finally:
            process.kill()


@needs_root
def test_another_pid_namespace() -> None:
    """Threads are told by their numbers here, and goroutines are found."""
    with in_a_pid_namespace() as (worker, pid):
        clean = untouched(pid)
        uses = by_goid(snapshot_with_cpu(worker.goids["a"], pid))
        assert uses[worker.goids["reader"]].recent.calls > 0
        assert Path(f"/proc/{pid}/task/{uses[1].tid}").exists()
        command = ["ptserver", "trace", "-q", "--json", "-e", "read", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as trace:
            assert trace.stderr is not None
            trace.stderr.readline()
            call = json.loads(trace.stderr.readline())
            trace.send_signal(signal.SIGINT)
            trace.communicate(timeout=30)
        assert call["goid"] == worker.goids["reader"]
        assert Path(f"/proc/{pid}/task/{call['tid']}").exists()
        assert untouched(pid) == clean


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.mark.skipif(not os.access(FREEZER, os.W_OK), reason="needs a freezer of version 1")
def test_a_frozen_one_is_given_up_in_time_and_undisturbed() -> None:
    group = FREEZER / f"ptserver-test-{os.getpid()}"
    with working() as worker:
        clean = untouched(worker.pid)
        group.mkdir()
        try:
            (group / "cgroup.procs").write_text(str(worker.pid))
            (group / "freezer.state").write_text("FROZEN")
            while "FROZEN" not in (group / "freezer.state").read_text():
                pass
            status, message = refusal("attach", "--once", str(worker.pid))
            assert status == 77
            assert "does not stop" in message
        finally:
            (group / "freezer.state").write_text("THAWED")
            (FREEZER / "cgroup.procs").write_text(str(worker.pid))
            group.rmdir()
        worker.report()
        assert untouched(worker.pid) == clean
