"""Programs that use what is of two machines at once, as rules say, from the command line."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.process.commands import ptserver, refusal
from tests.process.test_serve import Server, serving
from tests.running import started

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give the server other files")

PARTS = ("files", "folders", "numbers", "copies", "epoll", "poll", "select", "cwd", "streams")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder here, one of the server's, as the program names both, and the server's root."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(0o755)
    root, here, there = tmp_path / "root", tmp_path / "sides/here", tmp_path / "sides/there"
    for side, folder in (("here", here), ("there", root / there.relative_to("/"))):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        (folder / "side").write_text(f"{side}\n")
        (folder / "large").write_bytes(bytes(300_000))
        (folder / "large").chmod(0o644)
    return here, there, root


@needs_root
@pytest.mark.parametrize("given", ["options", "file", pytest.param("emulated", marks=pytest.mark.slow)])
def test_a_program_uses_two_machines_at_once(
    folders: tuple[Path, Path, Path], tmp_path: Path, given: str
) -> None:
    here, there, root = folders
    words: tuple[str | Path, ...] = ("--local", str(here))
    if given == "file":
        (tmp_path / "rules.toml").write_text(f'local = ["{here}"]\n')
        words = ("--rules", str(tmp_path / "rules.toml"))
    if given == "emulated":
        words = ("--engine=emulate", *words)
    with serving("passthrough", "--listen", "127.0.0.1:0", "--root", str(root), "--user", "nobody") as server:
        status, out, err = ptserver(
            "run", "--server", server.address, *words, build("mixture"), str(here), str(there)
        )
    assert out.splitlines() == [f"{part}: ok" for part in PARTS]
    assert (status, err) == (0, "")
    assert (here / "written").read_text() == "seen here\n"
    assert (root / there.relative_to("/") / "written").read_text() == "seen there\n"
    assert not there.exists()


@pytest.fixture
def secluded() -> Iterator[Server]:
    """A server whose sessions reach nobody and listen nowhere."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to confine the server's sessions")
    at = ("--listen", "127.0.0.1:0", "--user", "nobody")
    with serving("passthrough", *at, "--connect", "none", "--bind", "none") as server:
        yield server


def test_a_port_may_be_of_this_machine(secluded: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def say() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"hello from here")

        speaking = threading.Thread(target=say)
        speaking.start()
        words = ("/", "/", "network", "dial", f"127.0.0.1:{port}")
        run = ("run", "--server", secluded.address)
        status, out, _ = ptserver(*run, build("mixture"), *words)
        assert (status, "dial: dial tcp" in out, "permission denied" in out) == (0, True, True)
        status, out, err = ptserver(*run, "--local", f"connect:{port}", build("mixture"), *words)
        assert (status, out, err) == (0, "dial: hello from here <nil>\n", "")
        speaking.join()


def test_a_program_may_listen_at_this_machine(secluded: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    program = build("mixture")
    command = ["ptserver", "run", "--server", secluded.address, "--local", f"listen:{port}", program]
    words = ["/", "/", "network", "listen", f"127.0.0.1:{port}"]
    with started([*command, *words], program, env=base_environment(), cwd="/") as child:
        child.expect(f"listening 127.0.0.1:{port}\n")
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            assert connection.makefile("rb").read() == b"hello from the program"
        child.expect("served\n")
        assert child.finish().status == 0


@needs_root
def test_a_unix_socket_is_of_the_machine_that_has_its_path(folders: tuple[Path, Path, Path]) -> None:
    here, there, root = folders
    heard: list[tuple[bytes, bytes]] = []

    def exchange(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, 100, 1)
            with open(fds[0], "rb") as passed:
                heard.append((data, passed.read()))
            own = os.memfd_create("own")
            os.pwrite(own, b"written here", 0)
            socket.send_fds(connection, [b"take it"], [own])
            os.close(own)

    with (
        socket.socket(socket.AF_UNIX) as listener,
        serving("passthrough", "--listen", "127.0.0.1:0", "--root", str(root), "--user", "nobody") as server,
    ):
        listener.bind(str(here / "socket"))
        listener.listen()
        answering = threading.Thread(target=exchange, args=(listener,), daemon=True)
        answering.start()
        run = ("run", "--server", server.address, "--local", str(here))
        words = (build("mixture"), str(here), str(there), "network")
        status, out, err = ptserver(*run, *words, "unix", str(here / "socket"))
        answering.join(20)
        assert heard == [(b"x", b"here\n")]
        assert out.splitlines() == [
            "passed true <nil>",
            "passed false write unix @: sendmsg: invalid argument",
            'got "take it", and "written here" as the number before true',
            "unix: <nil>",
        ]
        assert (status, err.count("\n"), "cannot be passed on" in err) == (0, 1, True)
        command = ["ptserver", *run, *words, "unix-listen", str(here / "program")]
        with started(command, build("mixture"), env=base_environment(), cwd="/") as child:
            child.expect(f"listening {here}/program\n")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(str(here / "program"))
                assert sock.makefile("rb").read() == b"hello from the program"
            child.expect("served <nil> <nil> <nil>\n")
            assert child.finish().status == 0
    assert not (here / "program").exists()


def test_standard_streams_may_be_this_processs_own(secluded: Server) -> None:
    program = build("stdin")
    for rules in ((), ("--local", "stdio")):
        status, out, err = ptserver("run", "--server", secluded.address, *rules, program, stdin=b"one\ntwo\n")
        assert status == 0
        assert err == ""
        assert out.count("\n") == 2 or "8" in out, out


def test_what_a_program_executes_has_the_descriptors_of_both_machines(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/side").write_text("here\nand\nthere\n")
    (tmp_path / "there").write_text("there\n")
    inner = "read a <&6; echo $a; read b <&5; echo $b"
    opening = "exec 5<here/side 6<there 7<here/side"
    script = f"{opening}; /bin/sh -c '{inner}'; /no/such; read b <&7; echo $b; exec /bin/sh -c '{inner}'"
    with serving("passthrough", "--listen", "127.0.0.1:0", cwd=tmp_path) as server:
        run = ("run", "--server", server.address, "--local", f"{tmp_path}/here")
        status, out, err = ptserver(*run, "/bin/sh", "-c", script)
    assert (status, out.splitlines()) == (0, ["there", "here", "here", "", "and"]), err


def test_names_of_the_environment_may_be_of_this_machine(secluded: Server) -> None:
    run = ("run", "--server", secluded.address)
    own = {"HERE_A": "a", "HERE_B": "b", "OTHER": "o"}
    _, out, _ = ptserver(*run, build("environment"), env=own)
    assert "HERE_A" not in out
    rules = ("--local", "env:HERE_*", "--remote", "env:HERE_B", "--local", "env:USER")
    _, out, _ = ptserver(*run, *rules, build("environment"), env=own)
    assert "HERE_A=a" in out
    assert "HERE_B" not in out
    assert "OTHER" not in out
    assert "USER=nobody" not in out  # local, and there is none here


@needs_root
def test_what_cannot_be_had_is_refused_and_told(folders: tuple[Path, Path, Path]) -> None:
    here, _, _ = folders
    program = here / "program"
    program.write_bytes(build("hello").read_bytes())
    program.chmod(0o755)
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        run = ("run", "--server", server.address, "--local", str(here))
        status, out, err = ptserver(*run, build("command"), str(program))
        assert (status, "permission denied" in out) == (0, True)
        assert (
            err
            == "ptserver: programs are executed at the server: neither they nor their folder may be local\n"
        )
        status, out, err = ptserver(*run, build("command"), "/bin/echo", "at the server")
        assert (status, out, err) == (0, "at the server\n<nil>\n", "")


@needs_root
def test_a_local_file_is_mapped_itself(folders: tuple[Path, Path, Path]) -> None:
    here, _, _ = folders
    (here / "side").write_text("here")
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        run = ("run", "--server", server.address, "--local", str(here))
        status, out, err = ptserver(*run, build("mixture"), str(here), "/", "mapping")
    assert (status, err) == (0, "")
    assert out == 'mapping: "here", then "Mere" <nil>, then "writ" <nil> <nil>\n'
    assert (here / "side").read_text() == "written"


def test_rules_are_explained() -> None:
    rules = ("--local", "/etc/ssl", "--remote", "/etc/ssl/private", "--local", "env:AWS_*")
    status, out, err = ptserver("run", *rules, "--explain", "/etc/ssl/certs/../x")
    assert (status, err) == (0, "")
    assert out == "/etc/ssl/x: local, this machine serves it; by the rule /etc/ssl (--local)\n"
    _, out, _ = ptserver("run", *rules, "--explain", "/etc/ssl/private/key", "--json")
    assert json.loads(out) == {
        "subject": "/etc/ssl/private/key",
        "side": "remote",
        "rule": "/etc/ssl/private",
        "origin": "--remote",
    }
    _, out, _ = ptserver("run", "--explain", "connect:80", "--json")
    assert json.loads(out) == {"subject": "connect:80", "side": "remote", "rule": None, "origin": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--local", "etc", "./main"), "'etc' is no rule"),
        (("--rules", "/nowhere", "./main"), "cannot read the rules in /nowhere"),
        (("--explain", "etc"), "is nothing that rules are about"),
        (("--local", "/etc", "/bin/true"), "they belong to --server ADDR"),
        (("--local", "/etc", "--server", "fake_hosts", "/bin/true"), "they belong to --server ADDR"),
        (("--local", "/etc", "--on", "localhost:1", "/bin/true"), "they belong to --server ADDR"),
        (("--server", "localhost:1"), "Missing argument 'PROGRAM'"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], said: str) -> None:
    status, line = refusal("run", *words)
    assert status == 64
    assert said in line
