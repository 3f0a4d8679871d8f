"""The real gdb debugs programs that `ptserver step --gdb` runs: native, emulated, and of another architecture."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ptserver.gdb.packets import Decoder, Packet, encode
from tests.conformance.modes import base_environment
from tests.gofixtures import build
from tests.process.commands import refusal

SETTINGS = ("set auto-load off", "set pagination off", "set confirm off", "set debuginfod enabled off")


@contextlib.contextmanager
def serving(
    *words: str | Path, stdin: int = subprocess.DEVNULL
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `ptserver step --gdb` on a free port; give the address and the process."""
    command = ["ptserver", "step", "--gdb", "localhost:0", *map(str, words)]
    server = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=base_environment(),
    )
    assert server.stderr is not None
    try:
        line = server.stderr.readline()
        assert "waiting for gdb at " in line, line
        yield line.split()[5], server
        server.communicate(timeout=60)
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()


def run_gdb(address: str, program: Path, commands: Sequence[str], gdb: str = "gdb") -> str:
    if shutil.which(gdb) is None:
        pytest.skip(f"{gdb} is not installed")
    words = [gdb, "-nx", "-batch"]
    for one in SETTINGS:
        words += ["-iex", one]
    for one in (f"target remote {address}", *commands):
        words += ["-ex", one]
    done = subprocess.run([*words, program], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


def check_session(said: str) -> None:
    assert "hit Breakpoint 1, main.main ()" in said
    assert '"goroutine 1"' in said
    assert "$1 = true" in said  # a step has moved the program counter
    assert 'fmt.Println("hello, world")' in said
    assert "exited normally" in said


SESSION = [
    "break main.main",
    "continue",
    "info threads",
    "set $before = $pc",
    "stepi",
    "print $pc != $before",
]
#: `next` may come to the end at once: gdb waits for the same thread, and the goroutine may be on another one by then.
TO_THE_END = ["next", "x/2i $pc", "continue"]


@pytest.mark.parametrize("engine", ["native", "emulate"])
def test_break_step_and_continue(engine: str) -> None:
    program = build("hello")
    with serving(f"--engine={engine}", program) as (address, server):
        said = run_gdb(address, program, [*SESSION, "print $xmm0.v2_int64[0] * 0", *TO_THE_END])
        check_session(said)
        assert "$2 = 0" in said
        assert server.wait(60) == 0
        assert server.stdout is not None
        assert server.stdout.read() == "hello, world\n"


def test_arm64() -> None:
    program = build("hello", arch="arm64")
    with serving(program) as (address, server):
        said = run_gdb(
            address, program, [*SESSION, "print $v0.v2_int64[0] * 0", *TO_THE_END], "gdb-multiarch"
        )
        check_session(said)
        assert "$2 = 0" in said
        assert server.wait(60) == 0
        assert server.stdout is not None
        assert server.stdout.read() == "hello, world\n"


@pytest.mark.slow
def test_arm64_threads_registers_and_calls() -> None:
    program = build("goroutines", arch="arm64")
    commands = [
        "break main.main",
        "continue",
        "set $x5 = 77",
        "set $v3.v2_int64[1] = 9",
        "stepi",
        "print $x5 + $v3.v2_int64[1]",
        "info threads",
        "delete",
        "catch syscall write",
        "continue",
        "x/s $x1",
        "delete",
        "continue",
    ]
    with serving(program) as (address, server):
        said = run_gdb(address, program, commands, "gdb-multiarch")
        assert "$1 = 86" in said
        assert '"goroutine 1"' in said
        assert '"no goroutine"' in said
        assert "call to syscall write" in said
        assert '"pipeline: 4615000\\n"' in said
        assert "exited normally" in said
        assert server.wait(60) == 0


@pytest.mark.parametrize("engine", ["native", "emulate"])
def test_memory_and_registers_are_written(engine: str) -> None:
    """The text that the program is about to print is changed on its way."""
    program = build("hello")
    commands = [
        "set language c",
        "catch syscall write",
        "continue",
        "print *(char*)$rsi",
        "set {char[5]} $rsi = {'H','E','L','L','O'}",
        "print $rdx",
        "set $rdx = 6" if engine == "emulate" else "print 6",
        "delete",
        "continue",
    ]
    with serving(f"--engine={engine}", program) as (address, server):
        said = run_gdb(address, program, commands)
        assert "call to syscall write" in said
        assert "= 104 'h'" in said
        assert "exited normally" in said
        assert server.wait(60) == 0
        assert server.stdout is not None
        assert server.stdout.read().startswith("HELLO,")


def test_watchpoints_of_the_processor() -> None:
    program = build("remote_counter")
    with serving(program, "add", "1", "1") as (address, _):
        commands = ["watch 'main.counter'", "awatch 'main.lock'", "continue", "delete 1", "continue"]
        said = run_gdb(address, program, commands)
        assert "Hardware watchpoint 1: 'main.counter'" in said
        assert "Hardware access (read/write) watchpoint 2" in said
        assert "New value = 1" in said
        assert "exited normally" in said


def test_a_fault_and_what_goes_with_it() -> None:
    program = build("panics")
    with serving(program, "nil") as (address, _):
        said = run_gdb(address, program, ["continue", "print $_siginfo", "bt 1", "continue"])
        assert "received signal SIGSEGV" in said
        assert "exited with code 02" in said


def test_interrupt_and_detach() -> None:
    """^C stops a program that computes for ever; detached, it goes on."""
    program = build("goabi_spin")
    child = subprocess.Popen([program, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with serving("--pid", str(child.pid)) as (address, server), gdb_peer(address) as peer:
            assert peer.ask("?").startswith("T05thread:")
            peer.send("vCont;c")
            peer.socket.sendall(b"\x03")
            assert peer.receive().startswith("T02thread:")
            assert peer.ask(f"qThreadExtraInfo,{child.pid:x}")
            assert peer.ask("Z9,0,4") == ""
            assert peer.ask("m0,10").startswith("E")
            assert peer.ask("p999").startswith("E")
            assert peer.ask("yyy") == ""
            assert peer.ask("D") == "OK"
            assert server.wait(60) == 0
        assert "State:\tt" not in Path(f"/proc/{child.pid}/status").read_text()
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()


def test_a_peer_that_is_lost_ends_a_launched_program() -> None:
    with serving(build("goabi_spin"), "2") as (address, server), gdb_peer(address) as peer:
        peer.send("vCont;c")
        peer.socket.close()
        assert server.wait(60) == 0


class Peer:
    """A gdb that says what the test says."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._decoder = Decoder()
        self._events: list[object] = []

    def send(self, text: str) -> None:
        self.socket.sendall(encode(text.encode()))

    def receive(self) -> str:
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, Packet):
                    return event.data.decode("latin-1")
            data = self.socket.recv(1 << 16)
            assert data, "the server has closed the connection"
            self._events += self._decoder.feed(data)

    def ask(self, text: str) -> str:
        self.send(text)
        return self.receive()


@contextlib.contextmanager
def gdb_peer(address: str) -> Iterator[Peer]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as sock:
        peer = Peer(sock)
        assert "PacketSize" in peer.ask("qSupported:swbreak+")
        assert peer.ask("QStartNoAckMode") == "OK"
        yield peer


def test_it_is_served_on_this_machine_only() -> None:
    status, line = refusal("step", "--gdb", "0.0.0.0:0", build("hello"))
    assert status == 64
    assert "this machine only" in line
    status, line = refusal("step", "--gdb", "nonsense", build("hello"))
    assert status == 64
    assert "is no address" in line


def test_killed_by_gdb() -> None:
    program = build("goabi_spin")
    with serving(program, "2") as (address, server), gdb_peer(address) as peer:
        pid = int(peer.ask("qC").removeprefix("QC"), 16)
        assert peer.ask("vKill;1") == "OK"
        assert server.wait(60) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
