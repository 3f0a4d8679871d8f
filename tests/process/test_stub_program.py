"""Programs with the stub under a stub host's double: they behave as they do without the stub, until it is lost."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from ptserver.stub.hypercalls import MESSAGE_BYTES, Hypercall, encode_info, encode_marker, encode_message
from tests.gofixtures import DEFAULT_GO, GO_VERSIONS, build
from tests.process.stub_double import StubDouble

EVERY_GO = [
    version if version == DEFAULT_GO else pytest.param(version, marks=pytest.mark.goversions)
    for version in GO_VERSIONS
]
every_go = pytest.mark.parametrize("go", EVERY_GO)

LOST = "panic: remote: lost connection to runtime server: "


def normalised(text: str) -> str:
    """Text of a traceback without what the layout of memory and code decides."""
    return re.sub(r"0x[0-9a-f]+", "0x?", text)


def run(program: Path, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        input="",
    )
    return done.returncode, done.stdout, done.stderr


def run_stub(
    program: Path, *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    with StubDouble(program, *arguments, environment=environment) as double:
        result = double.finish()
        assert double.calls[0][0] == Hypercall.HELLO
        return result


@every_go
def test_hello_says_what_the_marker_says_and_comes_before_every_init(go: str) -> None:
    with StubDouble(build("stub_info", go=go, stub=True), refuse=(95, b"server says no\0")) as double:
        code, out, err = double.finish()
    assert (code, out) == (2, "")
    assert err.startswith("panic: server says no\n\ngoroutine 1 [running")
    # Once, or again and the same if a signal came in between.
    assert {(number, request) for number, _, request in double.calls} == {
        (Hypercall.HELLO, encode_marker("linux"))
    }


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "remote: the runtime server refused this program"),
        (encode_message("é" * MESSAGE_BYTES), "é" * ((MESSAGE_BYTES - 1) // 2)),
        (b"x" * MESSAGE_BYTES, "x" * (MESSAGE_BYTES - 1)),
    ],
    ids=["none", "cut", "unterminated"],
)
def test_a_refusal_without_a_proper_message_is_still_a_panic(message: bytes, said: str) -> None:
    with StubDouble(build("stub_info", stub=True), refuse=(1, message)) as double:
        code, out, err = double.finish()
    assert (code, out, err.splitlines()[0]) == (2, "", f"panic: {said}")


@every_go
def test_info_and_the_arguments(go: str) -> None:
    info = {
        "name": "double",
        "version": "1.2",
        "session": "s",
        "host": "there",
        "goosremote": "linux",
        "later": "x",
    }
    environment = os.environ | {"GO_REMOTE": "localhost:1"}
    program = build("stub_info", go=go, stub=True)
    arguments = ["a", "-go.remote=x:1", "--go.remote=y", "-go.remote", "b", "--", "-go.remote=z"]
    with StubDouble(
        program, *arguments, argv0="name", info=encode_info(info), environment=environment
    ) as double:
        code, out, err = double.finish()
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "init",
        "connected true",
        "{Name:double Version:1.2 Session:s Host:there GOOSRemote:linux}",
        'args ["name" "a" "-go.remote" "b" "--" "-go.remote=z"]',
        'GO_REMOTE "localhost:1" true',
    ]


def test_info_longer_than_the_first_buffer() -> None:
    info = encode_info({"later": "x" * 5000, "host": "there"})
    with StubDouble(build("stub_info", stub=True), info=info) as double:
        _, out, _ = double.finish()
        assert double.count(Hypercall.INFO) >= 3  # Connected, then Info twice
    assert "Host:there" in out


@every_go
def test_a_lost_connection_is_a_panic_with_all_goroutines(go: str) -> None:
    with StubDouble(build("stub_blocked", go=go, stub=True)) as double:
        assert double.read_until("ready") == "ready\n"
        double.wait_for_watch()
        double.lose(encode_message("the server has died"))
        code, out, err = double.finish()
    assert (code, out) == (2, "")
    assert err.startswith(LOST + "the server has died\n\ngoroutine 1 [")
    assert "\nmain.main()\n" in err
    for function in ("waitsForChannel", "waitsForMutex", "sleeps", "reads", "runs", "locked"):
        assert f"main.{function}(" in err, function
    assert "remoteWatch" not in err
    assert "runtime stack" not in err


@every_go
def test_a_connection_lost_during_garbage_collection(go: str) -> None:
    with StubDouble(build("stub_blocked", go=go, stub=True), "collect") as double:
        assert double.read_until("ready") == "ready\n"
        double.wait_for_watch()
        double.lose(encode_message("gone"))
        code, _, err = double.finish()
    assert code == 2
    assert err.startswith(LOST + "gone\n\ngoroutine ")
    assert "main.sleeps(" in err


@pytest.mark.parametrize(
    ("reason", "said"),
    [(b"", "no reason given"), (b"x" * MESSAGE_BYTES, "x" * (MESSAGE_BYTES - 1))],
    ids=["none", "unterminated"],
)
def test_a_connection_lost_without_a_proper_reason(reason: bytes, said: str) -> None:
    with StubDouble(build("stub_info", stub=True), "wait") as double:
        double.wait_for_watch()
        double.lose(reason)
        code, _, err = double.finish()
    assert (code, err.splitlines()[0]) == (2, LOST + said)


def test_a_stub_host_that_dies() -> None:
    with StubDouble(build("stub_info", stub=True), "wait") as double:
        double.read_until("waiting")
        double.wait_for_watch()
        double.abandon()
        code, _, err = double.finish()
    assert (code, err.splitlines()[0]) == (2, LOST + "the stub host is gone")
    assert "main.main()" in err


@pytest.mark.parametrize("level", ["none", "single", "system"])
def test_gotraceback_decides_what_a_lost_connection_shows(level: str) -> None:
    environment = os.environ | {"GOTRACEBACK": level}
    with StubDouble(build("stub_blocked", stub=True), environment=environment) as double:
        assert double.read_until("ready") == "ready\n"
        double.wait_for_watch()
        double.lose(b"gone\0")
        code, _, err = double.finish()
    assert (code, err.splitlines()[0]) == (2, LOST + "gone")
    assert ("main.sleeps(" in err) == (level != "none")
    assert ("runtime.remoteWatchThread()" in err) == (level == "system")


@every_go
def test_nothing_of_the_stub_shows_among_the_goroutines(go: str) -> None:
    environment = os.environ | {"GOMAXPROCS": "1"}  # so that goroutine numbers come in one order
    native = run(build("stub_goroutines", go=go), environment=environment)
    assert native[0] == 0
    assert run_stub(build("stub_goroutines", go=go, stub=True), environment=environment) == native


@every_go
@pytest.mark.parametrize(
    "kind", ["channel", "select", "mutex", "goexit", "late", "init-channel", "init-select", "init-mutex"]
)
def test_deadlocks_are_found(go: str, kind: str) -> None:
    native = run(build("stub_deadlock", go=go), kind)
    stubbed = run_stub(build("stub_deadlock", go=go, stub=True), kind)
    assert native[0] == 2
    assert native[2].startswith("fatal error: ")
    assert "deadlock!" in native[2].splitlines()[0]
    assert stubbed[:2] == native[:2]
    # The message and the first goroutine; which numbers the others have differs from run to run.
    assert normalised(stubbed[2]).split("\n\n")[:2] == normalised(native[2]).split("\n\n")[:2]


@every_go
@pytest.mark.parametrize(
    "task",
    ["locked", "signals", "gc", "children", "self", "setgid", "timers", "profile", "maxthreads", "exec"],
)
def test_the_runtime_works_as_without_the_stub(go: str, task: str) -> None:
    native = run(build("stub_runtime", go=go), task)
    assert native[0] == 0
    assert native[1]
    assert run_stub(build("stub_runtime", go=go, stub=True), task) == native


def test_calls_of_all_threads_interrupt_watch_and_it_goes_on() -> None:
    with StubDouble(build("stub_runtime", stub=True), "setgid", "locked") as double:
        code, out, _ = double.finish()
        assert double.count(Hypercall.WATCH) > 1
    assert (code, out.count("<nil>")) == (0, 10)


def test_a_child_with_the_stub_says_hello_itself() -> None:
    with StubDouble(build("stub_runtime", stub=True), "self") as double:
        code, out, _ = double.finish()
        assert len({pid for number, pid, _ in double.calls if number == Hypercall.HELLO}) == 2
    assert (code, out) == (0, "self locked true\n<nil>\n")


def test_the_stub_adds_one_thread() -> None:
    with StubDouble(build("stub_info", stub=True), "wait") as double:
        double.wait_for_watch()
        ((tid, _, size, _),) = double.watching()
        assert Path(f"/proc/{double.process.pid}/task/{tid}").is_dir()
        assert tid != double.process.pid
        assert size == MESSAGE_BYTES


def test_a_program_that_ends_at_once() -> None:
    program = build("hello", stub=True)
    for _ in range(20):
        assert run_stub(program, "x") == (0, "hello, world\narg 1: x\n", "")


@pytest.mark.parametrize(
    "flags", [("-buildmode=pie",), ("-ldflags=-s -w",), ("-gcflags=all=-N -l",), ("-trimpath",)], ids="".join
)
def test_kinds_of_builds(flags: tuple[str, ...]) -> None:
    program = build("stub_info", flags=flags, stub=True)
    assert run(program)[:2] == (2, "")
    with StubDouble(program, "wait", info=encode_info({"name": "n"})) as double:
        out = double.read_until("waiting")
        double.wait_for_watch()
        double.lose(b"gone\0")
        code, _, err = double.finish()
    assert code == 2
    assert out.startswith("init\nconnected true\n{Name:n ")
    assert err.startswith(LOST + "gone\n\ngoroutine 1 [")


@every_go
def test_cgo(go: str) -> None:
    program = build("stub_cgo", go=go, cgo=True, stub=True)
    native = run(build("stub_cgo", go=go, cgo=True))
    assert native[0] == 0
    assert run_stub(program) == native
    assert run(program)[2].startswith("panic: remote binary requires runtime server\n")
    with StubDouble(program, "wait") as double:
        assert double.read_until(native[1].rstrip()) == native[1]
        double.wait_for_watch()
        double.lose(b"gone\0")
        code, _, err = double.finish()
    assert code == 2
    assert err.startswith(LOST + "gone\n\ngoroutine 1 [")
