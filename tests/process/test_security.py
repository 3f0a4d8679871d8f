"""Every promise of docs/security.md, by the letter and number that it has there."""

import ast
import errno
import itertools
import os
import pwd
import re
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptserver.errors import ConnectionLostError
from ptserver.hosts.policy import HOST_CALLS, OPTIONS_OF_PROCESSES, filter_rules
from ptserver.keys import make_keys
from ptserver.messages import Exited, Goodbye, Hello, Result, StreamData, Syscall, ToServer, Welcome
from ptserver.messages import Signal as SignalMessage
from ptserver.net.connection import Connection, server_handshake
from ptserver.net.reach import reach
from ptserver.net.transport import connect, listen, local_address
from ptserver.net.wire import Codec
from stepping import landlock
from stepping.seccomp import Verdict
from stepping.syscalls import SYSCALLS
from stepping.syscalls.marshal import BadArgumentError, gather, scatter
from stepping.syscalls.socket_messages import MSGHDR
from tests.gofixtures import ROOT, build
from tests.process.commands import ptserver
from tests.process.session_client import AT_FDCWD, Client, children, hello
from tests.process.test_confinement import open_errno, session_processes
from tests.process.test_serve import serving
from tests.unit.test_marshal import BASE, Memory, args

#: Promises whose tests are elsewhere, beside others of their subject.
ELSEWHERE = {
    "N3": "tests/contract/test_tls.py::test_who_is_not_trusted_is_told_why",
    "N4": "tests/contract/test_tls.py::test_an_older_tls_is_refused",
    "H2": "tests/process/test_serve.py::test_who_says_nothing_keeps_nobody_waiting_but_himself",
    "H3": "tests/process/test_session_fuzz.py::test_arbitrary_calls",
    "C1": "tests/process/test_confinement.py::test_a_root_is_all_that_there_is",
    "C2": "tests/process/test_confinement.py::test_nothing_is_changed_where_files_are_read_only",
    "C3": "tests/process/test_confinement.py::test_sockets_reach_the_addresses_that_are_listed_and_no_others",
    "C4": "tests/process/test_confinement.py::test_the_programs_that_are_listed_are_executed_and_no_others",
    "C6": "tests/process/test_confinement.py::test_limits_are_the_sessions",
    "C7": "tests/process/test_confinement.py::test_who_cannot_be_confined_is_not_served",
    "H9": "tests/process/test_lost_and_back.py::test_a_session_is_resumed_by_its_ticket_alone",
    "S5": "tests/unit/test_relays.py::test_s5_a_server_has_no_more_of_a_descriptor_than_was_handed_on",
    "D1": "tests/unit/spread/test_peers.py::test_nobody_gets_a_connection_who_does_not_know_the_secret",
    "D2": "tests/unit/spread/test_passing.py::test_nothing_is_placed_but_the_transfer_that_the_home_has_announced",
    "H6": "tests/process/test_confinement.py::test_nothing_that_a_session_starts_reaches_the_server",
}


def test_every_promise_has_a_test_and_every_test_a_promise() -> None:
    promised = set(re.findall(r"^- \*\*([A-Z]\d)\*\* ", (ROOT / "docs/security.md").read_text(), re.M))
    here = {name[5:7].upper() for name in globals() if re.match(r"test_[a-z]\d_", name)}
    assert promised == here | set(ELSEWHERE)
    assert not here & set(ELSEWHERE)
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        body = ast.parse((ROOT / path).read_text()).body
        functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
        assert name in functions, place


# The network.


def test_n1_no_address_of_another_machine_without_tls() -> None:
    status, out, err = ptserver("serve", "passthrough", "--listen", "0.0.0.0:0")
    assert (status, out, "needs TLS" in err) == (64, "", True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))  # sends nothing
        own = sock.getsockname()[0]
    with listen(f"{own}:0") as listener:
        status, out, err = ptserver("run", "--server", local_address(listener), build("hello"))
        assert (status, out, "is another machine, which needs TLS" in err) == (77, "", True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b""


class Wiretap:
    """A proxy on the way to *address*; heard: what passed; change: what it makes of what the client sends."""

    def __init__(self, address: str, change: Callable[[bytes], bytes] = bytes) -> None:
        self.heard = b""
        self._listener = listen("127.0.0.1:0")
        self.address = local_address(self._listener)
        self._change = change
        self._there = connect(address)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        here, _ = self._listener.accept()
        with here, self._there:
            other = {here: self._there, self._there: here}
            while True:
                for sock in select.select(list(other), [], [])[0]:
                    data = sock.recv(65536)
                    if not data:
                        return
                    self.heard += data
                    try:
                        other[sock].sendall(self._change(data) if sock is here else data)
                    except OSError:
                        return

    def close(self) -> None:
        self._thread.join(20)
        self._listener.close()


def test_n2_what_passes_is_neither_read_nor_changed(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["127.0.0.1"], days=1, token=True)
    (tmp_path / "secret").write_text("the secret text")
    client_keys = str(tmp_path / "keys/client")
    with serving("passthrough", "--listen", "127.0.0.1:0", "--keys", str(tmp_path / "keys/server")) as server:
        tap = Wiretap(server.address)
        stream, token = reach(tap.address, client_keys)
        client = Client(stream, hello(token=token))
        assert client.read(client.open(tmp_path / "secret")) == b"the secret text"
        client.exit()
        tap.close()
        assert len(tap.heard) > 1000
        for text in (b"the secret text", token.encode(), b"hello", b"openat", os.fsencode(tmp_path)):
            assert text not in tap.heard
        changing = False

        def change(data: bytes) -> bytes:
            return data[:-1] + bytes([data[-1] ^ 1]) if changing else data

        tap = Wiretap(server.address, change)
        stream, token = reach(tap.address, client_keys)
        client = Client(stream, hello(token=token))
        changing = True
        with pytest.raises(ConnectionLostError):
            client.call("getuid")
        client.close()
        tap.close()


# A hostile stub host.


@pytest.mark.parametrize("proof", ["nothing", "wrong token", "no token"])
def test_h1_nothing_is_done_without_a_proof(tmp_path: Path, proof: str) -> None:
    """Though the host does not wait for an answer before it makes calls."""
    (tmp_path / "token").write_text("0123456789abcdef\n")
    at = ("--listen", "127.0.0.1:0", "--token-file", str(tmp_path / "token"))
    with serving("passthrough", *at) as server, connect(server.address) as sock:
        json = Codec("json")
        greeting = hello(token={"nothing": "", "wrong token": "0123456789abcdeF", "no token": ""}[proof])
        path = os.fsencode(tmp_path / "made")
        make = Syscall(1, 2, 2, "openat", (AT_FDCWD, 1, os.O_CREAT, 0o600, 0, 0), {1: path})
        data = json.encode(make) if proof == "nothing" else json.encode(greeting) + json.encode(make)
        sock.sendall(data)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        assert b'"refused"' in answer
        assert b'"result"' not in answer
        server.wait_sessions(0)
        assert not (tmp_path / "made").exists()


def test_h4_a_session_has_its_own_descriptors_alone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the first")
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        first, second = server.open(), server.open()
        fd = first.open(tmp_path / "secret")
        for _ in range(20):
            first.open(tmp_path / "secret")
        own = {second.open("/dev/null") for _ in range(2)}
        limit = struct.unpack("=QQ", second.call("getrlimit", 7, 1, outs={1: 16}).outs[1])[1]
        for number in [*range(fd, fd + 40), *range(limit, limit + 256), 2**31 - 1]:
            for name in ("read", "dup", "fstat") if number not in own else ():
                result = second.call(name, number, 1, 100, outs={1: 144} if name != "dup" else {})
                assert result.errno == errno.EBADF, (number, name)
        for shadow in session_processes(server):
            pidfd = second.call("pidfd_open", shadow, 0)
            for number in [*range(limit, limit + 256)] if not pidfd.errno else ():
                copied = second.call("pidfd_getfd", pidfd.value, number, 0)
                assert copied.errno in (errno.EBADF, errno.EPERM), number
            for number in range(limit, limit + 40):
                assert open_errno(second, f"/proc/self/fd/{number}", os.O_RDWR) != 0, number
        for pid in {*children(server.zygote), *session_processes(server)}:
            for path in (f"/proc/{pid}/fd/{fd}", f"/proc/{pid}/cwd/x", f"/proc/{pid}/environ"):
                failure = open_errno(second, path)
                text = second.read(second.open(path)) if not failure else b""
                assert b"of the first" not in text
        second.exit()
        first.exit()


def test_h8_no_limits_are_set_on_others() -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        client = server.open()
        for pid in (server.process.pid, server.zygote, *children(server.zygote), os.getpid()):
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            for ins in ({2: bytes(16)}, {}):
                assert client.call("prlimit64", pid, 7, 1, 0, ins=ins).errno == errno.EPERM
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == before
        client.exit()


@pytest.mark.skipif(landlock.abi() < 6, reason="needs Landlock ABI 6 (Linux 6.12)")
def test_h5_no_memory_of_any_process_can_be_opened() -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        first, second = server.open(), server.open()
        pids = {server.process.pid, server.zygote, *children(server.zygote), *session_processes(server), 1}
        for pid in pids:
            for name in ("mem", f"task/{pid}/mem"):
                for flags in (os.O_RDONLY, os.O_RDWR):
                    assert open_errno(second, f"/proc/{pid}/{name}", flags) in (errno.EACCES, errno.EPERM)
        assert open_errno(second, "/proc/self/mem", os.O_RDWR) == errno.EACCES
        for option in range(80):
            if option not in OPTIONS_OF_PROCESSES:  # those are about its processes' ends, and its rights
                assert second.call("prctl", option, 1, 0, 0, 0).errno == errno.EINVAL
        second.exit()
        first.exit()


def test_h7_each_call_uses_the_copy_that_was_judged(tmp_path: Path) -> None:
    """What a message says once is what a server's method and the kernel see; later messages change nothing."""
    (tmp_path / "judge.py").write_text(
        "from ptserver.outcomes import Delay\n"
        "from ptserver.server import *\n"
        "class Judge(RuntimeServer):\n"
        "    def openat(self, call):\n"
        "        if call.path.endswith('secret'): return call.fail(13)\n"
        "        return Delay(0.2)\n"
    )
    (tmp_path / "open").write_text("open")
    (tmp_path / "secret").write_text("secret")
    with serving("judge:Judge", "--listen", "127.0.0.1:0", cwd=tmp_path) as server:
        client = server.open()
        pending = client.start("openat", AT_FDCWD, 1, 0, 0, ins={1: b"open"})
        refused = client.start("openat", AT_FDCWD, 1, 0, 0, ins={1: b"secret"})
        assert client.result(refused).errno == errno.EACCES
        assert client.read(client.result(pending).value) == b"open"
        # Bytes that a count leaves out, or that lie behind a NUL, were not judged, and are not used.
        assert client.call("openat", AT_FDCWD, 1, 0, 0, ins={1: b"secret\0x"}).errno == errno.EINVAL
        client.exit()


# A session that is confined: see test_confinement.


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_c5_a_session_has_a_users_rights_and_gains_none(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    with serving("passthrough", "--listen", "127.0.0.1:0", "--user", "nobody") as server:
        client = server.open()
        ids = client.call("getresuid", 1, 1, 1, outs={0: 4, 1: 4, 2: 4}).outs
        assert {int.from_bytes(data, "little") for data in ids.values()} == {nobody.pw_uid}
        assert open_errno(client, "/etc/shadow") == errno.EACCES
        assert client.call("setuid", 0).errno == errno.EPERM
        assert b"HOME=" + nobody.pw_dir.encode() in (client.welcome.environment or ())
        (pid,) = session_processes(server)
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^NoNewPrivs:\s1$", status, re.M)
        assert re.search(r"^CapEff:\s0+$", status, re.M)
        assert open_errno(client, "/proc/self/mem", os.O_RDWR) == errno.EACCES
        client.exit()


# A hostile server.

ADDRESS = st.integers(0, 2**64 - 1) | st.integers(BASE - 64, BASE + 0x4040)


@given(
    name=st.sampled_from(
        ["read", "readv", "recvfrom", "getsockname", "recvmsg", "recvmmsg", "ppoll", "pipe2", "fstat"]
    ),
    registers=st.lists(st.integers(0, 300) | ADDRESS, min_size=6, max_size=6),
    vector=st.lists(st.tuples(ADDRESS, st.integers(0, 100)), max_size=4),
    header=st.tuples(ADDRESS, st.integers(0, 64), ADDRESS, st.integers(0, 64)),
    answers=st.dictionaries(st.integers(0, 5), st.binary(max_size=600)),
)
def test_s1_answers_are_written_where_room_was_offered_and_no_further(
    name: str,
    registers: list[int],
    vector: list[tuple[int, int]],
    header: tuple[int, int, int, int],
    answers: dict[int, bytes],
) -> None:
    at = {"iov": BASE + 0x1000, "msg": BASE + 0x2000, "len": BASE + 0x3000}
    memory = Memory(b"." * 0x4000)
    memory.put(at["iov"], b"".join(struct.pack("=QQ", *pair) for pair in vector))
    message = MSGHDR.pack(header[0], header[1], at["iov"], len(vector), header[2], header[3], 0) + bytes(8)
    memory.put(at["msg"], message * 2)
    memory.put(at["len"], (100).to_bytes(4, "little"))
    match name:
        case "readv":
            registers[1:3] = [at["iov"], len(vector)]
        case "recvmsg":
            registers[1] = at["msg"]
        case "recvmmsg":
            registers[1:3] = [at["msg"], 2]
        case "recvfrom":
            registers[5] = at["len"]
        case "getsockname":
            registers[2] = at["len"]
    row = SYSCALLS[name]
    try:
        call = gather(row, args(*registers), memory)
    except BadArgumentError:
        return
    allowed: list[tuple[int, int]] = []
    for index, room in call.outs.items():
        if name in ("readv", "recvmsg", "recvmmsg") and index == 1:
            allowed += vector
        else:
            allowed.append((call.args[index], room))
    if name in ("recvmsg", "recvmmsg"):
        allowed += [(header[0], header[1]), (header[2], header[3])]
        for place in (
            at["msg"],
            at["msg"] + 64,
        ):  # what recvmsg(2) sets: name's and control's length, flags, count
            allowed += [(place + 8, 4), (place + 40, 8), (place + 48, 4), (place + 56, 4)]
    before = bytes(memory.data)
    try:
        scatter(call, answers, memory)
    except BadArgumentError:
        pass
    changed = [BASE + i for i, (old, new) in enumerate(zip(before, memory.data, strict=True)) if old != new]
    outside = [hex(a) for a in changed if not any(start <= a < start + size for start, size in allowed)]
    assert not outside


class Hostile:
    """A server that answers the *count*-th call by what *attack* makes of it, and all others with ENOSYS."""

    def __init__(self, attack: Callable[[Connection[ToServer], Syscall], None], count: int = 1) -> None:
        self._listener = listen("127.0.0.1:0")
        self.address = local_address(self._listener)
        self._attack, self._count = attack, count
        self.exited: Exited | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        _, _, connection = server_handshake(sock, 20, _welcome)
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        seen = 0
        try:
            while True:
                connection.drain(20)
                poll.poll(20_000)
                for message in connection.receive():
                    if isinstance(message, Exited):
                        self.exited = message
                        connection.send(Goodbye())
                        connection.finish()
                        return
                    if isinstance(message, Syscall):
                        seen += 1
                        if seen == self._count:
                            self._attack(connection, message)
                            if connection.fileno() < 0:
                                return
                        else:
                            connection.send(Result(message.id, 0, errno.ENOSYS))
        except ConnectionLostError:
            return
        finally:
            connection.close()

    def __enter__(self) -> "Hostile":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(20)
        self._listener.close()
        assert not self._thread.is_alive()


def _welcome(_: Hello, version: int, codec: str) -> Welcome:
    return Welcome(version, codec, "hostile", "test", "1", "there", "server", {}, "serve", pid=4242)


def test_s2_no_call_is_sent_back_to_the_host(tmp_path: Path) -> None:
    with Hostile(lambda connection, call: connection.send(Result(call.id, proceed=True))) as server:
        status, out, err = ptserver("run", "--server", server.address, build("hello"))
    assert status == 69
    assert out == ""
    assert "the server sent a call back to the host, but has the program's resources itself" in err


def test_s3_no_process_but_the_program_is_signalled() -> None:
    """A signal for a number that is none of the program's ids reaches nobody; one for the program ends it."""
    reached: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signo, frame: reached.append(signo))

    def attack(connection: Connection[ToServer], call: Syscall) -> None:
        connection.send(SignalMessage(signal.SIGUSR1, pid=os.getpid()))
        connection.send(SignalMessage(signal.SIGKILL))
        connection.send(Result(call.id, 0, errno.ENOSYS))

    try:
        with Hostile(attack) as server:
            status, _, _ = ptserver("run", "--server", server.address, build("hello"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert status == -signal.SIGKILL
    assert server.exited == Exited(None, signal.SIGKILL)
    assert not reached


GARBAGE: dict[str, Callable[[Connection[ToServer], Syscall], Any]] = {
    "a result of no call": lambda connection, call: connection.send(Result(call.id + 7)),
    "a result twice": lambda connection, call: [connection.send(Result(call.id, 0, 38)) for _ in range(2)],
    "a stream that is not carried": lambda connection, call: connection.send(StreamData(0, b"x")),
    "more than was asked for": lambda connection, call: connection.send(StreamData(1, bytes(1 << 20))),
    "a host's message": lambda connection, call: connection.send(Exited(0)),
    "no message": lambda connection, call: connection._out.extend(b"\0\0\0\4\xc1\xc1\xc1\xc1"),
    "a frame without end": lambda connection, call: connection._out.extend(b"\xff\xff\xff\xff"),
    "nothing more": lambda connection, call: connection.close(),
}


@pytest.mark.parametrize("attack", GARBAGE.values(), ids=GARBAGE.keys())
def test_s4_what_is_no_answer_ends_the_program_with_an_error(
    attack: Callable[[Connection[ToServer], Syscall], Any],
) -> None:
    with Hostile(attack) as server:
        status, _, err = ptserver("run", "--server", server.address, build("hello"))
    assert status == 69
    assert err.startswith("ptserver: lost connection to runtime server")
    assert err.count("\n") == 1


# A hostile program.


def test_p1_no_call_that_reaches_outside_is_made_on_the_host() -> None:
    verdicts: dict[int, Any] = {}
    for rule in filter_rules({}, "serve", "amd64"):
        verdicts.setdefault(rule.sysno, rule)
    for row in SYSCALLS.values():
        if "amd64" not in row.numbers or not row.klass.is_resource or row.name in HOST_CALLS:
            continue
        rule = verdicts.get(row.numbers["amd64"])
        assert rule is not None, row.name
        assert rule.verdict in (Verdict.NOTIFY, Verdict.DENY), row.name
        assert rule.only_if == row.only_if, row.name
    assert verdicts[SYSCALLS["kill"].numbers["amd64"]].verdict is Verdict.NOTIFY


def test_p2_the_memory_of_a_call_is_read_once() -> None:
    memory = Memory(b"/etc/passwd\0")
    memory.put(BASE + 0x100, struct.pack("=QQQQ", BASE + 0x200, 16, BASE + 0x300, 16))
    memory.put(BASE + 0x400, MSGHDR.pack(BASE + 0x500, 16, BASE + 0x100, 2, BASE + 0x600, 32, 0))
    calls = {
        "openat": (AT_FDCWD, BASE, 0, 0),
        "write": (1, BASE + 0x200, 32),
        "writev": (1, BASE + 0x100, 2),
        "connect": (3, BASE + 0x500, 16),
        "sendto": (3, BASE + 0x200, 16, 0, BASE + 0x500, 16),
        "sendmsg": (3, BASE + 0x400, 0),
        "renameat": (AT_FDCWD, BASE, AT_FDCWD, BASE + 0x200),
        "ppoll": (BASE + 0x100, 2, BASE + 0x300, BASE + 0x400, 8),
    }
    for name, registers in calls.items():
        memory.reads.clear()
        gather(SYSCALLS[name], args(*registers), memory)
        spans = sorted(
            (start, start + 1 if name in ("openat", "renameat") else start + size)
            for start, size in memory.reads
        )
        overlaps = [(a, b) for a, b in itertools.pairwise(spans) if a[1] > b[0]]
        assert spans, name
        assert not overlaps, name


# Other users.


def test_l1_only_its_owner_connects_to_a_unix_socket(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "socket"
    with serving("passthrough", "--listen", f"unix:{path}") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.open().call("getuid").errno == 0


def test_l2_what_is_secret_is_its_owners_alone(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["127.0.0.1"], days=1, token=True)
    secret = [path for path in (tmp_path / "keys").rglob("*") if path.is_file()]
    assert len(secret) == 7
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secret)
    log, server_keys = tmp_path / "log", tmp_path / "keys/server"
    with serving("passthrough", "--listen", "127.0.0.1:0", "--keys", str(server_keys), "--log", str(log)):
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
    for name in ("key.pem", "token"):
        (server_keys / name).chmod(0o644)
        status, _, err = ptserver("serve", "passthrough", "--listen", "127.0.0.1:0", "--keys", server_keys)
        assert (status, f"{server_keys / name} is open to others (mode 0644)" in err) == (66, True)
        (server_keys / name).chmod(0o600)


@pytest.fixture
def processes() -> Iterator[set[int]]:
    """A server's acceptor and zygote, and the processes of one session."""
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        client = server.open()
        client.call("getuid")
        yield {server.process.pid, server.zygote, *children(server.zygote), *session_processes(server)}
        client.exit()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to look at what root may always look at")
def test_l3_other_processes_of_the_user_do_not_reach_the_servers_memory(processes: set[int]) -> None:
    """A process that is not dumpable has files in /proc that belong to root, and only root traces it."""
    script = (
        "import ctypes, os, sys\n"
        "from ptserver.confinement.confine import protect_this_process\n"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
        "(reading, writing), (is_ready, ready) = os.pipe(), os.pipe()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.close(writing)\n"
        "    protect_this_process() if sys.argv[1] == 'protected' else None\n"
        "    os.write(ready, b'x'); os.read(reading, 1); os._exit(0)\n"
        "os.read(is_ready, 1)\n"
        "try: open(f'/proc/{child}/mem', 'rb'); print('opened')\n"
        "except PermissionError: print('refused')\n"
        "print(ctypes.CDLL(None).ptrace(0x4206, child, 0, 0))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for how, expected in (("protected", ["refused", "-1"]), ("bare", ["opened", "0"])):
        done = subprocess.run(
            [sys.executable, "-c", script, how],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert done.stdout.split() == expected
    for pid in processes:
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
