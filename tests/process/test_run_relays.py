"""Local descriptors in programs that a program executes, from the command line: what natively happens to them."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver
from tests.process.session_client import only_session
from tests.process.test_serve import serving
from tests.running import started


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        yield server.address


@pytest.mark.parametrize("parts", [(), pytest.param(("many",), marks=pytest.mark.slow)], ids=["all", "many"])
def test_what_is_executed_uses_files_of_this_machine_as_natively(
    address: str, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    program = build("handed")
    for side in ("native", "remote"):
        (tmp_path / side).mkdir()
    native = subprocess.run(
        [program, tmp_path / "native", *parts], capture_output=True, text=True, check=False, timeout=60
    )
    local = tmp_path / "remote"
    status, out, err = ptserver("run", "--server", address, "--local", local, program, local, *parts)
    assert out.splitlines() == native.stdout.splitlines()
    assert (status, err) == (native.returncode, native.stderr) == (0 if parts else 7, "")
    if not parts:
        assert (local / "exec-out").read_text() == "read\n"


@pytest.mark.parametrize("stdin", ["pipe", pytest.param("file", marks=pytest.mark.slow)])
def test_local_standard_streams_are_those_of_what_is_executed(
    address: str, tmp_path: Path, stdin: str
) -> None:
    script = (
        "echo mine; /bin/echo from the server; /bin/sh -c 'read a; echo $a'; /bin/echo as well >&2;"
        " read b; echo $b; /bin/sh -c 'read c; echo $c'; ! read d"
    )
    (tmp_path / "in").write_bytes(b"one\ntwo\nthree\n")
    given = "/bin/cat in |" if stdin == "pipe" else "<in"
    command = f'{given} ptserver run --server {address} --local stdio /bin/sh -c "$1"'
    with none_left():
        done = subprocess.run(
            ["/bin/sh", "-c", command, "sh", script],
            cwd=tmp_path,
            env=base_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.stdout.splitlines() == ["mine", "from the server", "one", "two", "three"]
    assert (done.returncode, done.stderr) == (0, "as well\n")


def test_a_line_of_a_local_terminal_goes_to_who_reads_it(address: str) -> None:
    script = "/bin/sh -c 'echo ready; read a; echo got $a'; read b; echo then $b; [ -t 0 ] && echo terminal"
    command = ["ptserver", "run", "--server", address, "--local", "stdio", "/bin/sh", "-c", script]
    with (
        none_left(),
        started(command, Path("/bin/sh"), env=base_environment(), cwd="/", terminal=True) as child,
    ):
        child.expect("ready\r\n")
        child.send(b"first\n")
        child.expect("got first\r\n")
        child.send(b"second\n")
        child.expect("then second\r\nterminal\r\n")
        assert child.finish().status == 0


def test_a_server_that_knows_no_relays_has_them_closed(address: str, tmp_path: Path) -> None:
    (tmp_path / "side").write_text("here\n")
    side = tmp_path / "side"
    script = f"exec 5<{side} 7<{side}; /bin/sh -c '{{ true <&5; }} 2>/dev/null || echo closed'; read a <&5; echo $a"
    with without_relays(address) as proxy:
        run = ("run", "--server", proxy, "--local", tmp_path, "/bin/sh", "-c", script)
        status, out, err = ptserver(*run)
    assert (status, out.splitlines()) == (0, ["closed", "here"]), err
    assert "finds descriptors 5, 7 of this machine closed" in err


@contextlib.contextmanager
def without_relays(address: str) -> Iterator[str]:
    """The address of the server at *address*, as one whose welcome does not speak of relays."""
    host, _, port = address.rpartition(":")

    def carry(source: socket.socket, target: socket.socket, word: bytes) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data.replace(word, b'"unknown"'[: len(word) - 1] + b'"', 1) if word else data)
                word = b""
            target.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection((host, int(port))) as server:
                back = threading.Thread(target=carry, args=(server, client, b'"relays"'))
                back.start()
                carry(client, server, b"")
                back.join()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(20)


def test_what_cannot_be_relayed_is_closed_and_told_and_what_takes_no_more_a_closed_pipe(
    address: str, tmp_path: Path
) -> None:
    run = ("run", "--server", address, "--local", tmp_path, "--local", "/dev/full")
    script = f"exec 5<{tmp_path}; /bin/sh -c '{{ true <&5; }} 2>/dev/null || echo closed'; exec 5>&-"
    status, out, err = ptserver(*run, "/bin/sh", "-c", f"{script}; /usr/bin/yes >/dev/full; echo $?")
    assert (status, out) == (0, f"closed\n{128 + signal.SIGPIPE}\n")
    assert "finds descriptors 5 of this machine closed" in err


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["server", "host"])
def test_who_is_lost_ends_what_was_executed(tmp_path: Path, lost: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    script = f"exec 5<>{tmp_path}/fifo; /bin/sh -c 'echo ready; read a <&5'; echo read"
    with none_left(), serving("passthrough", "--listen", "127.0.0.1:0") as server:
        command = ["ptserver", "run", "--server", server.address, "--local", str(tmp_path)]
        with started(
            [*command, "/bin/sh", "-c", script], Path("/bin/sh"), env=base_environment(), cwd="/"
        ) as child:
            child.expect("ready\n")
            if lost == "host":
                child.signal(signal.SIGKILL)
            else:
                os.kill(only_session(server.zygote), signal.SIGKILL)
            assert child.finish().status == (-signal.SIGKILL if lost == "host" else 69)
