"""Each way for a method to answer, with a real program under `ptserver run --server module:Class`."""

import time
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver
from tests.running import started


def under(server: str, *command: str | Path, **options: object) -> tuple[int, str, str]:
    return ptserver("run", "--server", f"tests.process.outcome_servers:{server}", *command, **options)  # type: ignore[arg-type]


def test_a_virtual_file() -> None:
    assert under("Virtual", "/bin/cat", "/virtual/greeting") == (0, "hello from nowhere\n", "")


def test_a_virtual_file_can_be_sought_and_read_again() -> None:
    script = "exec 5</virtual/greeting; head -c 5 <&5; tail -c +1 /virtual/greeting"
    assert under("Virtual", "/bin/sh", "-c", script)[:2] == (0, "hellohello from nowhere\n")


def test_a_virtual_file_is_read_only() -> None:
    status, _, err = under("Virtual", "/bin/sh", "-c", "exec 5</virtual/greeting; echo x >&5")
    assert status != 0
    assert "error" in err


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("the other")
    env = {"REDIRECT_TO": str(tmp_path / "other")}
    assert under("Redirects", "/bin/cat", "/asked/for", env=env) == (0, "the other", "")


def test_another_file_that_is_not_there(tmp_path: Path) -> None:
    env = {"REDIRECT_TO": str(tmp_path / "none")}
    _, _, err = under("Redirects", "/bin/cat", "/asked/for", env=env)
    assert err == "/bin/cat: /asked/for: No such file or directory\n"


def test_another_file_by_a_relative_name(tmp_path: Path) -> None:
    """It is relative to the program's folder, not to the stub host's."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "here").write_text("found")
    script = "cd sub; cat /asked/for"
    result = under("Redirects", "/bin/sh", "-c", script, env={"REDIRECT_TO": "here"}, cwd=tmp_path)
    assert result == (0, "found", "")


@pytest.mark.parametrize(
    ("path", "words"), [("/etc/passwd", "Permission denied"), ("/etc/group", "Disk quota exceeded")]
)
def test_refused(path: str, words: str) -> None:
    assert under("Refuses", "/bin/cat", path) == (1, "", f"/bin/cat: {path}: {words}\n")


def test_changed_on_the_way() -> None:
    status, out, err = under("Louder", "/bin/cat", stdin=b"a cat and a dog\n")
    assert (status, out, err) == (0, "A DOG AND A DOG\n", "")


def test_a_call_that_waits_in_the_program_s_place_holds_nobody_else() -> None:
    command = [
        "ptserver",
        "run",
        "--server",
        "tests.process.outcome_servers:Louder",
        "/bin/bash",
        "-c",
        "cat <&0 & echo started; wait",
    ]
    with none_left(), started(command, Path("/bin/bash"), env=base_environment(), cwd="/") as child:
        child.expect("started\n")  # while cat's read waits
        child.send(b"late\n")
        child.expect("LATE\n")
        assert child.finish().status == 0


def test_a_program_is_killed_while_its_call_waits() -> None:
    command = ["ptserver", "run", "--server", "tests.process.outcome_servers:Louder", build("stdin"), "lines"]
    with none_left(), started(command, build("stdin"), env=base_environment(), cwd="/") as child:
        child.expect("ready\n")
        child.signal(15)
        assert child.child.wait(20) == -15


def test_delays_hold_their_own_thread_only(tmp_path: Path) -> None:
    script = "(cat slow 2>&1; echo slow) & (cat quick; echo quick) & wait"
    (tmp_path / "quick").write_text("")
    start = time.monotonic()
    status, out, _ = under("Slow", "/bin/bash", "-c", script, cwd=tmp_path)
    assert time.monotonic() - start >= 1
    assert (status, out) == (0, "quick\ncat: slow: Input/output error\nslow\n")


def test_a_delayed_call_may_proceed(tmp_path: Path) -> None:
    (tmp_path / "slower").write_text("content")
    start = time.monotonic()
    assert under("Slow", "/bin/cat", "slower", cwd=tmp_path) == (0, "content", "")
    assert time.monotonic() - start >= 1.5


def test_the_descriptor_of_a_virtual_file_closes_on_exec_if_asked() -> None:
    # Python adds O_CLOEXEC to each open, so the kernel's own call is made through libc.
    source = (
        "import ctypes, fcntl, os\nlibc = ctypes.CDLL(None)\n"
        "for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CLOEXEC):\n"
        "    print(fcntl.fcntl(libc.open(b'empty', flags), fcntl.F_GETFD))\n"
    )
    assert under("OpensEmpty", "python3", "-S", "-c", source) == (0, "0\n1\n", "")


def test_hooks_are_called_in_order() -> None:
    script = "cd /tmp; cat /etc/hostname >/dev/null; exit 3"
    status, _, err = under("Hooks", "/bin/sh", "-c", script)
    lines = [line.removeprefix("ptserver: ") for line in err.splitlines()]
    assert status == 3
    assert lines[0] == "started /bin/sh host"
    assert "openat -100 0 True" in lines
    assert lines[-2:] == ["exited 3 0", "ended"]


def test_a_killed_program_is_reported_with_its_signal() -> None:
    status, _, err = under("Hooks", "/bin/sh", "-c", "kill -KILL $$")
    assert status == -9
    assert [line.removeprefix("ptserver: ") for line in err.splitlines()][-2:] == ["exited None 9", "ended"]


def test_a_server_signals_its_program() -> None:
    script = "trap 'echo caught; exit 4' USR1; cat /signal/me 2>/dev/null; sleep 5 & wait"
    assert under("Signals", "/bin/sh", "-c", script)[:2] == (4, "caught\n")


def test_a_server_hears_of_threads() -> None:
    status, out, err = under("Threads", build("goroutines"))
    assert (status, out.splitlines()[0]) == (0, "pipeline: 4615000")
    created = err.splitlines().count("ptserver: thread created")
    exited = err.splitlines().count("ptserver: thread exited")
    assert created >= 2
    assert exited <= created
