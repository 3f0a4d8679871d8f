"""`ptserver serve` as a process: what it prints, refuses, survives and leaves behind."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_client import TIMEOUT, Client, children, hello, only_session

from ptserver.errors import ConnectionLostError, RefusedError
from ptserver.keys import make_keys
from ptserver.messages import Refused
from ptserver.net.reach import reach
from ptserver.net.transport import connect

PTSERVER = [sys.executable, "-c", "import cli; cli.main()"]


class Server:
    """A running `ptserver serve`."""

    def __init__(self, *arguments: str, cwd: Path | None = None) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [*PTSERVER, "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment,
        )
        assert self.process.stdout is not None
        self.announcement = self.process.stdout.readline().rstrip("\n")
        self.address = self.announcement.rpartition(" ")[2]
        self.clients: list[Client] = []

    @property
    def zygote(self) -> int:
        (pid,) = children(self.process.pid)
        return pid

    def open(self, token: str = "") -> Client:
        client = Client(connect(self.address), hello(token=token))
        self.clients.append(client)
        return client

    def wait_sessions(self, count: int) -> None:
        deadline = time.monotonic() + TIMEOUT
        while len(children(self.zygote)) != count:
            assert time.monotonic() < deadline, children(self.zygote)
            os.sched_yield()

    def stop(self, signo: int = signal.SIGTERM) -> tuple[int, str]:
        """Return the exit status and what was logged."""
        self.process.send_signal(signo)
        _, log = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, log


@contextlib.contextmanager
def serving(*arguments: str, cwd: Path | None = None) -> Iterator[Server]:
    server = Server(*arguments, cwd=cwd)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
        for client in server.clients:
            client.close()


def run(*arguments: str) -> tuple[int, str, str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*PTSERVER, "serve", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_it_announces_serves_and_ends_with_its_sessions(signo: int) -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        assert re.fullmatch(r"ptserver: serving passthrough on 127\.0\.0\.1:[1-9]\d*", server.announcement)
        clients = [server.open() for _ in range(3)]
        reading, _ = clients[0].pipe()
        clients[0].start("read", reading, 1, 1, outs={1: 1})
        assert clients[1].call("getuid").value == os.getuid()
        clients[2].exit()
        server.wait_sessions(2)
        zygote = server.zygote
        status, log = server.stop(signo)
        assert status == 0
        assert not Path(f"/proc/{zygote}").exists()
        assert clients[1].wait_for(Refused).message == "the server is stopping"
        assert len(re.findall(r"^ptserver: \[\w+-\d\] runs /bin/program -x for testhost$", log, re.M)) == 3
        assert len(re.findall(r"ended after", log)) == 1
        assert len(re.findall(r"stopped: the server is stopping", log)) == 2


def test_a_unix_socket_a_log_file_and_json(tmp_path: Path) -> None:
    path, log = tmp_path / "socket", tmp_path / "log"
    with serving("tracelogger", "--listen", f"unix:{path}", "--log", str(log), "--json") as server:
        announced = json.loads(server.announcement)
        assert announced == {
            "serving": "tracelogger",
            "address": f"unix:{path}",
            "pid": server.process.pid,
        }
        server.address = announced["address"]
        client = server.open()
        client.call("getuid")
        client.exit()
        assert server.stop() == (0, "")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert f"getuid() = {os.getuid()}" in entries[1]["text"]
    assert {entry["session"] for entry in entries} == {client.welcome.session}
    assert not path.exists()


def test_a_class_of_the_users_own_prints_where_the_server_does(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from ptserver.server import *\n"
        "class Mine(RuntimeServer):\n"
        "    def getuid(self, call):\n"
        "        print('asked by', call.tid)\n"
        "        return call.answer(7)\n"
        "    def getgid(self, call):\n"
        "        raise PermissionError(1, 'no')\n"
        "    def geteuid(self, call):\n"
        "        return 1 // 0\n"
    )
    with serving("mine:Mine", "--listen", "127.0.0.1:0", cwd=tmp_path) as server:
        assert server.announcement.startswith("ptserver: serving Mine on ")
        client = server.open()
        assert client.call("getuid").value == 7
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "asked by 4322\n"
        assert client.call("getgid").errno == 1
        client.start("geteuid")
        assert client.wait_for(Refused).code == "internal"
        client.wait_lost()
        assert server.open().call("getuid").value == 7
        status, log = server.stop()
        assert (status, "ZeroDivisionError" in log) == (0, True)


def test_a_token_is_wanted_and_compared(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("0123456789abcdef\n")
    with serving("passthrough", "--listen", "127.0.0.1:0", "--token-file", str(token_file)) as server:
        with pytest.raises(RefusedError, match="token is wrong or missing"):
            server.open("0123456789abcdee")
        assert server.open("0123456789abcdef").call("getuid").errno == 0


def test_other_machines_come_in_by_tls_alone(tmp_path: Path, keys: Path) -> None:
    with serving("passthrough", "--listen", "0.0.0.0:0", "--keys", str(keys / "server")) as server:
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(RefusedError, match="TLS is wanted here"):
            server.open()
        stream, _ = reach(server.address, str(keys / "client"))
        client = Client(stream, hello())
        assert client.call("getuid").value == os.getuid()
        data = os.urandom(3 << 20)
        (tmp_path / "file").write_bytes(data)
        fd = client.open(tmp_path / "file")
        assert b"".join(client.read(fd, 1 << 20) for _ in range(3)) == data
        client.exit()
        status, log = server.stop()
        assert status == 0
        assert "refused: TLS is wanted here" in log


def test_the_server_alone_may_have_a_certificate_if_there_is_a_token(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["localhost"], days=1, token=True)
    with serving("passthrough", "--listen", "0.0.0.0:0", "--keys", str(tmp_path / "keys/server")) as server:
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        for token in ("", "wrong"):
            stream, right = reach(server.address, str(tmp_path / "keys/client"))
            with pytest.raises(RefusedError, match="token is wrong or missing"):
                Client(stream, hello(token=token))
        stream, right = reach(server.address, str(tmp_path / "keys/client"))
        client = Client(stream, hello(token=right))
        assert client.call("getuid").value == os.getuid()
        client.exit()
    (tmp_path / "keys/server/token").unlink()
    status, _, error = run("passthrough", "--listen", "0.0.0.0:0", "--keys", str(tmp_path / "keys/server"))
    assert status == 64
    assert "whoever connects acts with your rights: put ca.pem into the folder of keys" in error


def test_who_says_nothing_keeps_nobody_waiting_but_himself() -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0", "--max-sessions", "3") as server:
        port = int(server.address.rpartition(":")[2])

        def silent(source: str) -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), TIMEOUT, (source, 0))

        crowd = [silent("127.0.0.2") for _ in range(200)]
        assert server.open().call("getuid").errno == 0
        assert len(children(server.zygote)) <= 1 + 16  # guards
        crowded_out = crowd[-1]
        assert crowded_out.recv(1) == b""  # the peer has more than enough
        for sock in crowd:
            sock.close()


def test_too_many_sessions_are_refused_and_room_is_made() -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0", "--max-sessions", "2") as server:
        first, _ = server.open(), server.open()
        with pytest.raises(RefusedError, match="as many sessions already as it takes"):
            server.open()
        first.exit()
        server.wait_sessions(1)
        deadline = time.monotonic() + TIMEOUT
        while True:  # the acceptor hears of the end a moment after the process is gone
            try:
                assert server.open().call("getuid").errno == 0
                break
            except RefusedError:
                assert time.monotonic() < deadline


def test_hostile_clients_harm_themselves_alone() -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        good = server.open()
        host, _, port = server.address.rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(10)]
        flooding = socket.create_connection((host, int(port)))
        with contextlib.suppress(OSError):
            for _ in range(64):
                flooding.sendall(os.urandom(65536))
        for sock in silent[:5]:
            sock.sendall(b"\0\0\1\0{")
        assert good.call("getuid").errno == 0
        flooding.close()
        for sock in silent[5:]:
            sock.close()
        for sock in silent[:5]:
            assert b"did not complete its hello within 5 s" in sock.recv(4096)
            sock.close()
        server.wait_sessions(1)
        assert good.call("getuid").errno == 0


@pytest.mark.parametrize("sessions", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_many_sessions_leave_nothing_behind(sessions: int) -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:

        def footprint() -> tuple[int, int, int]:
            fds = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (server.process.pid, server.zygote))
            pages = [
                int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                for pid in (server.process.pid, server.zygote)
            ]
            return fds, pages[0], pages[1]

        def many(count: int) -> None:
            for number in range(count):
                client = server.open()
                client.open("/etc/passwd")
                if number % 3 == 0:
                    client.close()
                else:
                    client.exit()
            server.wait_sessions(0)

        many(20)
        before = footprint()
        many(sessions)
        after = footprint()
        assert after[0] == before[0]
        assert after[1] <= before[1] * 1.05
        assert after[2] <= before[2] * 1.05


def test_a_dead_zygote_ends_the_server_with_an_error() -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        client = server.open()
        client.call("getuid")
        zygote = server.zygote
        pidfd = os.pidfd_open(only_session(zygote))
        os.kill(zygote, signal.SIGKILL)
        _, log = server.process.communicate(timeout=TIMEOUT)
        assert server.process.returncode == 70
        assert "the process that starts sessions died" in log
        assert select.select([pidfd], [], [], TIMEOUT)[0], "a session outlived its zygote"
        os.close(pidfd)


def test_what_a_killed_server_leaves_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "ptserver-sessions-of-another-kind").mkdir()
    with serving("passthrough", "--listen", "127.0.0.1:0") as alive:
        (of_alive,) = tmp_path.glob("ptserver-sessions-*/lock")
        with serving("passthrough", "--listen", "127.0.0.1:0") as killed:
            killed.open().call("getuid")
            killed.process.kill()
            killed.process.communicate(timeout=TIMEOUT)
        (left,) = {*tmp_path.glob("ptserver-sessions-*/lock")} - {of_alive}
        with serving("passthrough", "--listen", "127.0.0.1:0") as following:
            assert of_alive.exists()
            assert not left.parent.exists()
            following.open().call("getuid")
        alive.open().call("getuid")
    assert [path.name for path in tmp_path.iterdir()] == ["ptserver-sessions-of-another-kind"]


@pytest.mark.parametrize("options", [(), ("--user", "nobody")], ids=["own user", "another user"])
def test_a_killed_server_takes_its_sessions_with_it(options: tuple[str, ...]) -> None:
    if options and os.geteuid():
        pytest.skip("needs root, to serve as another user")
    with serving("passthrough", "--listen", "127.0.0.1:0", *options) as server:
        client = server.open()
        client.call("getuid")
        zygote = server.zygote
        pidfds = [os.pidfd_open(pid) for pid in (zygote, *children(zygote), only_session(zygote))]
        server.process.kill()
        server.process.communicate(timeout=TIMEOUT)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], TIMEOUT)[0]
            os.close(pidfd)
        with pytest.raises(ConnectionLostError):
            client.wait(lambda: False)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nobody", "--listen", "localhost:0"], 64, "no server 'nobody': expected one of passthrough, "),
        (["no_module_q:Mine", "--listen", "localhost:0"], 64, "there is no module 'no_module_q'"),
        (["os:environ", "--listen", "localhost:0"], 64, "not a subclass of ptserver.server.RuntimeServer"),
        (["passthrough", "--listen", "nonsense"], 64, "is no address"),
        (["passthrough", "--listen", "localhost:99999"], 64, "is no port number"),
        (["passthrough", "--listen", "0.0.0.0:0"], 64, "needs TLS: `ptserver keys` makes a folder of keys"),
        (["passthrough", "--listen", ":0"], 64, "needs TLS: `ptserver keys` makes a folder of keys"),
        (["passthrough", "--listen", ":0", "--keys", "/nowhere"], 66, "cannot read /nowhere/cert.pem"),
        (
            ["passthrough", "--listen", "localhost:0", "--token-file", "/nowhere"],
            64,
            "cannot read the token file",
        ),
        (["passthrough", "--listen", "localhost:0", "--token-file", "/dev/null"], 64, "has 0 characters"),
        (["passthrough", "--listen", "localhost:0", "--log", "/nowhere/log"], 64, "cannot write the log"),
        (["passthrough", "--listen", "unix:/nowhere/socket"], 69, "cannot listen at unix:/nowhere/socket"),
        (["passthrough", "--listen", "192.0.2.1:1"], 69, "cannot listen at 192.0.2.1:1"),
        (["passthrough", "--listen", "localhost:0", "--max-sessions", "0"], 64, "max-sessions"),
        (["passthrough"], 64, "Missing option '--listen'"),
    ],
)
def test_bad_input_is_a_line_and_a_status(arguments: list[str], status: int, message: str) -> None:
    returned, output, error = run(*arguments)
    assert (returned, output) == (status, "")
    assert message in error
    assert "Traceback" not in error


def test_an_address_in_use_is_told() -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        status, _, error = run("passthrough", "--listen", server.address)
        assert status == 69
        assert "Address already in use" in error
        assert len(error.splitlines()) == 1
