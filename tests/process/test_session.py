"""Sessions from the stub host's side: the hello, the shadow's calls, waiting and cancelling, streams, the end."""

import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from session_client import (
    AT_FDCWD,
    PID,
    Client,
    Sessions,
    children,
    hello,
    only_session,
    sessions,
    wait_for_thread_in,
)

from ptserver.errors import RefusedError
from ptserver.messages import Refused, Signal, StreamData, StreamEnd, Terminal, WindowSize
from ptserver.servers.passthrough import PassThrough

MINUS_ONE = (1 << 64) - 1


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    with sessions(PassThrough, str(tmp_path_factory.mktemp("log") / "log")) as running:
        yield running


@pytest.fixture
def client(running: Sessions) -> Iterator[Client]:
    client = running.open()
    yield client
    client.close()
    running.wait_ended()


def test_welcome_says_whose_resources_and_which_environment(client: Client) -> None:
    welcome = client.welcome
    assert (welcome.server, welcome.resources, welcome.default_interest) == ("passthrough", "server", "serve")
    assert (welcome.host, welcome.abstraction, welcome.codec) == (os.uname().nodename, "linux", "msgpack")
    assert welcome.environment is not None
    assert b"PATH=" + os.environb[b"PATH"] in welcome.environment


def test_descriptors_begin_at_three_and_are_the_programs_alone(client: Client, tmp_path: Path) -> None:
    fds = [client.open("/etc/passwd") for _ in range(5)]
    assert fds == [3, 4, 5, 6, 7]
    assert client.call("close", 4).errno == 0
    assert client.open("/etc/passwd") == 4
    assert client.call("dup3", 3, 9, 0).value == 9
    result = client.call("getrlimit", 7, 1, outs={1: 16})
    soft, hard = struct.unpack("=QQ", result.outs[1])
    assert 256 <= soft <= hard
    for fd in range(hard, hard + 40):
        assert client.call("close", fd).errno == errno.EBADF
        assert client.call("fcntl", fd, fcntl.F_GETFD).errno == errno.EBADF
    assert client.call("close_range", 3, 2**32 - 1, 0).errno == 0
    assert client.open("/etc/passwd") == 3


def test_the_limit_of_descriptors_is_the_programs(client: Client) -> None:
    limit = struct.pack("=QQ", 10, 10)
    assert client.call("prlimit64", 0, 7, 1, 1, ins={2: limit}, outs={3: 16}).errno == 0
    fds = [client.open("/etc/passwd") for _ in range(7)]
    assert fds[-1] == 9
    assert client.call("openat", AT_FDCWD, 1, 0, 0, ins={1: b"/etc/passwd"}).errno == errno.EMFILE
    assert client.call("prlimit64", PID, 7, 0, 1, outs={3: 16}).outs[3] == limit
    assert client.call("prlimit64", 1 << 30, 7, 0, 1, outs={3: 16}).errno == errno.ESRCH
    assert client.call("setrlimit", 7, 1, ins={1: struct.pack("=QQ", 10, 11)}).errno == errno.EPERM
    memory = struct.pack("=QQ", 4096, 4096)
    assert client.call("setrlimit", 9, 1, ins={1: memory}).errno == 0  # RLIMIT_AS must not end the shadow
    assert client.call("getrlimit", 9, 1, outs={1: 16}).outs[1] == memory
    assert len(client.read(3, 1 << 20)) > 0


def test_working_directory_and_umask_are_the_sessions(
    client: Client, running: Sessions, tmp_path: Path
) -> None:
    assert client.call("chdir", 1, ins={0: os.fsencode(tmp_path)}).errno == 0
    client.call("umask", 0o077)
    fd = client.open("file", os.O_CREAT | os.O_WRONLY, 0o666)
    assert client.write(fd, b"data").value == 4
    assert (tmp_path / "file").read_bytes() == b"data"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert client.call("getcwd", 1, 4096, outs={0: 4096}).outs[0] == os.fsencode(tmp_path) + b"\0"
    other = running.open()
    assert other.call("getcwd", 1, 4096, outs={0: 4096}).outs[0] == os.fsencode(os.getcwd()) + b"\0"
    other.close()
    running.wait_ended()


def test_calls_that_are_not_the_shadows_are_refused_and_logged_once(
    client: Client, running: Sessions
) -> None:
    for name in ("swapon", "io_uring_setup", "no_such_call", "vmsplice"):
        for _ in range(2):
            assert client.call(name, 1, 1, 1).errno == errno.ENOSYS, name
    log = running.log()
    assert log.count("refused swapon with ENOSYS: calls of class system") == 1
    assert "'no_such_call'" in log
    assert client.call("sysinfo", 1, outs={0: 112}).errno == 0


def test_a_process_is_one_of_this_machine(client: Client, running: Sessions) -> None:
    """The program is told the id of the session's process, which stands for it."""
    pid = only_session(running.spawner.pid)
    assert client.welcome.pid == pid
    reading, _ = client.pipe()
    assert client.call("fcntl", reading, fcntl.F_SETOWN, pid).errno == 0
    assert client.call("fcntl", reading, fcntl.F_GETOWN).value == pid
    assert client.call("getsid", pid).value == pid
    assert client.call("setsid").errno == errno.EPERM  # it leads a session
    assert client.call("kill", pid, 0).errno == 0
    assert client.call("wait4", MINUS_ONE, 0, os.WNOHANG).errno == errno.ECHILD


def test_the_clock_is_this_machine_s_if_it_is_asked_for(running: Sessions) -> None:
    client = running.open(msgspec.structs.replace(hello(), server_time=True))
    assert client.welcome.interest["clock_gettime"] == "serve"
    before = time.time()
    told = client.call("clock_gettime", 0, 1, outs={1: 16})
    seconds, nanoseconds = struct.unpack("=qq", told.outs[1])
    assert before <= seconds + nanoseconds / 1e9 <= time.time()
    client.close()
    running.wait_ended()
    client = running.open(hello())
    assert "clock_gettime" not in client.welcome.interest
    assert client.call("clock_gettime", 0, 1, outs={1: 16}).proceed
    client.close()
    running.wait_ended()


def test_a_waiting_call_does_not_hold_up_others(client: Client) -> None:
    reading, writing = client.pipe()
    waiting = [client.start("read", reading, 1, 4, outs={1: 4}) for _ in range(40)]
    assert client.call("getuid").value == os.getuid()
    for _ in waiting:
        assert client.write(writing, b"abcd").value == 4
    assert [client.result(call_id).outs[1] for call_id in waiting] == [b"abcd"] * 40


def test_a_cancelled_call_answers_eintr_or_what_it_did(client: Client) -> None:
    reading, writing = client.pipe()
    for _ in range(20):
        call_id = client.start("read", reading, 1, 4, outs={1: 4})
        client.cancel(call_id)
        assert client.result(call_id).errno == errno.EINTR
    full = b"x" * (1 << 20)
    call_id = client.start("write", writing, 1, len(full), ins={1: full})
    fionread = 0x541B
    while client.call("ioctl", reading, fionread, 1, ins={2: bytes(4)}, outs={2: 4}).outs[2] < b"\0\0\1\0":
        pass
    client.cancel(call_id)
    assert client.result(call_id).value == 65536
    client.cancel(call_id)  # answered already: ignored
    assert client.call("getuid").errno == 0


def test_waiting_for_events(client: Client) -> None:
    reading, writing = client.pipe(os.O_NONBLOCK)
    epoll = client.call("epoll_create1", 0).value
    event = struct.pack("=IQ", 1, 77)
    assert client.call("epoll_ctl", epoll, 1, reading, 1, ins={3: event}).errno == 0
    assert client.call("epoll_wait", epoll, 1, 8, 0, outs={1: 96}).value == 0
    call_id = client.start("epoll_wait", epoll, 1, 8, -1, outs={1: 96})
    assert client.call("read", reading, 1, 1, outs={1: 1}).errno == errno.EAGAIN
    client.write(writing, b"x")
    result = client.result(call_id)
    assert (result.value, result.outs[1]) == (1, event)
    call_id = client.start("epoll_pwait", epoll, 1, 8, -1, outs={1: 96})
    assert client.result(call_id).value == 1
    client.read(reading)
    started = time.monotonic()
    assert client.call("epoll_wait", epoll, 1, 8, 30, outs={1: 96}).value == 0
    assert time.monotonic() - started >= 0.03
    call_id = client.start("epoll_pwait", epoll, 1, 8, -1, 1, 8, ins={4: b"\xff" * 8}, outs={1: 96})
    client.cancel(call_id)
    assert client.result(call_id).errno == errno.EINTR
    timer = client.call("timerfd_create", 1, 0).value
    spec = struct.pack("=qqqq", 0, 0, 0, 10_000_000)
    assert client.call("timerfd_settime", timer, 0, 1, 0, ins={2: spec}).errno == 0
    assert client.read(timer, 8) == b"\1" + bytes(7)


def test_splicing_from_an_empty_pipe_waits_aside(client: Client, tmp_path: Path) -> None:
    reading, writing = client.pipe()  # some kernels count O_NONBLOCK too
    fd = client.open(str(tmp_path / "file"), os.O_CREAT | os.O_WRONLY)
    assert client.call("splice", reading, 0, fd, 0, 100, 2).errno == errno.EAGAIN
    call_id = client.start("splice", reading, 0, fd, 0, 100, 0)
    assert client.write(writing, b"spliced").value == 7
    assert client.result(call_id).value == 7
    assert (tmp_path / "file").read_bytes() == b"spliced"


def test_closing_while_another_thread_reads_is_as_in_a_kernel(client: Client, running: Sessions) -> None:
    reading, writing = client.pipe()
    call_id = client.start("read", reading, 1, 4, outs={1: 4})
    session = only_session(running.spawner.pid)
    wait_for_thread_in(session, f"0 {reading:#x} ")
    assert client.call("close", reading).errno == 0
    assert client.open("/etc/passwd") == reading
    client.write(writing, b"abcd")
    assert client.result(call_id).outs[1] == b"abcd"
    assert client.read(reading, 5) == Path("/etc/passwd").read_bytes()[:5]


def test_opening_a_fifo_waits_aside(client: Client, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "fifo")
    assert client.call("mknodat", AT_FDCWD, 1, 0o010644, 0, ins={1: path}).errno == 0
    call_id = client.start("openat", AT_FDCWD, 1, os.O_RDONLY, 0, ins={1: path})
    assert client.call("getuid").errno == 0
    writing = client.open(path, os.O_WRONLY)
    assert {client.result(call_id).value, writing} == {3, 4}


def test_locks_wait_aside(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = client.open(str(path), os.O_CREAT | os.O_RDWR), client.open(str(path), os.O_RDWR)
    assert client.call("flock", first, fcntl.LOCK_EX).errno == 0
    assert client.call("flock", second, fcntl.LOCK_EX | fcntl.LOCK_NB).errno == errno.EAGAIN
    call_id = client.start("flock", second, fcntl.LOCK_EX)
    assert client.call("flock", first, fcntl.LOCK_UN).errno == 0
    assert client.result(call_id).errno == 0


def test_a_broken_pipe_brings_the_signal(client: Client) -> None:
    reading, writing = client.pipe()
    client.call("close", reading)
    assert client.write(writing, b"x").errno == errno.EPIPE
    assert client.wait_for(Signal).signo == signal.SIGPIPE


def test_streams_are_carried_both_ways(running: Sessions) -> None:
    client = running.open(hello(streams=(0, 1, 2)))
    client.give_credit(1, 2)
    client.send(StreamData(0, b"input"))
    assert client.read(0) == b"input"
    client.send(StreamEnd(0))
    assert client.read(0) == b""
    assert client.write(1, b"output").value == 6
    assert client.write(2, b"error").value == 5
    client.wait(lambda: client.output == {1: b"output", 2: b"error"})
    client.write(1, b"!" * 50_000)
    client.exit(3)
    assert client.output[1] == b"output" + b"!" * 50_000
    assert client.stream_ends == {1, 2}
    assert os.waitstatus_to_exitcode(running.wait_ended()[1]) == 0


def test_streams_keep_to_the_credit(running: Sessions) -> None:
    client = running.open(hello(streams=(1,)))
    call_id = client.start("write", 1, 1, 200_000, ins={1: b"y" * 200_000})
    client.give_credit(1, size=1000)
    client.wait(lambda: len(client.output[1]) == 1000)
    assert client.call("getuid").errno == 0
    assert (len(client.output[1]), call_id in client.results) == (1000, False)
    client.give_credit(1, size=1 << 20)
    assert client.result(call_id).value == 200_000
    client.exit()
    assert client.output[1] == b"y" * 200_000
    running.wait_ended()


def test_a_reader_that_goes_away_breaks_the_programs_pipe(running: Sessions) -> None:
    client = running.open(hello(streams=(1,)))
    client.send(StreamEnd(1))
    assert client.write(1, b"x").errno == errno.EPIPE
    assert client.read(0) == b""  # not carried: /dev/null
    assert client.write(2, b"lost").value == 4
    client.exit()
    running.wait_ended()


def test_input_that_the_program_does_not_want_is_refused(running: Sessions) -> None:
    client = running.open(hello(streams=(0,)))
    assert client.call("close", 0).errno == 0
    client.send(StreamData(0, b"input"))
    client.wait(lambda: 0 in client.stream_ends)
    client.exit()
    running.wait_ended()


def test_a_terminal_is_one_with_its_size_and_keys(running: Sessions) -> None:
    client = running.open(hello(streams=(0, 1, 2), terminal=Terminal(24, 80, "vt220")))
    assert client.welcome.environment is not None
    assert b"TERM=vt220" in client.welcome.environment
    client.give_credit(1)
    tiocgwinsz = 0x5413

    def size() -> bytes:
        return client.call("ioctl", 0, tiocgwinsz, 1, ins={2: bytes(8)}, outs={2: 8}).outs[2]

    assert size() == struct.pack("=HHHH", 24, 80, 0, 0)
    client.send(WindowSize(30, 100))
    assert client.wait_for(Signal).signo == signal.SIGWINCH
    assert size() == struct.pack("=HHHH", 30, 100, 0, 0)
    client.send(StreamData(0, b"line\r"))
    assert client.read(0) == b"line\n"
    client.wait(lambda: client.output[1] == b"line\r\n")  # its echo
    client.send(StreamData(0, b"\x03"))
    assert client.wait_for(Signal).signo == signal.SIGINT
    client.send(StreamData(0, b"\x04"))
    assert client.read(0) == b""
    client.write(2, b"both\n")
    client.write(1, b"in order\n")
    tty = client.open("/dev/tty", os.O_RDWR)
    client.write(tty, b"tty\n")
    client.exit()
    assert client.output[1].endswith(b"both\r\nin order\r\ntty\r\n")
    running.wait_ended()


def test_the_end_interrupts_what_still_waits(running: Sessions) -> None:
    client = running.open(hello(streams=(0, 1), terminal=Terminal(24, 80)))
    client.give_credit(1)
    reading, _ = client.pipe()
    for fd in (0, reading):
        client.start("read", fd, 1, 1, outs={1: 1})
    client.start("write", 1, 1, 5, ins={1: b"last\n"})
    client.exit(None, signal.SIGKILL)
    assert client.output[1] == b"last\r\n"
    assert os.waitstatus_to_exitcode(running.wait_ended()[1]) == 0
    assert children(running.spawner.pid) == set()


def test_a_lost_connection_ends_the_session_at_once(running: Sessions) -> None:
    client = running.open(hello(streams=(0, 1, 2)))
    reading, _ = client.pipe()
    client.start("read", reading, 1, 1, outs={1: 1})
    client.call("getuid")
    client.close()
    running.wait_ended()
    assert children(running.spawner.pid) == set()
    assert "lost: the connection was closed" in running.log()


def test_a_hello_that_cannot_be_served_is_refused_with_a_reason(running: Sessions, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="wants the OS abstraction 'plan9', this server presents 'linux'"):
        Client(running.raw(), hello(abstraction="plan9"))
    running.wait_ended()
    with sessions(PassThrough, str(tmp_path / "log"), token="the right token") as closed:
        for token in ("", "the wrong token", "the right toke\xf1"):
            with pytest.raises(RefusedError, match="token"):
                Client(closed.raw(), hello(token=token))
            closed.wait_ended()
        client = closed.open(hello(token="the right token"))
        assert client.call("getuid").errno == 0


def test_a_silent_client_is_dropped(running: Sessions) -> None:
    sock = running.raw()
    running.wait_ended()
    assert b"did not complete its hello" in sock.recv(4096)
    sock.close()


@pytest.mark.parametrize("garbage", [b"\0\0\0\5hello", b"\xff" * 8, b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0"])
def test_garbage_ends_its_own_session_only(running: Sessions, client: Client, garbage: bytes) -> None:
    sock = running.raw()
    sock.sendall(garbage)
    assert b"malformed" in sock.recv(4096)
    sock.close()
    running.wait_ended()
    other = running.open()
    other.connection._sock.setblocking(True)
    other.connection._sock.sendall(garbage)
    assert other.wait_for(Refused).code == "malformed"
    other.wait_lost()
    running.wait_ended()
    assert client.call("getuid").errno == 0


def test_messages_that_do_not_belong_end_the_session(running: Sessions) -> None:
    for message in (StreamData(0, b"x"), StreamData(1, b"x"), StreamEnd(2), hello()):
        client = running.open()
        client.send(message)
        assert client.wait_for(Refused).code == "malformed"
        client.wait_lost()
        running.wait_ended()
    client = running.open(hello(streams=(0,)))
    client.send(StreamData(0, bytes(300_000)))
    assert "more of stream 0" in client.wait_for(Refused).message
    client.wait_lost()
    running.wait_ended()
