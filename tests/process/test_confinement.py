"""Confined sessions: what the options of `ptserver serve` take away, seen from a stub host that tries everything."""

import errno
import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptserver.confinement.confine import check
from ptserver.confinement.options import Confinement, parse_confinement
from ptserver.errors import CannotConfineError, RefusedError
from stepping import landlock
from tests.gofixtures import build
from tests.process.commands import ptserver
from tests.process.session_client import AT_FDCWD, Client, children
from tests.process.test_serve import Server, run, serving
from tests.unit.test_net_rules import four, six, unix

NOBODY = pwd.getpwnam("nobody").pw_uid
O_WRONLY, O_RDWR, O_CREAT = os.O_WRONLY, os.O_RDWR, os.O_CREAT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_landlock = pytest.mark.skipif(landlock.abi() < 6, reason="needs Landlock ABI 6 (Linux 6.12)")


def open_errno(client: Client, path: str | Path, flags: int = 0, mode: int = 0o644) -> int:
    """Return the errno with which an open fails, 0 if it does not."""
    return client.call("openat", AT_FDCWD, 1, flags, mode, ins={1: os.fsencode(path)}).errno


def session_processes(server: Server) -> set[int]:
    """Return the processes that make the calls of the server's sessions: the children of their guards."""
    return {pid for guard in children(server.zygote) for pid in children(guard)}


def path_errno(client: Client, name: str, path: str | Path, *args: int) -> int:
    return client.call(name, 1, *args, ins={0: os.fsencode(path)}).errno


@pytest.fixture
def jail(tmp_path: Path) -> Path:
    """A folder that may become a root, open to everybody."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(0o755)
    root = tmp_path / "jail"
    for name in ("etc", "dev", "proc", "work"):
        (root / name).mkdir(parents=True)
    (root / "work").chmod(0o777)
    (root / "etc/hostname").write_text("jail\n")
    (root / "up").symlink_to("../../../../../../../etc/passwd")
    return root


@needs_root
def test_a_root_is_all_that_there_is(jail: Path) -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0", "--user", "nobody", "--root", str(jail)) as server:
        client = server.open()
        assert client.call("getuid").value == NOBODY
        assert client.call("getcwd", 1, 100, outs={0: 100}).outs[0].rstrip(b"\0") == b"/"
        assert client.read(client.open("/etc/hostname")) == b"jail\n"
        for path in ("/etc/passwd", "/up", "/../../../etc/passwd", f"/proc/{os.getpid()}/root/etc/passwd"):
            assert open_errno(client, path) == errno.ENOENT, path
        fd = client.open("/work/new", O_RDWR | O_CREAT)
        client.write(fd, b"data")
        assert (jail / "work/new").read_bytes() == b"data"
        assert (jail / "work/new").stat().st_uid == NOBODY
        assert client.read(client.open("/dev/zero"), 3) == bytes(3)
        assert open_errno(client, "/proc/self/status") == 0
        assert open_errno(client, "/proc/1/status") == errno.ENOENT  # hidden
        client.exit()
        log = server.stop()[1]
        assert f"sessions are confined: root {jail} by a mount namespace; user {NOBODY}; " in log
    assert not os.path.ismount(jail)


def test_a_user_confines_himself_in_a_user_namespace(jail: Path) -> None:
    """Done by another user than root, which must not be told of by an import of this test's."""
    script = (
        "import os, sys\n"
        "from ptserver.confinement.confine import enter\n"
        "from ptserver.confinement.options import parse_confinement\n"
        "os.setgroups([]) if os.geteuid() == 0 else None\n"
        f"os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "print(enter(parse_confinement(root=sys.argv[1])))\n"
        "print(os.listdir('/'), os.getuid(), open('/etc/hostname').read().strip())\n"
        "status = dict(l.split(':', 1) for l in open('/proc/self/status')) if os.path.exists('/proc/self') else {}\n"
        "try: os.chroot('/etc'); print('chroot')\n"
        "except PermissionError: print('no chroot')\n"
        "try: open('/etc/x', 'w'); print('wrote')\n"
        "except PermissionError: print('no write')\n"
    )
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script, jail], capture_output=True, text=True, env=environment, check=False
    )
    if "Operation not permitted" in done.stderr or "No space left" in done.stderr:
        pytest.skip("this kernel lets users have no namespaces")
    lines = done.stdout.splitlines()
    assert "in a user namespace" in lines[0], done.stderr
    assert sorted(eval(lines[1].partition("] ")[0] + "]")) == ["dev", "etc", "proc", "up", "work"]
    assert lines[1].endswith(f"{NOBODY} jail")
    assert lines[2:] == ["no chroot", "no write"]


@needs_root
@needs_landlock
def test_nothing_is_changed_where_files_are_read_only(jail: Path) -> None:
    (jail / "work/file").write_text("data")
    (jail / "work/file").chmod(0o666)
    (jail / "work/folder").mkdir(mode=0o777)
    options = ("--listen", "127.0.0.1:0", "--user", "nobody", "--read-only")
    with serving("passthrough", *options) as server:
        client, work = server.open(), jail / "work"
        assert client.read(client.open(work / "file")) == b"data"
        for flags in (O_WRONLY, O_RDWR, os.O_TRUNC, O_WRONLY | O_CREAT):
            assert open_errno(client, work / "file", flags) == errno.EACCES
        assert open_errno(client, work / "new", O_CREAT | O_WRONLY) == errno.EACCES
        assert path_errno(client, "truncate", work / "file", 0) == errno.EACCES
        assert path_errno(client, "mkdir", work / "dir", 0o777) == errno.EACCES
        assert path_errno(client, "rmdir", work / "folder") == errno.EACCES
        assert path_errno(client, "unlink", work / "file") == errno.EACCES
        assert path_errno(client, "mknod", work / "fifo", 0o010644) == errno.EACCES
        assert path_errno(client, "chmod", work / "file", 0) == errno.EROFS
        assert path_errno(client, "chown", work / "file", 1, 1) == errno.EROFS
        times = client.call("utimensat", AT_FDCWD, 1, 1, 0, ins={1: os.fsencode(work / "file"), 2: bytes(32)})
        assert times.errno == errno.EROFS
        both = {0: os.fsencode(work / "file"), 1: os.fsencode(work / "other")}
        assert client.call("rename", 1, 1, ins=both).errno == errno.EACCES
        assert client.call("link", 1, 1, ins=both).errno == errno.EACCES
        assert client.call("symlink", 1, 1, ins=both).errno == errno.EACCES
        xattr = {0: os.fsencode(work / "file"), 1: b"user.x", 2: b"1"}
        assert client.call("setxattr", 1, 1, 1, 1, 0, ins=xattr).errno == errno.EROFS
        assert open_errno(client, "/dev/null", O_WRONLY) == 0
        _, writing = client.pipe()
        assert client.write(writing, b"x").value == 1
        assert sorted(os.listdir(work)) == ["file", "folder"]
        client.exit()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@needs_root
@needs_landlock
def test_sockets_reach_the_addresses_that_are_listed_and_no_others(
    listener: socket.socket, tmp_path: Path
) -> None:
    port = listener.getsockname()[1]
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        serving(
            "passthrough",
            "--listen",
            "127.0.0.1:0",
            "--user",
            "nobody",
            "--connect",
            f"127.0.0.1:{port}",
            "--bind",
            "127.0.0.2:9000-9999",
        ) as server,
    ):
        client, forbidden = server.open(), other.getsockname()[1]

        def sock(kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> int:
            return client.call("socket", family, kind, 0).value

        def to(name: str, fd: int, address: bytes, size: int | None = None) -> int:
            return client.call(name, fd, 1, size or len(address), ins={1: address}).errno

        assert to("connect", sock(), four("127.0.0.1", port)) == 0
        assert to("connect", sock(), four("0.0.0.0", port)) == 0
        for address in (four("127.0.0.1", forbidden), four("127.0.0.2", port), four("0.0.0.0", forbidden)):
            assert to("connect", sock(), address) == errno.EACCES
        v6 = sock(family=socket.AF_INET6)
        assert to("connect", v6, six("::ffff:127.0.0.1", forbidden)) == errno.EACCES
        assert to("connect", v6, six("::1", port)) == errno.EACCES
        udp = sock(socket.SOCK_DGRAM)
        hidden = four("127.0.0.1", forbidden, socket.AF_UNSPEC)  # UDP takes it for AF_INET
        for address in (four("127.0.0.1", forbidden), hidden):
            sent = client.call("sendto", udp, 1, 1, 0, 1, 16, ins={1: b"x", 4: address})
            assert sent.errno == errno.EACCES
            run_of_one = struct.pack("=6I", len(address), 0, 1, 0, 0, 0) + address + b"x"
            assert client.call("sendmsg", udp, 1, 0, ins={1: run_of_one}).errno == errno.EACCES
            allowed = struct.pack("=6I", 0, 0, 1, 0, 0, 0) + b"x"
            two = {1: allowed + run_of_one}
            assert client.call("sendmmsg", udp, 1, 2, 0, ins=two, outs={1: 8}).errno == errno.EACCES
        assert (
            client.call("sendto", udp, 1, 1, 0, 1, 16, ins={1: b"x", 4: four("127.0.0.1", port)}).value == 1
        )
        assert to("bind", sock(), four("127.0.0.2", 0)) == errno.EACCES
        assert to("bind", sock(), four("0.0.0.0", 9123)) == errno.EACCES
        assert client.call("listen", sock(), 5).errno == errno.EACCES  # would take any port
        bound = sock()
        for number in range(9123, 9200):
            failure = to("bind", bound, four("127.0.0.2", number))
            if failure != errno.EADDRINUSE:
                break
        assert failure == 0
        assert client.call("listen", bound, 5).errno == 0
        local = sock(family=socket.AF_UNIX)
        path = os.fsencode(tmp_path / "socket")
        assert to("connect", local, unix(path + b"\0")) == errno.EACCES
        assert to("connect", local, unix(b"\0abstract")) == errno.EACCES
        for family, kind, protocol in ((17, 3, 0), (2, 3, 1), (40, 1, 0), (16, 3, 9), (2, 1, 132)):
            assert client.call("socket", family, kind, protocol).errno == errno.EACCES
        client.exit()
        log = server.stop()[1]
        assert f"refused connect 127.0.0.1:{forbidden}: no rule allows it" in log
        assert log.count(f"refused connect 127.0.0.1:{forbidden}") == 1


@needs_root
@needs_landlock
def test_what_is_refused_is_in_the_log(tmp_path: Path) -> None:
    options = ("--user", "nobody", "--read-only", "--connect", "none", "--json", "--max-sessions", "1")
    with serving("passthrough", "--listen", "127.0.0.1:0", *options) as server:
        server.address = json.loads(server.announcement)["address"]
        client = server.open()
        with pytest.raises(RefusedError):
            server.open()
        server.wait_sessions(1)
        for _ in range(2):
            assert open_errno(client, "/etc/shadow") == errno.EACCES
            assert path_errno(client, "chmod", "/etc/passwd", 0) == errno.EROFS
            sock = client.call("socket", socket.AF_INET, socket.SOCK_STREAM, 0).value
            address = four("10.0.0.1", 80)
            assert client.call("connect", sock, 1, 16, ins={1: address}).errno == errno.EACCES
        assert open_errno(client, "/nowhere") == errno.ENOENT
        client.exit()
        entries = [json.loads(line) for line in server.stop()[1].splitlines()]
    own = [entry for entry in entries if "refused" in entry and entry["session"] == client.welcome.session]
    assert [(entry["refused"], entry["target"], entry["errno"]) for entry in own] == [
        ("openat", "/etc/shadow", "EACCES"),
        ("chmod", "/etc/passwd", "EROFS"),
        ("connect", "10.0.0.1:80", "EACCES"),
    ]
    others = [entry for entry in entries if "refused" in entry and entry not in own]
    assert [(entry["refused"], entry["code"]) for entry in others] == [("session", "limit")]


@needs_landlock
@pytest.mark.parametrize("wanted", ["/bin/true", "none"])
def test_the_programs_that_are_listed_are_executed_and_no_others(wanted: str) -> None:
    """By a process that is confined as a session is."""
    programs = [os.path.realpath(wanted)] if wanted != "none" else ["none"]
    script = (
        "import subprocess, sys\n"
        "from ptserver.confinement.confine import enter\n"
        "from ptserver.confinement.options import parse_confinement\n"
        "enter(parse_confinement(executables=sys.argv[1:]))\n"
        "for program in ('/bin/true', '/bin/echo'):\n"
        "    try: print(program, subprocess.call([program, 'out']), flush=True)\n"
        "    except PermissionError: print(program, 'refused', flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script, *programs], capture_output=True, text=True, env=environment, check=True
    )
    first = "0" if wanted != "none" else "refused"
    assert done.stdout.splitlines() == [f"/bin/true {first}", "/bin/echo refused"]


@needs_root
def test_limits_are_the_sessions(tmp_path: Path) -> None:
    limits = ("--limit", "nofile=64,fsize=1000", "--limit", "nproc=77")
    with serving(
        "passthrough", "--listen", "127.0.0.1:0", "--user", "nobody", *limits, cwd=tmp_path
    ) as server:
        client = server.open()
        numbers = [client.call("openat", AT_FDCWD, 1, 0, 0, ins={1: b"/dev/null"}) for _ in range(64)]
        assert max(result.value for result in numbers) == 63
        assert numbers[-1].errno == errno.EMFILE
        limit = client.call("getrlimit", 6, 1, outs={1: 16}).outs[1]  # RLIMIT_NPROC
        assert struct.unpack("=QQ", limit) == (77, 77)
        assert client.call("getrlimit", 1, 1, outs={1: 16}).outs[1] == struct.pack("=QQ", 1000, 1000)
        client.exit()


@needs_root
@pytest.mark.parametrize("name", ["mount", "pivot_root", "unshare", "setns", "ptrace", "bpf", "kexec_load"])
def test_what_is_about_the_machine_is_refused(name: str) -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0", "--user", "nobody", "--exec", "none") as server:
        client = server.open()
        assert client.call(name, 1, 1, 1, 1, 1).errno in (errno.ENOSYS, errno.EPERM)
        client.exit()


@pytest.fixture(scope="module")
def unconfined() -> Iterator[Server]:
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        yield server


@pytest.mark.parametrize(
    "path", ["/proc/self/mem", "/proc/thread-self/mem", "/proc/{pid}/mem", "/proc/{pid}/task/{pid}/mem"]
)
@pytest.mark.parametrize("how", ["plain", "link", "folder", "openat2"])
def test_a_session_cannot_open_its_own_memory(
    unconfined: Server, tmp_path: Path, path: str, how: str
) -> None:
    client = unconfined.open()
    path = path.format(pid=max(session_processes(unconfined)))
    lowest = client.open("/dev/null")
    client.call("close", lowest)
    for flags in (0, O_RDWR):
        match how:
            case "plain":
                failure = open_errno(client, path, flags)
            case "link":
                (tmp_path / "link").unlink(missing_ok=True)
                (tmp_path / "link").symlink_to(path)
                failure = open_errno(client, tmp_path / "link", flags)
            case "folder":
                folder, name = os.path.split(path)
                fd = client.open(folder, os.O_DIRECTORY)
                failure = client.call("openat", fd, 1, flags, 0, ins={1: name.encode()}).errno
                client.call("close", fd)
            case _:
                request = struct.pack("=QQQ", flags, 0, 0)
                ins = {1: path.encode(), 2: request}
                failure = client.call("openat2", AT_FDCWD, 1, 1, 24, ins=ins).errno
        assert failure == errno.EACCES
    assert client.open("/dev/null") == lowest  # nothing was left open
    assert client.read(client.open("/proc/self/status"), 5) == b"Name:"
    client.exit()


@needs_landlock
def test_nothing_that_a_session_starts_reaches_the_server() -> None:
    """By a process that is confined as every session is, against its parent, which is not."""
    script = (
        "import ctypes, os, signal\n"
        "from ptserver.confinement.confine import enter\n"
        "from ptserver.confinement.options import UNCONFINED\n"
        "parent = os.getppid()\n"
        "enter(UNCONFINED)\n"
        "if os.fork():\n"
        "    print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "    raise SystemExit\n"
        "def refused(action):\n"
        "    try: action()\n"
        "    except PermissionError: return True\n"
        "    return False\n"
        "ptrace = ctypes.CDLL(None, use_errno=True).ptrace\n"
        "results = [\n"
        "    refused(lambda: os.kill(parent, 0)),\n"
        "    refused(lambda: os.kill(parent, signal.SIGKILL)),\n"
        "    refused(lambda: signal.pidfd_send_signal(os.pidfd_open(parent), signal.SIGKILL)),\n"
        "    refused(lambda: open(f'/proc/{parent}/mem', 'rb+')),\n"
        "    ptrace(16, parent, 0, 0) == -1 and ctypes.get_errno() == 1,\n"
        "    not refused(lambda: os.kill(os.getppid(), 0)),  # what is of the session may be signalled\n"
        "]\n"
        "os._exit(0 if all(results) else results.index(False) + 1)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(landlock.abi() < 6, reason="needs Landlock ABI 6 (Linux 6.12)")
def test_what_a_session_executes_is_confined_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    def command(server: Server, *words: str) -> str:
        status, out, _ = ptserver("run", "--server", server.address, build("command"), *words)
        assert status == 0
        return out

    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        for pid in (server.process.pid, server.zygote):
            assert "not permitted" in command(server, "/bin/sh", "-c", f"kill -9 {pid}")
            assert "enied" in command(server, "/bin/cat", f"/proc/{pid}/mem")
        assert command(server, "/bin/sh", "-c", "sleep 60 & kill $!; echo own") == "own\n<nil>\n"
    if os.geteuid():
        return
    echo = os.path.realpath("/bin/echo")
    with serving("passthrough", "--listen", "127.0.0.1:0", "--user", "nobody", "--exec", echo) as server:
        assert command(server, echo, "listed") == "listed\n<nil>\n"
        assert "permission denied" in command(server, "/bin/ls")
        assert "permission denied" in command(server, "/bin/sh", "-c", "echo")
    with serving("passthrough", "--listen", "127.0.0.1:0", "--user", "nobody", "--read-only") as server:
        assert "ermission denied" in command(server, "/bin/sh", "-c", f"echo x > {tmp_path}/made")
        assert command(server, "/bin/sh", "-c", "id -u > /dev/null") == "<nil>\n"
        assert not (tmp_path / "made").exists()
    with serving("passthrough", "--listen", "127.0.0.1:0", "--user", "nobody", "--connect", "none") as server:
        assert "permission denied" in command(server, "/bin/echo")


def test_who_cannot_be_confined_is_not_served(tmp_path: Path) -> None:
    at = ("passthrough", "--listen", "127.0.0.1:0")
    status, _, error = run(*at, "--connect", "nonsense")
    assert (status, "is no network rule" in error) == (64, True)
    status, _, error = run(*at, "--user", "nobody", "--root", str(tmp_path / "nowhere"))
    assert (status, "it is no folder" in error) == (77, True)
    if os.geteuid() == 0:
        for option in ("--read-only", "--connect=none", "--bind=none", "--exec=none", f"--root={tmp_path}"):
            status, _, error = run(*at, option)
            assert (status, "root is hard to confine: give --user NAME" in error) == (77, True)


def test_a_kernel_without_landlock_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptserver.confinement.confine.abi", lambda: 0)
    with pytest.raises(CannotConfineError, match="this kernel has no Landlock"):
        check(parse_confinement(read_only=True, user="nobody"))
    assert check(Confinement()) == []


def test_the_trial_leaves_nothing_behind(jail: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    before = set(os.listdir("/proc/self/fd"))
    ways = check(parse_confinement(root=str(jail), user="nobody", read_only=landlock.abi() > 0))
    assert ways
    assert set(os.listdir("/proc/self/fd")) == before
    assert Path("/etc/passwd").exists()
    shutil.rmtree(jail)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
